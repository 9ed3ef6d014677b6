"""Ask a suite of a target and return its report. lm-eval runs in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

import yaml

from core.errors import ToolError
from core.files import digest_json, write_atomic
from core.jobs import LOCAL, Job, Launcher
from evals.gate.benchmark import benchmark_mean
from evals.gate.gate import Verdict
from evals.gate.scores import scores_of
from evals.gate.sequential import (
    GateRule,
    SequentialEvaluation,
    draw_orders,
    estimate_after_stopping,
    replay,
)
from evals.quality.embedded import EMBEDDED_TASKS, task_config
from evals.quality.messages import Outcomes, RawTask, TaskSpec
from evals.quality.selection import sampling_order_from_json
from evals.stats import mean_estimate
from evals.types import ItemOutcome, QualityReport, Target, TaskResult

WORKER = "evals.quality.worker:work"


@dataclass(frozen=True)
class Suite:
    """The questions and how they are asked: equal suites make two targets comparable item by item."""

    source: str
    """`embedded`, `hub`, or `files` (lm-eval task files of your own, see `files`)."""
    tasks: Sequence[str]
    num_fewshot: int | None
    num_concurrent: int
    apply_chat_template: bool
    files: Mapping[str, Path] = field(default_factory=dict)
    """Task name -> lm-eval task file, for `source=files`."""


@dataclass(frozen=True)
class Sampling:
    """Which items are asked, and what their order is drawn from: digests, so that nobody draws twice."""

    uniform_identity: str
    """Of baseline and suite: the order that all candidates of a baseline share."""
    guided_identity: str = ""
    """Of candidate, baseline and suite: a candidate's own order."""
    budgets: Mapping[str, int] = field(default_factory=dict)
    """Most items of a task, the first of its uniform order; a task that is not named is asked in full."""


@dataclass(frozen=True)
class Tools:
    """What an evaluation works with, whatever it asks."""

    python: Path
    """Interpreter of the environment that has lm-eval."""
    answers: Path
    """The answer cache's file; answers in it are not asked again."""
    embedded_data: Path | None
    """The unpacked `hf_datasets/` folder, for `source=embedded`."""
    on_progress: Callable[[int, int], None] = lambda done, total: None
    """Called with the items asked so far and the items that will be asked at most."""
    on_answers: Callable[[int, int], None] = lambda fresh, known: None
    """Told, once lm-eval has ended, how many requests the server answered and how many the cache knew."""
    meanwhile: Callable[[], object] | None = None
    """Called while lm-eval starts: the target may be launched and not answer yet."""
    launcher: Launcher = LOCAL


def run_suite(
    target: Target,
    suite: Suite,
    folder: Path,
    tools: Tools,
    sampling: Sampling,
    *,
    quality_invalid_reason: str = "",
) -> QualityReport:
    """Ask every item of a suite, within its budgets.

    Args:
        target: the served model.
        suite: what to ask.
        folder: where the task files, the log and the raw result go.
        tools: lm-eval's environment, the answer cache, the data.
        sampling: budgets, and what the order is drawn from. A larger budget later on costs only the new items.
        quality_invalid_reason: why the scores say nothing, if they do not.

    Raises:
        ToolError: lm-eval failed; the message ends with its log.

    """
    raw = _run_worker(target, suite, folder, tools, sampling)
    return report(raw["tasks"], suite, quality_invalid_reason)


def run_gated_suite(
    target: Target,
    suite: Suite,
    folder: Path,
    tools: Tools,
    sampling: Sampling,
    *,
    baseline: QualityReport,
    rule: GateRule,
    quality_invalid_reason: str = "",
) -> QualityReport:
    """Ask a candidate block by block until its gates have decided.

    Args:
        target: the served candidate.
        suite: as the baseline was asked.
        folder: where the task files, the log and the raw result go.
        tools: lm-eval's environment, the answer cache, the data.
        sampling: as the baseline's, with the candidate's own identity.
        baseline: the baseline's report on this suite, within the same budgets.
        rule: margins, levels, order.
        quality_invalid_reason: why the scores say nothing, if they do not.

    Raises:
        ConfigError: the rule names a task that is not in the suite.
        ToolError: lm-eval failed, or the baseline answered too few items.

    """
    orders = draw_orders(
        baseline.tasks,
        rule,
        guided_identity=sampling.guided_identity,
        uniform_identity=sampling.uniform_identity,
    )
    scores = {task: known for task, known in scores_of(baseline.tasks).items() if task in orders}
    gate = {"rule": asdict(rule), "orders": orders, "baseline": scores}
    raw = _run_worker(target, suite, folder, tools, sampling, gate)
    if any(raw["items_needed"].values()):
        raise ToolError(f"the baseline answered too few items: {dict(raw['items_needed'])} are needed")
    return gated_report(raw["tasks"], suite, baseline, rule, quality_invalid_reason)


