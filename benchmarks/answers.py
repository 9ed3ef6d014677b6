"""Every answer of finished variants to embedded evaluation sets, in the form that `benchmarks.gate --answers` reads.

    python -m benchmarks.answers --out FOLDER none=FOLDER VARIANT=FOLDER ... --task piqa=800 --task sciq

Task definitions, prompts, requests and scores are lm-eval's, and so are the worker and the answer cache the product's
(`evals.quality.worker`). Only the model stands in this process instead of behind a server: the answer choices of a
question share the pass over its prompt, and many questions share one forward pass, each seeing nothing of the others.
That takes a fraction of the time that a server takes for the same log-likelihoods on a CPU.

`--task NAME=N` asks a seeded random subset of N items: the same for every variant. Answers are kept one by one in
FOLDER/answers.sqlite: a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.environments import set_defaults, versions
from core.files import read_json, write_atomic, write_json
from core.store import StageStore
from evals.quality import worker
from evals.quality.answers import AnswerCache
from evals.quality.embedded import EMBEDDED_TASKS, task_config
from evals.quality.lm_eval_model import SelectedRequests
from evals.quality.selection import make_selection
from evals.stats import mean_estimate, paired_bootstrap
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.stages.data import Datasets
from pipeline.stages.graph import Effects

BASE = "none"
TOKENS_AT_ONCE = 1024
"""Tokens of one forward pass: enough for the processor's matrix products, few enough for a mask of its square."""


@dataclass(frozen=True)
class Question:
    """A prompt and the continuations that are scored after it."""

    context: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads: a continuation's last one is only predicted."""
        return len(self.context) + sum(len(choice) - 1 for choice in self.choices)


@dataclass(frozen=True)
class Pack:
    """Several questions as one sequence of T tokens.

    `parents` and `branches` (T,) say which question a token belongs to and which of its continuations (0: the prompt);
    `positions` (T,) count within prompt and continuation. Continuation token j of (question, choice) is predicted at
    `predicted_at[question, choice][j]`.
    """

    tokens: list[int]
    parents: list[int]
    branches: list[int]
    positions: list[int]
    predicted_at: dict[tuple[int, int], list[int]]


def pack(questions: Sequence[Question]) -> Pack:
    """Lay questions one after another."""
    found = Pack([], [], [], [], {})
    for number, question in enumerate(questions):
        start = len(found.tokens)
        _lay(found, question.context, number, 0, 0)
        last = start + len(question.context) - 1
        for branch, choice in enumerate(question.choices, start=1):
            at = len(found.tokens)
            _lay(found, choice[:-1], number, branch, len(question.context))
            found.predicted_at[number, branch - 1] = [last, *range(at, len(found.tokens))]
    return found


def _lay(found: Pack, tokens: Sequence[int], number: int, branch: int, position: int) -> None:
    found.tokens.extend(tokens)
    found.parents.extend([number] * len(tokens))
    found.branches.extend([branch] * len(tokens))
    found.positions.extend(range(position, position + len(tokens)))


def batches(questions: Sequence[Question], limit: int = TOKENS_AT_ONCE) -> Iterator[list[int]]:
    """Numbers of questions that go through the model together; one that is longer than the limit goes alone."""
    batch: list[int] = []
    size = 0
    for number, question in enumerate(questions):
        if batch and size + question.num_tokens > limit:
            yield batch
            batch, size = [], 0
        batch.append(number)
        size += question.num_tokens
    if batch:
        yield batch


