"""`suite.apply_chat_template=true`: prompts, answers and scores are those of `lm_eval run --apply_chat_template`."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from core.environments import serving_python
from core.errors import ConfigError
from core.files import digest_json
from core.store import StageStore
from evals.gate.gate import Verdict
from evals.gate.sequential import GateRule, replay
from evals.quality.chat import write_conversation
from evals.quality.embedded import task_config
from evals.quality.run import Sampling, Suite, Tools, run_gated_suite, run_suite
from evals.quality.worker import FEWSHOT_SEED
from evals.types import QualityReport, Target
from pipeline.config import EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.plan.resolve import planned_engine
from pipeline.serve.server import ServedModel
from pipeline.stages.data import Datasets
from pipeline.stages.graph import Effects
from tests.integration.conftest import Workplace, embedded_base
from tests.integration.fake_server import FakeServer, unit
from tests.integration.test_quality import write_tasks

pytestmark = pytest.mark.integration
BEGIN, TURN, END = "<begin>", "<turn>", "<end>"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<turn>{{ message['role'] }}\n{{ message['content'] }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
SCIENCE = {
    "task": "science",
    "dataset_path": "json",
    "test_split": "test",
    "training_split": "train",
    "fewshot_split": "train",
    "num_fewshot": 2,
    "description": "Answer in one word.",
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{correct_answer}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False, "temperature": 0.0},
    "metric_list": [
        {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True},
    ],
    "metadata": {"version": 1.0},
}
"""A generation task over real items: a system's turn, two few-shot turns, then the question."""


class RecordingServer(FakeServer):
    """Keeps every prompt as it came: a text, or token ids."""

    def __init__(self, tokenizer: Path) -> None:
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.prompts: list[tuple[object, bool]] = []
        super().__init__(writes=self.solve)

    def solve(self, prompt: list[int]) -> str:
        """The right sum for some questions, a wrong one for the others."""
        first, second = map(int, re.findall(r"has (\d+) pens and buys (\d+)", self.tokenizer.decode(prompt))[-1])
        return f"She has {first}+{second}.\n#### {first + second + (unit(first) < 0.4)}"

    def reply(self, body: dict) -> dict:
        self.prompts += [(prompt, bool(body.get("echo"))) for prompt in body["prompt"]]
        return super().reply(body)


def a_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A byte tokenizer that puts a begin token before every text, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [BEGIN, TURN, END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=BEGIN, eos_token=END, additional_special_tokens=[TURN]
    )
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