def _run_worker(
    target: Target,
    suite: Suite,
    folder: Path,
    tools: Tools,
    sampling: Sampling,
    gate: Mapping[str, object] | None = None,
) -> Outcomes:
    tasks = [_task_spec(name, suite, folder, tools) for name in suite.tasks]
    job = {
        "target": replace(target, digest=answers_digest(target, suite.num_concurrent)),
        "tasks": tasks,
        "num_fewshot": suite.num_fewshot,
        "num_concurrent": suite.num_concurrent,
        "apply_chat_template": suite.apply_chat_template,
        "answers": tools.answers,
        "budgets": sampling.budgets,
        "uniform_identity": sampling.uniform_identity,
        **({} if gate is None else {"gate": gate}),
    }
    environment = {"TOKENIZERS_PARALLELISM": "false", "OPENAI_API_KEY": "none"}
    environment["HF_DATASETS_CACHE"] = str(tools.answers.parent / "datasets")
    if suite.source == "embedded":
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

    def on_line(line: str) -> None:
        if line.startswith("PROGRESS "):
            _, done, total = line.split()
            tools.on_progress(int(done), int(total))

    asked = Job(
        WORKER,
        job,
        folder,
        log="lm_eval.log",
        result_file="outcomes.json",
        python=tools.python,
        environment=environment,
        gpus=0,
    )
    raw = cast(Outcomes, tools.launcher.run(asked, on_line=on_line, meanwhile=tools.meanwhile))
    tools.on_answers(raw["num_fresh"], raw["num_known"])
    return raw


def answers_digest(target: Target, num_concurrent: int) -> str:
    """What a target's answers go by in the cache: their rounding depends on the number of requests in flight."""
    return digest_json([target.digest, {"num_concurrent": num_concurrent}])


def report(outcomes: Mapping[str, RawTask], suite: Suite, quality_invalid_reason: str = "") -> QualityReport:
    """The worker's outcomes as a report. Pure."""
    return QualityReport(
        {name: _task_result(name, raw, suite) for name, raw in outcomes.items()}, quality_invalid_reason
    )


def gated_report(
    outcomes: Mapping[str, RawTask],
    suite: Suite,
    baseline: QualityReport,
    rule: GateRule,
    quality_invalid_reason: str = "",
) -> QualityReport:
    """The report of an evaluation that may have stopped early. It names what was not asked."""
    tasks = {name: _task_result(name, raw, suite) for name, raw in outcomes.items() if raw["items"]}
    evaluation = replay(tasks, baseline.tasks, rule)
    for name, result in tasks.items():
        if not result.is_complete:
            estimate = estimate_after_stopping(result, baseline.tasks[name], evaluation.tasks[name].accuracy)
            tasks[name] = replace(result, estimate=estimate, like_these=None)
    reason = _ended_by(evaluation)
    return QualityReport(tasks, quality_invalid_reason, {name: reason for name in outcomes if name not in tasks})


def _ended_by(evaluation: SequentialEvaluation) -> str:
    combined = evaluation.combined
    if combined.decision in (Verdict.FAIL, Verdict.FUTILE):
        return f"not evaluated: {combined.because} had ended the evaluation ({combined.decision})"
    return "not evaluated"


def _task_result(name: str, raw: RawTask, suite: Suite) -> TaskResult:
    items = tuple(
        ItemOutcome(
            item_id=item["item_id"],
            score=item["score"],
            loglikelihoods=tuple(item["loglikelihoods"]),
            target=item["target"],
            answer=item["answer"],
            reason=item["reason"],
            num_tokens=item["num_tokens"],
            question=item.get("question", ""),
            choices=tuple(item.get("choices", ())),
        )
        for item in raw["items"]
    )
    asked: dict[str, object] = {
        "num_concurrent": suite.num_concurrent,
        "apply_chat_template": suite.apply_chat_template,
    }
    if raw["chat_template"] is not None:  # no key without a template: digests of plain prompts stay what they were
        asked["chat_template"] = raw["chat_template"]
    settings = {
        "task": name,
        "version": raw["version"],
        "metric": raw["metric"],
        "filter": raw["filter"],
        "num_fewshot": raw["num_fewshot"],
        "prompts": raw["prompts_digest"],
        "suite": asked,
    }
    order = raw.get("sampling_order")
    drawn, scores = None if order is None else sampling_order_from_json(order), [item.score for item in items]
    return TaskResult(
        task=name,
        metric=raw["metric"],
        estimate=benchmark_mean(scores, raw["num_items_total"]),
        sampling_order=drawn,
        items=items,
        num_items_total=raw["num_items_total"],
        settings_digest=digest_json(settings),
        like_these=mean_estimate(scores) if drawn is None or drawn.kind == "uniform" else None,
    )


def _task_spec(name: str, suite: Suite, folder: Path, tools: Tools) -> TaskSpec:
    if suite.source == "files":
        return {"name": name, "path": str(suite.files[name])}
    if suite.source != "embedded" or tools.embedded_data is None:
        return {"name": name}
    assert name in EMBEDDED_TASKS
    stock = next(tools.python.parent.parent.glob("lib/python3*/site-packages/lm_eval/tasks"))
    path = folder / "tasks" / f"{name}.yaml"
    write_atomic(path, yaml.safe_dump(task_config(name, tools.embedded_data, stock), sort_keys=False))
    return {"name": name, "path": str(path)}
