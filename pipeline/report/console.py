"""What a run tells: the plan before it, the table after it, and what of it is recorded."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from core.command import command
from core.console import duration, say, table
from core.errors import ParsimonyError
from evals.decide.evidence import busy_machine, mean_quality
from evals.decide.fleet import describe_fleet
from evals.load.scenario import describe_load
from evals.load.summary import headline_point
from evals.quality.sizes import known_size
from evals.stats import PairedComparison
from evals.types import Decision
from pipeline.plan.resolve import RunPlan
from pipeline.promote import Outcome
from pipeline.record.run_record import evidence_of
from pipeline.report.text import GIB, MIB, action_text, at_load, estimate_text, mean_text, money_text, points_text
from pipeline.types import Measured

HEADER = (
    "variant", "size", "quality", "difference", "questions like these", "tok/s", "TTFT p50", "USD per 1k tokens",
    "decision",
)  # fmt: skip


def show_plan(plan: RunPlan) -> None:
    """The plan in a few lines, before anything is loaded."""
    config, choices = plan.config, plan.choices
    facts, machine, price = choices.facts, choices.machine, choices.price
    size = f"{facts.num_parameters / 1e6:,.0f} M parameters, {facts.num_bytes / GIB:.2f} GiB in 16 bit"
    say(f"Model    {facts.name}: {size}")
    variants = [candidate.label for candidate in (choices.baseline, choices.candidate) if candidate is not None]
    say(f"Variants {' (baseline), '.join(variants)}" + (" (baseline)" if len(variants) == 1 else ""))
    memory = machine.device_memory_bytes or machine.host_memory_bytes
    has = "" if memory is None else f", {memory / GIB:.0f} GiB"
    has = (f"{machine.num_devices} GPUs" if machine.device == "cuda" else f"{machine.num_cpus} CPUs") + has
    say(f"Machine  {machine.device_name}, {has}; serves in {config.engine.dtype}")
    per_hour = f"{price.usd_per_hour_lo.normalize():f}-{price.usd_per_hour_hi.normalize():f}"
    since = f", as of {price.as_of}" if price.as_of else ""
    say(f"Price    {per_hour} USD per hour ({price.purchase_option}; {price.source}{since})")
    tasks = ", ".join(task_text(config.suite.source, task) for task in config.suite.tasks)
    budget = "as many as it takes" if config.gate.max_items is None else f"at most {config.gate.max_items} of each"
    say(f"Quality  {tasks}: whole splits, {budget} are asked (suite={config.suite.name})")
    say(f"Load     {describe_load(plan.scenario)}")
    for note in choices.notes:
        say(f"Note     {note}")
    say()


def task_text(source: str, task: str) -> str:
    """A task with its number of items, where that is known before it is loaded."""
    size = known_size(source, task)
    return task if size is None else f"{task} ({size:,} items)"


@contextmanager
def shown(what: str) -> Iterator[None]:
    """Say that something is done that is no stage, and how long it took."""
    say(f"{what} ...")
    started = time.monotonic()
    yield
    say(f"{what}: done in {duration(time.monotonic() - started)}")


@contextmanager
def outcome_of() -> Iterator[None]:
    """Say how long the run took, or what is kept of one that failed."""
    started = time.monotonic()
    try:
        yield
    except ParsimonyError:
        sys.stderr.write("the stages that had finished are kept; the same command goes on from there\n")
        raise
    say(f"total {duration(time.monotonic() - started)}")


def show_result(
    measured: list[Measured], outcome: Outcome, comparison: PairedComparison | None, plan: RunPlan, way_on: str | None
) -> None:
    """The final table, the decision with its reasons, and where everything is.

    `way_on` says what a decision that is not made yet would still take.
    """
    config = plan.config
    decision = outcome.decision
    rows = [result_row(one, decision, comparison) for one in measured]
    say()
    table(f"{config.model.name} on {measured[0].cost.price.hardware}", HEADER, rows)
    say("quality, difference: accuracy over every question of this benchmark, and variant minus baseline in points;")
    say("questions like these: that difference for a source of which the benchmark is a sample; 95% intervals")
    say()
    say(f"Decision on {decision.variant}: {action_text(decision.action)}")
    for reason in decision.reasons:
        say(f"  {reason}")
    say(f"  {outcome.registry}")
    if way_on is not None:
        say(f"Next     {way_on}")
    if len(measured) > 1:
        fleet = describe_fleet(evidence_of(measured[0]), evidence_of(measured[-1]), config.peak_req_per_s)
        if fleet is not None:
            say(f"Fleet    {fleet}")
    for one in measured:
        if busy := busy_machine(evidence_of(one)):
            say(f"Note     {one.candidate.label}: speed and price were measured on a busy machine: {busy}")
    reused = sorted({f"{one.candidate.label}/{name}" for one in measured for name in one.reused})
    if reused:
        say(f"Reused from earlier runs: {', '.join(reused)}")
    say(f"Recorded in {config.tracking.uri} ({command('ui')})")


def result_row(measured: Measured, decision: Decision, comparison: PairedComparison | None) -> tuple[str, ...]:
    """One line of the final table."""
    is_baseline = measured.candidate.role == "baseline"
    point = headline_point(measured.load)
    action = "baseline" if is_baseline else action_text(decision.action)
    return (
        measured.candidate.label,
        f"{measured.artifact.num_bytes / MIB:.0f} MiB",
        estimate_text(mean_quality(measured.quality)),
        "" if is_baseline else points_text(None if comparison is None else comparison.difference),
        "" if is_baseline else points_text(None if comparison is None else comparison.like_these),
        mean_text(point, "output_tok_per_s", "{:.0f}") + ("" if point is None else f" at {at_load(point)}"),
        mean_text(point, "ttft_p50_s", "{:.3f} s"),
        money_text(measured.cost.usd_per_1k_tokens),
        action,
    )