def score(model: Any, questions: Sequence[Question]) -> list[list[tuple[float, bool]]]:
    """Per question and continuation: its log-likelihood (nats), and whether greedy decoding would write it."""
    import torch

    laid = pack(questions)
    device = model.device
    parents, branches = (torch.tensor(values, device=device) for values in (laid.parents, laid.branches))
    number = torch.arange(len(laid.tokens), device=device)
    may_see = (parents[:, None] == parents[None]) & (number[:, None] >= number[None])
    may_see &= (branches[None] == 0) | (branches[:, None] == branches[None])
    wanted = sorted({at for places in laid.predicted_at.values() for at in places})
    with torch.inference_mode():
        logits = model(
            input_ids=torch.tensor([laid.tokens], device=device),
            position_ids=torch.tensor([laid.positions], device=device),
            attention_mask=may_see[None, None],
            logits_to_keep=torch.tensor(wanted, device=device),
            use_cache=False,
        ).logits[0]
    log_p = logits.float().log_softmax(-1)
    row_of = {at: row for row, at in enumerate(wanted)}
    scored: list[list[tuple[float, bool]]] = []
    for question_number, question in enumerate(questions):
        scored.append([])
        for branch, choice in enumerate(question.choices):
            rows = [row_of[at] for at in laid.predicted_at[question_number, branch]]
            found = log_p[rows].gather(1, torch.tensor(choice, device=device)[:, None])[:, 0]
            is_greedy = log_p[rows].argmax(-1).tolist() == list(choice)
            scored[-1].append((float(found.double().sum()), is_greedy))
    return scored


def load(folder: Path) -> tuple[Any, Any]:
    """A checkpoint's model and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map=device).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def packed_model(network: Any, encoder: Any, asked: SelectedRequests) -> Any:
    """lm-eval's view of a checkpoint in this process, with the product's answer cache before it."""
    from lm_eval.api.model import TemplateLM

    class PackedModel(TemplateLM):  # type: ignore[misc]
        selected = asked
        tokenizer = encoder

        @property
        def eot_token_id(self) -> int:
            return int(encoder.eos_token_id)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **ignored: Any) -> list[int]:
            return list(encoder.encode(string, add_special_tokens=bool(add_special_tokens)))

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
            ask = super().loglikelihood
            answers = asked.answer("loglikelihood", requests, lambda part: ask(part, disable_tqdm=True))
            return [tuple(answer) for answer in answers]

        def _loglikelihood_tokens(self, requests: list[Any], **ignored: Any) -> list[tuple[float, bool]]:
            choices: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
            for _, context, continuation in requests:
                choices.setdefault(tuple(context), {})[tuple(continuation)] = None
            questions = [Question(context, tuple(listed)) for context, listed in choices.items()]
            found: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[float, bool]] = {}
            for batch in batches(questions):
                part = [questions[number] for number in batch]
                for question, scores in zip(part, score(network, part), strict=True):
                    found.update({(question.context, one): s for one, s in zip(question.choices, scores, strict=True)})
            return [found[tuple(context), tuple(continuation)] for _, context, continuation in requests]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
            raise SystemExit(f"task '{requests[0].task_name}' generates: ask it through the product")

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
            raise SystemExit(f"task '{requests[0].task_name}' has no answer choices: ask it through the product")

        def num_tokens(self, kind: str, sample: Mapping[str, Any]) -> int | None:
            return asked.num_tokens(kind, sample, self.tok_encode)

    return PackedModel()


def ask(name: str, folder: Path, wanted: Mapping[str, int | None], data: Path, out: Path) -> None:
    """Ask one variant every task that it has no file for from this very checkpoint, and write the files."""
    import lm_eval

    checkpoint = checkpoint_digest(folder)
    missing = {
        task: num_items
        for task, num_items in wanted.items()
        if recorded(out, name, task).get("checkpoint") != checkpoint
    }
    if not missing:
        return
    stock = Path(lm_eval.__file__).parent / "tasks"
    tools = versions(Path(sys.executable), "lm-eval", "transformers", "torch")
    digest = f"{checkpoint} in process, {tools}"
    network, encoder = load(folder)
    for task, num_items in missing.items():
        path = out / "tasks" / f"{task}.yaml"
        write_json(path, task_config(task, data, stock))  # JSON is YAML
        loaded = worker.load_task({"name": task, "path": str(path)})
        budgets = {} if num_items is None else {task: num_items}
        job: Any = {
            "num_fewshot": None, "apply_chat_template": False, "budgets": budgets, "uniform_identity": "benchmark",
        }  # fmt: skip
        selection = make_selection(job, {task: list(range(sum(loaded.sizes)))})
        chosen = {task: worker.items_by_leaf(loaded, selection.reachable(task))}
        with AnswerCache(out / "answers.sqlite", digest) as cache:
            asked = SelectedRequests(cache, selection, worker.places([loaded], chosen))
            model = packed_model(network, encoder, asked)
            outcome = worker.evaluate([loaded], chosen, model, job)["tasks"][task]
        kept = ("item_id", "score", "loglikelihoods", "target", "num_tokens")
        items = [{key: value for key, value in item.items() if key in kept} for item in outcome["items"]]
        about: dict[str, object] = {"variant": name, "task": task, "checkpoint": checkpoint, "tools": tools}
        about |= {"metric": outcome["metric"], "num_items_total": outcome["num_items_total"]}
        write_json(answers_file(out, name, task), {**about, "items": items})
        accuracy = mean_estimate([item["score"] for item in outcome["items"]])
        print(
            f"{name} {task}: {accuracy.value:.2%} [{accuracy.lo:.2%}, {accuracy.hi:.2%}], {len(items)} items",
            flush=True,
        )


def answers_file(out: Path, name: str, task: str) -> Path:
    """Where a variant's answers to a task are."""
    return out / f"{name}-{task}.json"


