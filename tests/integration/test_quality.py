"""Quality with lm-eval's real code against a deterministic server: equal to plain lm-eval, stopped early, extended."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from evals.gate.gate import Verdict
from evals.gate.sequential import GateRule, replay
from evals.quality.run import Sampling, Suite, Tools, run_gated_suite, run_suite
from evals.quality.worker import FEWSHOT_SEED
from evals.types import QualityReport, Target
from tests.integration.fake_server import FakeServer, unit

pytestmark = pytest.mark.integration
NUM_CHOICE, NUM_MATH, NUM_SHOTS = 240, 160, 12


def write_tasks(folder: Path) -> dict[str, Path]:
    """A multiple-choice task and a gsm8k-like one: lm-eval task files over local JSON, with few-shot examples."""
    folder.mkdir(parents=True, exist_ok=True)
    choice = [
        {"question": f"Which is item {i}?", "choices": [f"red {i}", f"blue {i}", f"green {i}"], "label": i % 3}
        for i in range(NUM_CHOICE + NUM_SHOTS)
    ]
    math = [
        {
            "question": f"Ann has {i} pens and buys {i % 7}. How many?",
            "answer": f"She has {i}+{i % 7}.\n#### {i + i % 7}",
        }
        for i in range(NUM_MATH + NUM_SHOTS)
    ]
    files = {}
    for name, rows, count in (("colours", choice, NUM_CHOICE), ("pens", math, NUM_MATH)):
        for split, part in (("test", rows[:count]), ("train", rows[count:])):
            (folder / f"{name}-{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        data = {split: str(folder / f"{name}-{split}.jsonl") for split in ("test", "train")}
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": data},
            "test_split": "test",
            "training_split": "train",
            "fewshot_split": "train",
            "num_fewshot": 2,
            "metadata": {"version": 1.0},
        }
        config |= COLOURS if name == "colours" else PENS
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(config, sort_keys=False))
    return files


COLOURS = {
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "label",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")],
}
PENS = {
    "output_type": "generate_until",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["Question:"], "do_sample": False, "temperature": 0.0},
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "ignore_case": True,
            "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
        }
    ],
    "filter_list": [
        {
            "name": "strict-match",
            "filter": [
                {"function": "regex", "regex_pattern": "#### (\\-?[0-9\\.\\,]+)"},
                {"function": "take_first"},
            ],
        },
        {
            "name": "flexible-extract",
            "filter": [
                {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"},
                {"function": "take_first"},
            ],
        },
    ],
}


ALL = Sampling("baseline and suite", "candidate, baseline and suite")


def solver(share_wrong: float, seed: int):
    """Writes the right sum, but for a share of the questions."""

    def write(prompt: str) -> str:
        first, second = map(int, re.findall(r"has (\d+) pens and buys (\d+)", prompt)[-1])
        off = 1 if unit(seed, first) < share_wrong else 0
        return f" She has {first}+{second}.\n#### {first + second + off}"

    return write


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner = Tokenizer(models.BPE({letter: i for i, letter in enumerate(["<eos>", *sorted(alphabet)])}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    files = write_tasks(tmp_path_factory.mktemp("tasks"))
    return Suite("files", tuple(files), None, 8, False, files)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    return Tools(Path(sys.executable), tmp_path_factory.mktemp("cache") / "answers.sqlite", None)


def target_of(server: FakeServer, tokenizer: Path, digest: str) -> Target:
    return Target(server.url, "model", tokenizer, {"max_model_len": 2048}, digest)


def base_server() -> FakeServer:
    return FakeServer(writes=solver(0.3, seed=1))


@pytest.fixture(scope="module")
def baseline(suite: Suite, tools: Tools, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> QualityReport:
    with base_server() as server:
        return run_suite(target_of(server, tokenizer, "base"), suite, tmp_path_factory.mktemp("base"), tools, ALL)


def plain_lm_eval(url: str, tokenizer: Path, suite: Suite, folder: Path) -> tuple[dict, dict]:
    """Results and per-item scores of lm-eval's own command, on all items."""
    settings = f"model=model,base_url={url}/v1/completions,tokenizer={tokenizer},tokenizer_backend=huggingface"
    settings += ",tokenized_requests=False,num_concurrent=8,max_length=2048"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", settings]
    command += ["--tasks", ",".join(map(str, suite.files.values())), "--output_path", str(folder), "--log_samples"]
    command += ["--seed", f"0,1234,1234,{FEWSHOT_SEED}"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none", "TOKENIZERS_PARALLELISM": "false"}
    environment["HF_DATASETS_CACHE"] = str(folder / "datasets")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    results = json.loads(next(folder.rglob("results_*.json")).read_text())["results"]
    samples: dict[str, dict[int, float]] = {}
    for path in folder.rglob("samples_*.jsonl"):
        for row in map(json.loads, path.read_text().splitlines()):
            name = "colours" if "colours" in path.name else "pens"
            if row["filter"] in ("none", "strict-match"):
                samples.setdefault(name, {})[row["doc_id"]] = row["acc" if name == "colours" else "exact_match"]
    return results, samples


def test_all_items_score_as_plain_lm_eval_does(
    baseline: QualityReport, suite: Suite, tools: Tools, tokenizer: Path, tmp_path: Path
) -> None:
    """Full, and gated with `stop_early=false` in a guided order: the same scores as lm-eval's command, to the digit."""
    with base_server() as server:
        results, samples = plain_lm_eval(server.url, tokenizer, suite, tmp_path / "plain")
    rule = GateRule({"colours": 0.02, "pens": 0.02}, {"colours": 0.05}, stop_early=False)
    with base_server() as server:
        target = target_of(server, tokenizer, "the same model, asked afresh")
        again = run_gated_suite(target, suite, tmp_path / "gated", tools, ALL, baseline=baseline, rule=rule)
    for report in (baseline, again):
        for name, metric in (("colours", "acc,none"), ("pens", "exact_match,strict-match")):
            task = report.tasks[name]
            assert {item.item_id: item.score for item in task.items} == samples[name]
            assert task.estimate.value == results[name][metric]
            assert task.is_complete
    raw = json.loads((tmp_path / "gated" / "outcomes.json").read_text())["tasks"]
    assert raw["colours"]["lm_eval"]["colours"]["acc,none"] == results["colours"]["acc,none"]
    assert (
        raw["pens"]["lm_eval"]["pens"]["exact_match,flexible-extract"]
        == results["pens"]["exact_match,flexible-extract"]
    )
    assert again.tasks["colours"].settings_digest == baseline.tasks["colours"].settings_digest
    states = replay(again.tasks, baseline.tasks, rule)
    assert states.combined.decision is Verdict.PASS
    assert {state.reason for state in states.states.values()} == {"exact"}
    assert [states.tasks[name].score for name in ("colours", "pens")] == ["probability", "accuracy"]


def gated(server: FakeServer, digest: str, rule: GateRule, world, sampling: Sampling | None = None) -> QualityReport:
    suite, tools, tokenizer, folder, baseline = world
    with server:
        target, drawn = target_of(server, tokenizer, digest), sampling or ALL
        return run_gated_suite(target, suite, folder / digest, tools, drawn, baseline=baseline, rule=rule)


@pytest.fixture
def world(suite: Suite, tools: Tools, tokenizer: Path, tmp_path: Path, baseline: QualityReport):
    return suite, tools, tokenizer, tmp_path, baseline


@pytest.mark.slow
@pytest.mark.parametrize("order", ["guided", "uniform"])
def test_an_equal_candidate_passes_with_a_part_of_the_items(world, order: str) -> None:
    baseline = world[-1]
    rule = GateRule({"colours": 0.1, "pens": 0.1}, order=order, block_items=16)
    server = FakeServer(seed=1, noise=0.3, writes=solver(0.3, seed=1))
    report = gated(server, f"equal {order}", rule, world)
    states = replay(report.tasks, baseline.tasks, rule)
    assert states.combined.decision is Verdict.PASS
    for name, total in (("colours", NUM_CHOICE), ("pens", NUM_MATH)):
        task = report.tasks[name]
        assert len(task.items) < total
        assert task.num_items_planned == total
        assert f"{len(task.items)} of {total} items asked" in task.estimate.method
        assert "confidence sequence" in task.estimate.method
        assert task.settings_digest == baseline.tasks[name].settings_digest
        assert tuple(item.item_id for item in task.items) == task.sampling_order.item_ids[: len(task.items)]
    # The generation task is guided by its token costs alone.
    assert {task.sampling_order.kind for task in report.tasks.values()} == {order}
    asked = sum(len(task.items) * (3 if name == "colours" else 1) for name, task in report.tasks.items())
    assert server.num_requests == asked, "requests were sent that nobody needed"


@pytest.mark.slow
def test_the_first_rejected_task_ends_the_evaluation_and_the_full_run_agrees(world) -> None:
    baseline = world[-1]
    rule = GateRule({"colours": 0.05, "pens": 0.05}, block_items=16)
    bad = FakeServer(writes=solver(0.9, seed=1))
    report = gated(bad, "bad at sums", rule, world)
    states = replay(report.tasks, baseline.tasks, rule)
    assert states.combined.decision is Verdict.FAIL
    assert states.combined.because == "pens"
    assert len(report.tasks["colours"].items) < NUM_CHOICE
    whole = replace(rule, stop_early=False)
    full = gated(FakeServer(writes=solver(0.9, seed=1)), "bad at sums", whole, world)
    assert replay(full.tasks, baseline.tasks, rule).combined.decision is Verdict.FAIL
    stopped, complete = report.tasks["pens"], full.tasks["pens"]
    assert complete.is_complete
    assert stopped.estimate.lo <= complete.estimate.value <= stopped.estimate.hi


@pytest.mark.slow
def test_a_larger_budget_goes_on_from_the_smaller_one(world) -> None:
    """Baseline and candidate are asked the first items of one uniform order, and nothing twice."""
    suite, tools, tokenizer, folder, complete = world
    rule = GateRule({"colours": 0.1, "pens": 0.1}, order="uniform", block_items=16, max_items=16)

    def at(budget: int) -> tuple[QualityReport, QualityReport, int, int]:
        sampling = replace(ALL, budgets=dict.fromkeys(suite.tasks, budget))
        with base_server() as server:
            target, place = target_of(server, tokenizer, "base in parts"), folder / f"base-{budget}"
            base = run_suite(target, suite, place, tools, sampling)
            num_base = server.num_requests
        server = FakeServer(seed=1, noise=0.3, writes=solver(0.3, seed=1))
        limited = replace(rule, max_items=budget)
        found = gated(server, "against parts", limited, (*world[:-1], base), sampling)
        return base, found, num_base, server.num_requests

    base, found, num_base, num_found = at(16)
    assert replay(found.tasks, base.tasks, rule).combined.decision is Verdict.FUTILE
    assert num_base == num_found == 4 * 16
    assert all(len(task.items) == 16 and not task.is_complete for task in base.tasks.values())
    assert all(task.num_items_total == task.num_items_planned for task in base.tasks.values())
    larger, decided, more_base, more_found = at(64)
    states = replay(decided.tasks, larger.tasks, replace(rule, max_items=64))
    assert states.combined.decision is Verdict.PASS
    assert more_base == 4 * 48
    assert more_found <= 4 * 48
    for name, task in found.tasks.items():
        assert larger.tasks[name].items[:16] == base.tasks[name].items, "the first items stay the first"
        assert decided.tasks[name].sampling_order.item_ids[:16] == task.sampling_order.item_ids[:16]
    known = {item.item_id: item.score for item in complete.tasks["colours"].items}
    assert all(known[item.item_id] == item.score for item in larger.tasks["colours"].items)


@pytest.mark.slow
def test_an_item_without_an_answer_is_counted_against_the_candidate(world) -> None:
    baseline = world[-1]
    rule = GateRule({"pens": 0.05}, stop_early=False)
    server = FakeServer(writes=solver(0.3, seed=1), failing="Ann has 7 pens and buys 0. How many?\nAnswer:")
    report = gated(server, "fails once", rule, world)
    lost = next(item for item in report.tasks["pens"].items if item.score is None)
    assert lost.item_id == 7
    assert "no answer" in lost.reason
    assert report.tasks["pens"].estimate.num_unscored == 1
    assert report.tasks["colours"].is_complete, "a task outside the gate is asked in full"
    assert report.tasks["colours"].sampling_order is None
    assert replay(report.tasks, baseline.tasks, rule).states["pens"].num_items == NUM_MATH
