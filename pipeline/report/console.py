"""What a run tells: the plan before it, the table after it, and what of it is recorded."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from core.console import duration, say, table
from core.environments import versions
from core.errors import ParsimonyError
from core.files import digest_json, plain, write_json
from core.redact import redact
from evals.decide.decide import Evidence, mean_quality
from evals.decide.fleet import fleet_words
from evals.load.scenario import LoadScenario, load_words
from evals.load.summary import figure, headline_point
from evals.stats import PairedComparison
from evals.types import Estimate, LoadPoint, Money
from pipeline.billing.account import Account
from pipeline.config import RunConfig
from pipeline.promote import decision_tags
from pipeline.record.metrics import comparison_metrics, estimate_metrics, gate_metrics, run_metrics
from pipeline.record.store import Recorder, RunRecord, flat_params, staging_folder
from pipeline.report import decision_page, frontier
from pipeline.report.decision_page import DecisionRecord
from pipeline.serve.server import baseline_engine, engine_settings
from pipeline.types import Artifact, Decision, Measured, Plan

GIB = 2**30
MIB = 2**20
HEADER = ("variant", "size", "quality", "recovery", "tok/s", "TTFT p50", "USD per 1k tokens", "decision")
MISSING = "not measured"


def show_plan(plan: Plan, config: RunConfig, scenario: LoadScenario) -> None:
    """The plan in a few lines, before anything is loaded."""
    facts, machine, price = plan.facts, plan.machine, plan.price
    size = f"{facts.num_parameters / 1e6:,.0f} M parameters, {facts.num_bytes / GIB:.2f} GiB in 16 bit"
    say(f"Model    {facts.name}: {size}")
    variants = [candidate.label for candidate in (plan.baseline, plan.candidate) if candidate is not None]
    say(f"Variants {' (baseline), '.join(variants)}" + (" (baseline)" if len(variants) == 1 else ""))
    memory = machine.device_memory_bytes or machine.host_memory_bytes
    has = "" if memory is None else f", {memory / GIB:.0f} GiB"
    has = (f"{machine.num_devices} GPUs" if machine.device == "cuda" else f"{machine.num_cpus} CPUs") + has
    say(f"Machine  {machine.device_name}, {has}; serves in {config.engine.dtype}")
    per_hour = f"{price.usd_per_hour_lo.normalize():f}-{price.usd_per_hour_hi.normalize():f}"
    since = f", as of {price.as_of}" if price.as_of else ""
    say(f"Price    {per_hour} USD per hour ({price.purchase_option}; {price.source}{since})")
    asked = "all" if config.suite.num_items is None else f"{config.suite.num_items} random"
    say(f"Quality  {', '.join(config.suite.tasks)}: {asked} items each (suite={config.suite.name})")
    say(f"Load     {load_words(scenario)}")
    for note in plan.notes:
        say(f"Note     {note}")
    say()


@contextmanager
def outcome_of(config: RunConfig) -> Iterator[None]:
    """Say how long the run took, or what is kept of one that failed."""
    started = time.monotonic()
    try:
        yield
    except ParsimonyError:
        sys.stderr.write("the stages that had finished are kept; the same command goes on from there\n")
        raise
    say(f"total {duration(time.monotonic() - started)}")


def evidence_of(measured: Measured) -> Evidence:
    """What a decision looks at."""
    return Evidence(measured.candidate.label, measured.quality, measured.load, measured.cost)


def run_record(
    measured: Measured, base: Artifact, config: RunConfig, plan: Plan, baseline: Measured | None, account: Account
) -> RunRecord:
    """Everything that is written of one measured candidate; `baseline` is None for the baseline itself."""
    candidate = measured.candidate
    settings = {name: result.settings_digest for name, result in measured.quality.tasks.items()}
    comparable = {
        "suite": settings,
        "load": config.load,
        "machine": plan.machine.fingerprint,
        "price": plan.price,
        "utilisation": config.gate.utilisation,
        "base": base.digest,
        "engine": engine_settings(baseline_engine(config.engine)),
    }
    tags = {
        **account.tags,
        "model": config.model.name,
        "method": candidate.method,
        "label": candidate.label,
        "role": candidate.role,
        "hardware": plan.price.hardware,
        "engine": config.engine.name,
        "purchase_option": plan.price.purchase_option,
        "plane": digest_json([settings, config.load])[:16],
        "plan_hash": plan.plan_hash,
        "stage_key": measured.stage_keys.get("compress", base.digest[:24]),
        "artifact_path": str(measured.artifact.path),
        "artifact_digest": measured.artifact.digest,
        "comparable": digest_json(comparable)[:16],
        "candidate_key": digest_json([measured.stage_keys, comparable])[:24],
        "ledger_run_id": account.run_id,
        "measured_at": measured.measured_at,
    }
    mean = mean_quality(measured.quality)
    if mean is not None:
        tags["quality_method"] = mean.method
    if measured.quality.meaningless:
        tags["quality_meaningless"] = measured.quality.meaningless
    files = {"server/vllm.log": measured.server_log}
    manifest = measured.artifact.path / "manifest.json"
    if manifest.exists():
        files["artifact/manifest.json"] = manifest
    texts = {
        "config.yaml": yaml.safe_dump(redact(plain(config)), sort_keys=False),
        "plan.yaml": yaml.safe_dump(plain(plan), sort_keys=False),
        "load.yaml": yaml.safe_dump(plain(measured.load), sort_keys=False),
        "cost.yaml": yaml.safe_dump(plain(measured.cost), sort_keys=False),
    }
    texts.update({f"outcomes/{name}.csv": outcomes_csv(result) for name, result in measured.quality.tasks.items()})
    tools = versions(Path(sys.executable), "lm-eval", "llmcompressor", "mlflow", "transformers", "torch")
    return RunRecord(
        run_key=digest_json([measured.stage_keys, comparable, config.tags, candidate.role])[:32],
        name=f"{config.model.name}/{candidate.label}",
        tags=tags,
        params={**redact(flat_params(config)), **{f"tools.{name}": version for name, version in tools.items()}},
        metrics=run_metrics(measured, base.num_bytes, baseline, config.finops.energy)
        | estimate_metrics(account.outcomes(candidate.label)),
        files=files,
        texts=texts,
        stage_wall_s=measured.stage_wall_s,
        evidence=evidence_of(measured),
        curves={"distill/loss": curve} if (curve := measured.artifact.details.get("distill_curve")) else {},
    )


def card_rows(measured: list[Measured]) -> list[dict[str, Any]]:
    """The candidate's scores beside its baseline's, as the model card shows them."""
    baseline, candidate = measured[0].quality.tasks, measured[-1].quality.tasks
    return [
        {
            "task": name,
            "metric": result.metric,
            "base": baseline[name].estimate.value if name in baseline else None,
            "value": result.estimate.value,
            "lo": result.estimate.lo,
            "hi": result.estimate.hi,
            "num_items": result.estimate.num_samples,
        }
        for name, result in candidate.items()
    ]


def outcomes_csv(result: Any) -> str:
    """A task's items, one row each."""
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["item_id", result.metric, "answer", "target", "loglikelihoods", "reason"])
    for item in result.items:
        score = "" if item.score is None else f"{item.score:g}"
        loglikelihoods = " ".join(repr(value) for value in item.loglikelihoods)
        writer.writerow([item.item_id, score, item.answer, item.target, loglikelihoods, item.reason])
    return buffer.getvalue()


