"""Ask a suite of a target and return its report. lm-eval runs in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from common.files import digest_json, read_json, write_atomic, write_json
from common.process import run_logged
from evals.quality.embedded import EMBEDDED_TASKS, task_config
from evals.stats import mean_estimate
from evals.types import ItemOutcome, QualityReport, Target, TaskResult

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Suite:
    """The questions and how they are asked: equal suites make two targets comparable item by item."""

    source: str
    """`embedded` or `hub`."""
    tasks: Sequence[str]
    num_items: int | None
    num_fewshot: int | None
    num_concurrent: int
    apply_chat_template: bool
    seed: int


def run_suite(
    target: Target,
    suite: Suite,
    folder: Path,
    *,
    python: Path,
    answers: Path,
    embedded_data: Path | None,
    meaningless: str = "",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> QualityReport:
    """Evaluate every task of a suite.

    Args:
        target: the served model.
        suite: what to ask.
        folder: where the task files, the log and the raw result go.
        python: interpreter of the environment that holds lm-eval.
        answers: the answer cache's file; answers that it holds are not asked again.
        embedded_data: the unpacked `hf_datasets/` folder, for `source=embedded`.
        meaningless: why the scores say nothing, if they do not.
        on_progress: called with requests answered and requests in all, per task.

    Raises:
        ToolError: lm-eval failed; the message ends with its log.

    """
    tasks = [_task_spec(name, suite, folder, python, embedded_data) for name in suite.tasks]
    job = {
        "target": target,
        "tasks": tasks,
        "num_items": suite.num_items,
        "num_fewshot": suite.num_fewshot,
        "num_concurrent": suite.num_concurrent,
        "apply_chat_template": suite.apply_chat_template,
        "seed": suite.seed,
        "answers": answers,
    }
    write_json(folder / "job.json", job)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", "OPENAI_API_KEY": "none"}
    environment["HF_DATASETS_CACHE"] = str(answers.parent / "datasets")
    if suite.source == "embedded":
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def on_line(line: str) -> None:
        if line.startswith("PROGRESS "):
            _, done, total = line.split()
            on_progress(int(done), int(total))

    result = folder / "outcomes.json"
    command: list[str | Path] = [python, "-m", "evals.quality.worker", folder / "job.json", result]
    run_logged(command, log=folder / "lm_eval.log", env=environment, cwd=folder, on_line=on_line)
    return report(read_json(result), suite, meaningless)


def report(outcomes: dict[str, Any], suite: Suite, meaningless: str = "") -> QualityReport:
    """The worker's outcomes as a report. Pure."""
    return QualityReport({name: _task_result(name, raw, suite) for name, raw in outcomes.items()}, meaningless)


def _task_result(name: str, raw: dict[str, Any], suite: Suite) -> TaskResult:
    items = tuple(
        ItemOutcome(
            item_id=item["item_id"],
            score=item["score"],
            loglikelihoods=tuple(item["loglikelihoods"]),
            target=item["target"],
            answer=item["answer"],
            reason=item["reason"],
        )
        for item in raw["items"]
    )
    settings = {
        "task": name,
        "version": raw["version"],
        "metric": raw["metric"],
        "filter": raw["filter"],
        "num_fewshot": raw["num_fewshot"],
        "prompts": raw["prompts_digest"],
        "suite": {"num_concurrent": suite.num_concurrent, "apply_chat_template": suite.apply_chat_template},
    }
    return TaskResult(
        task=name,
        metric=raw["metric"],
        estimate=mean_estimate([item.score for item in items]),
        items=items,
        num_items_total=raw["num_items_total"],
        settings_digest=digest_json(settings),
    )


def _task_spec(name: str, suite: Suite, folder: Path, python: Path, embedded_data: Path | None) -> dict[str, str]:
    if suite.source != "embedded" or embedded_data is None:
        return {"name": name}
    assert name in EMBEDDED_TASKS
    stock = next(python.parent.parent.glob("lib/python3*/site-packages/lm_eval/tasks"))
    path = folder / "tasks" / f"{name}.yaml"
    write_atomic(path, yaml.safe_dump(task_config(name, embedded_data, stock), sort_keys=False))
    return {"name": name, "path": str(path)}