def recorded(out: Path, name: str, task: str) -> dict[str, Any]:
    """What a variant's file says; empty where there is none."""
    path = answers_file(out, name, task)
    return dict(read_json(path)) if path.exists() else {}


def table(out: Path, names: Sequence[str], tasks: Sequence[str]) -> str:
    """One line a variant: accuracy, difference to the base on the same items, and answers that changed."""
    heads = [f"{task} [95%] | points to none [95%] | right lost, won" for task in tasks]
    lines = [f"| variant | {' | '.join(heads)} |", f"|---|{'---|' * 3 * len(tasks)}"]
    for name in names:
        cells = [cell for task in tasks for cell in _cells(recorded(out, name, task), recorded(out, BASE, task))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(ours: Mapping[str, Any], base: Mapping[str, Any]) -> list[str]:
    scores, others = ({item["item_id"]: item["score"] for item in found["items"]} for found in (ours, base))
    if scores.keys() != others.keys():
        raise SystemExit(f"{ours['variant']} and {BASE} were asked other items of {ours['task']}")
    accuracy = mean_estimate(list(scores.values()))
    first = f"{accuracy.value:.1%} [{accuracy.lo:.1%}, {accuracy.hi:.1%}]"
    if ours["variant"] == BASE:
        return [first, "", ""]
    pair = ([scores[item] for item in others], list(others.values()))
    found = paired_bootstrap({"": pair[0]}, {"": pair[1]}, np.random.default_rng(0))
    changed = found.flips[""]
    points = [100 * one for one in (found.difference.value, found.difference.lo, found.difference.hi)]
    return [first, "{:+.1f} [{:+.1f}, {:+.1f}]".format(*points), f"{len(changed.lost)}, {len(changed.gained)}"]


def main() -> None:
    """Parse the command line, ask, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--task", action="append", required=True, metavar="NAME[=N]", help=", ".join(EMBEDDED_TASKS))
    parser.add_argument(
        "--table", type=Path, metavar="FILE.md", help="write the variants' table too; needs none=FOLDER"
    )
    parser.add_argument("variants", nargs="+", metavar="VARIANT=FOLDER")
    arguments = parser.parse_args()
    set_defaults()
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "GPTQMODEL_CPU_WORKERS": "2"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = str(arguments.out / "datasets")
    home = Path(os.environ["PARSIMONY_HOME"])
    data = Effects(StageStore(home / "store"), home, Path(sys.executable)).result(Datasets())
    wanted: dict[str, int | None] = {}
    for text in arguments.task:
        task, _, num_items = text.partition("=")
        if task not in EMBEDDED_TASKS:
            parser.error(f"--task {text}: unknown; known: {', '.join(EMBEDDED_TASKS)}")
        wanted[task] = int(num_items) if num_items else None
    for text in arguments.variants:
        name, _, folder = text.partition("=")
        ask(name, Path(folder), wanted, data, arguments.out)
    if arguments.table is not None:
        names = [text.partition("=")[0] for text in arguments.variants]
        write_atomic(arguments.table, table(arguments.out, names, list(wanted)))


if __name__ == "__main__":
    main()