def record_decision(
    decision: Decision,
    comparison: PairedComparison | None,
    page: DecisionRecord | None,
    run_id: str,
    config: RunConfig,
    recorder: Recorder,
) -> None:
    """Add the decision's record and page, and the frontier's picture and page, to the candidate's run.

    They are drawn once: the same decision among the same runs has them already.
    """
    runs = recorder.runs(config.model.name)
    key = digest_json({"decision": decision, "runs": [run.info.run_id for run in runs], "config": plain(config)})
    if recorder.client.get_run(run_id).data.tags.get("decision_key") == key:
        return
    with staging_folder() as folder:
        if page is None:
            write_json(folder / decision_page.RECORD, decision)
        else:
            decision_page.write(page, folder)
        frontier.draw(config.model.name, runs, folder, recorder.evidence)
        recorder.annotate(
            run_id,
            tags=decision_tags(decision, key),
            metrics=comparison_metrics(comparison) | gate_metrics(decision.evidence.get("tasks", {}).values()),
            folder=folder,
        )


def show_result(
    measured: list[Measured],
    decision: Decision,
    comparison: PairedComparison | None,
    registry: str,
    config: RunConfig,
    recorder: Recorder,
) -> None:
    """The final table, the decision with its reasons, and where everything is."""
    recovery = None if comparison is None else comparison.recovery
    rows = [result_row(one, decision, recovery) for one in measured]
    say()
    table(f"{config.model.name} on {measured[0].cost.price.hardware}", HEADER, rows)
    say()
    say(f"Decision on {decision.variant}: {decision.action}")
    for reason in decision.reasons:
        say(f"  {reason}")
    say(f"  {registry}")
    if len(measured) > 1:
        fleet = fleet_words(evidence_of(measured[0]), evidence_of(measured[-1]), config.peak_req_per_s)
        if fleet is not None:
            say(f"Fleet    {fleet}")
    reused = sorted({f"{one.candidate.label}/{name}" for one in measured for name in one.reused})
    if reused:
        say(f"Reused from earlier runs: {', '.join(reused)}")
    say(f"Recorded in {config.tracking.uri} (scripts/pipeline ui)")


def result_row(measured: Measured, decision: Decision, recovery: Estimate | None) -> tuple[str, ...]:
    """One line of the final table."""
    is_baseline = measured.candidate.role == "baseline"
    point = headline_point(measured.load)
    action = "baseline" if is_baseline else decision.action
    return (
        measured.candidate.label,
        f"{measured.artifact.num_bytes / MIB:.0f} MiB",
        estimate_text(mean_quality(measured.quality)),
        "" if is_baseline else estimate_text(recovery),
        mean_text(point, "output_tok_per_s", "{:.0f}") + ("" if point is None else f" at {at_load(point)}"),
        mean_text(point, "ttft_p50_s", "{:.3f} s"),
        money_text(measured.cost.usd_per_1k_tokens),
        action,
    )


def estimate_text(estimate: Estimate | None) -> str:
    """A share with its interval."""
    return MISSING if estimate is None else f"{estimate.value:.1%} [{estimate.lo:.1%}, {estimate.hi:.1%}]"


def money_text(money: Money | None) -> str:
    """An amount with its interval."""
    return MISSING if money is None else f"{money.value:.3g} [{money.lo:.2g}, {money.hi:.2g}]"


def mean_text(point: LoadPoint | None, metric: str, form: str) -> str:
    """The mean of a metric over a point's repeats."""
    value = None if point is None else figure(point, metric)
    return MISSING if value is None else form.format(value.value)


def at_load(point: LoadPoint) -> str:
    """The load of a point in a few letters."""
    if point.request_rate is not None:
        return f"{point.request_rate:g} req/s"
    if point.trace is not None:
        return "the trace's pace"
    return "once" if point.concurrency is None else f"c={point.concurrency}"