def plain_lm_eval(
    target: Target, suite: Suite, report: QualityReport, folder: Path
) -> tuple[dict, dict[str, dict[int, dict]]]:
    """Results and items (task -> item -> row) of lm-eval's own command with its own chat path, on a report's items."""
    settings = f"model={target.model_name},base_url={target.url}/v1/completions,tokenizer={target.tokenizer}"
    settings += ",tokenizer_backend=huggingface,num_concurrent=8,max_length=2048"
    samples = {name: sorted(item.item_id for item in task.items) for name, task in report.tasks.items()}
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", settings]
    command += ["--apply_chat_template", "--tasks", ",".join(str(path) for path in suite.files.values())]
    command += ["--samples", json.dumps(samples), "--output_path", str(folder), "--log_samples"]
    command += ["--seed", f"0,1234,1234,{FEWSHOT_SEED}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}
    environment["HF_DATASETS_CACHE"] = str(folder / "datasets")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows: dict[str, dict[int, dict]] = {}
    for name in suite.tasks:
        for line in next(folder.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines():
            row = json.loads(line)
            rows.setdefault(name, {}).setdefault(row["doc_id"], row)
    return json.loads(next(folder.rglob("results_*.json")).read_text())["results"], rows


def assert_equal(report: QualityReport, name: str, column: str, results: dict, rows: dict[int, dict]) -> None:
    """Scores, log-likelihoods and written answers are lm-eval's, to the last digit."""
    task, metric = report.tasks[name], column.partition(",")[0]
    assert {item.item_id: item.score for item in task.items} == {item: row[metric] for item, row in rows.items()}
    for item in task.items:
        responses = rows[item.item_id]["filtered_resps"]
        if isinstance(responses[0], list):
            assert list(item.loglikelihoods) == [float(response[0]) for response in responses]
        else:
            assert item.answer == responses[0]
    assert task.estimate.value == results[name][column]


def few(suite: Suite, num_items: int) -> Sampling:
    """So many items of each task."""
    return Sampling("baseline and suite", budgets=dict.fromkeys(suite.tasks, num_items))


def test_prompts_are_lm_evals_with_one_begin_token(tmp_path: Path) -> None:
    tokenizer, files = a_tokenizer(tmp_path / "tokenizer"), write_tasks(tmp_path / "tasks")
    suite = Suite("files", tuple(files), None, 8, True, files)
    tools = Tools(Path(sys.executable), tmp_path / "answers.sqlite", None)
    with RecordingServer(tokenizer) as server:
        target = Target(server.url, "model", tokenizer, {"max_model_len": 2048}, "chat")
        report = run_suite(target, suite, tmp_path / "ours", tools, few(suite, 12))
        ours, server.prompts = server.prompts, []
        results, rows = plain_lm_eval(target, suite, report, tmp_path / "plain")
        theirs = server.prompts
    raw = json.loads((tmp_path / "ours" / "outcomes.json").read_text())["tasks"]
    assert {task["chat_template"] for task in raw.values()} == {digest_json(TEMPLATE)}
    assert_equal(report, "colours", "acc,none", results, rows["colours"])
    assert_equal(report, "pens", "exact_match,strict-match", results, rows["pens"])
    assert 0 < report.tasks["pens"].estimate.value < 1
    assert sorted(ours) == sorted(theirs)
    assert len(ours) == 3 * 12 + 12
    decode = server.tokenizer.decode
    for prompt, _ in ours:
        assert prompt[0] == server.tokenizer.bos_token_id
        assert prompt.count(server.tokenizer.bos_token_id) == 1
        assert re.match(
            r"<begin><turn>user\n.*<turn>assistant\n.*<turn>user\n.*<turn>assistant\n", decode(prompt), re.S
        )
    # What the tokenizer itself makes of a conversation, without a text in between.
    question = "Question: Ann has 7 pens and buys 0. How many?\nAnswer:"
    messages = [{"role": "user", "content": question}]
    written = write_conversation(server.tokenizer, messages, add_generation_prompt=True)
    ids = server.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert server.tokenizer(written, add_special_tokens=False).input_ids == ids


def test_a_chat_suite_runs_to_a_verdict(tmp_path: Path) -> None:
    """Multiple choice by the right choice's probability, generation by its score, both asked as conversations."""
    tokenizer, files = a_tokenizer(tmp_path / "tokenizer"), write_tasks(tmp_path / "tasks")
    suite = Suite("files", tuple(files), None, 8, True, files)
    tools = Tools(Path(sys.executable), tmp_path / "answers.sqlite", None)
    sampling = Sampling("baseline and suite", "candidate, baseline and suite", dict.fromkeys(files, 60))
    rule = GateRule(dict.fromkeys(files, 0.1), {"colours": 0.25}, order="uniform", max_items=60, block_items=10)
    with RecordingServer(tokenizer) as server:
        target = Target(server.url, "model", tokenizer, {"max_model_len": 2048}, "chat")
        baseline = run_suite(target, suite, tmp_path / "base", tools, sampling)
        same = replace(target, digest="the same answers")
        found = run_gated_suite(same, suite, tmp_path / "same", tools, sampling, baseline=baseline, rule=rule)
    states = replay(found.tasks, baseline.tasks, rule)
    assert states.combined.decision is Verdict.PASS
    assert [states.tasks[name].score for name in ("colours", "pens")] == ["probability", "accuracy"]
    assert all(state.max_log_e_pass >= math.log(20) for state in states.states.values())


def test_a_base_without_a_template_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    files, bare = write_tasks(tmp_path / "tasks"), a_tokenizer(tmp_path / "bare", None)
    suite = Suite("files", ("colours",), None, 8, True, files)
    tools = Tools(Path(sys.executable), tmp_path / "answers.sqlite", None)
    with RecordingServer(bare) as server:
        target = Target(server.url, "model", bare, {"max_model_len": 2048}, "bare")
        with pytest.raises(ConfigError, match=r"(?s)suite\.apply_chat_template: true is not possible.*=false asks"):
            run_suite(target, suite, tmp_path / "run", tools, few(suite, 4))
    assert not server.prompts


def test_a_template_that_asks_for_the_date_writes_the_same_prompt_every_day(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    dated = "{{ strftime_now('%d %b %Y') }}: {{ messages[0]['content'] }}"
    tokenizer = AutoTokenizer.from_pretrained(a_tokenizer(tmp_path / "dated", dated))
    messages = [{"role": "user", "content": "Hello"}]
    assert write_conversation(tokenizer, messages, add_generation_prompt=True) == "26 Jul 2024: Hello"
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(ConfigError, match=r"(?s)refuses a prompt: System role not supported.*suite\.tasks="):
        write_conversation(tokenizer, messages, add_generation_prompt=True)


@pytest.mark.slow  # the test of the prompts holds the same against a server that needs no start
def test_the_real_model_scores_as_under_plain_lm_eval(workplace: Workplace, tmp_path: Path) -> None:
    """Multiple choice and generation, few items each, on vLLM."""
    store = StageStore(workplace.home / "store")
    data = Effects(store, workplace.home, Path(sys.executable)).result(Datasets())
    files = write_real_tasks(data, tmp_path / "tasks")
    suite = Suite("files", tuple(files), None, 8, True, files)
    tools = Tools(Path(sys.executable), tmp_path / "answers.sqlite", None)
    machine = find_machine()
    engine = planned_engine(EngineConfig(startup_timeout_s=900), machine)
    with ServedModel(embedded_base(store), engine, machine, serving_python(), tmp_path / "vllm.log") as served:
        report = run_suite(served.target(), suite, tmp_path / "ours", tools, few(suite, 6))
        results, rows = plain_lm_eval(served.target(), suite, report, tmp_path / "plain")
        counts: list[tuple[int, int]] = []
        counting = replace(tools, on_answers=lambda fresh, known: counts.append((fresh, known)))
        again = run_suite(served.target(), suite, tmp_path / "again", counting, few(suite, 6))
    assert again == report
    assert [fresh for fresh, _ in counts] == [0], "answers were asked twice"
    assert_equal(report, "arc_easy", "acc,none", results, rows["arc_easy"])
    assert_equal(report, "science", "exact_match,none", results, rows["science"])
    assert all(len(item.loglikelihoods) >= 3 for item in report.tasks["arc_easy"].items)
    assert all(item.answer.strip() for item in report.tasks["science"].items)


def write_real_tasks(data: Path, folder: Path) -> dict[str, Path]:
    """ARC-Easy as it is embedded, and a generation task over items of SciQ."""
    from datasets import Dataset

    folder.mkdir()
    stock = next(Path(sys.executable).parent.parent.glob("lib/python3*/site-packages/lm_eval/tasks"))
    rows = Dataset.from_file(str(data / "sciq/none/validation/data-00000-of-00001.arrow"))
    splits = {"test": range(6), "train": range(6, 12)}
    for split, part in splits.items():
        lines = [json.dumps({key: rows[index][key] for key in ("question", "correct_answer")}) for index in part]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    items = {"data_files": {split: str(folder / f"{split}.jsonl") for split in splits}}
    configs = {"arc_easy": task_config("arc_easy", data, stock), "science": {**SCIENCE, "dataset_kwargs": items}}
    for name, config in configs.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return {name: folder / f"{name}.yaml" for name in configs}
