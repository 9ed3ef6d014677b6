"""Measure the noise floor of a plan's variants: each checkpoint against itself along two equivalent paths.

The stages are planned, estimated, reserved and charged as those of a run. What they find is in the store, and every
later run of the same suite and engine reads it there: its decision refuses a margin that the floor cannot resolve.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core import console
from core.console import say, table
from core.errors import ConfigError
from core.files import plain
from evals.decide.noise_floor import TaskFloor, task_floor
from evals.stats import mean_estimate
from evals.types import NoiseReport, TaskNoise
from pipeline.billing.account import Billing
from pipeline.plan.resolve import RunPlan
from pipeline.report.text import MISSING
from pipeline.run import effects_of
from pipeline.stages.graph import Stage, pending

HEADER = ("variant", "task", "items", "flips [95%]", "nats, rms", "nats, max", "right choice's probability, rms")
FLOOR_HEADER = ("task", "items", "smallest margin that can be resolved", "margin", "answer")


@dataclass(frozen=True)
class VariantNoise:
    """What was found of one variant."""

    label: str
    report: NoiseReport


def measure_noise(plan: RunPlan) -> list[VariantNoise]:
    """The noise of the baseline, then of the candidate where there is one; nothing in a dry run.

    Raises:
        ConfigError: the weights are random: their answers say nothing, and neither does their noise.
        HealthError: a checkpoint is broken.
        ToolError: a tool failed; the message ends with its log.

    """
    if plan.choices.quality_invalid_reason:
        raise ConfigError(f"{plan.choices.quality_invalid_reason}\n  -> model.weights=real")
    wanted: list[Stage[object]] = []
    for variant in plan.variants.all:
        wanted += [variant.checkpoint, *([] if variant.health is None else [variant.health]), variant.noise]
    todo = pending(wanted, plan.store)
    billing = Billing(plan, todo)
    billing.estimate()
    if plan.config.dry_run:
        say("dry run: nothing was loaded or started")
        return []
    for stage in todo:
        stage.check_access()
    with billing:
        effects = effects_of(plan, billing)
        found = []
        for variant in plan.variants.all:
            with effects.serving():
                if variant.health is not None:
                    effects.result(variant.health)
                found.append(VariantNoise(variant.candidate.label, effects.result(variant.noise)))
        return found


def floors_of(found: Sequence[VariantNoise]) -> list[TaskFloor]:
    """What the candidate's tasks can resolve beside its baseline; nothing for a baseline alone."""
    if len(found) < 2:
        return []
    baseline, candidate = found[0].report, found[-1].report
    floors = (task_floor(name, one.num_items_total, candidate, baseline) for name, one in candidate.tasks.items())
    return [floor for floor in floors if floor is not None]


def show(found: Sequence[VariantNoise], plan: RunPlan) -> None:
    """The tables, and what a run does with them."""
    if not found:
        return
    one, other = found[0].report.paths
    say()
    say(f"Paths    {one}; {other}")
    rows = [noise_row(variant.label, noise) for variant in found for noise in variant.report.tasks.values()]
    table(f"The noise floor of {plan.config.model.name}", HEADER, rows)
    floors = floors_of(found)
    if floors:
        gate = plan.config.gate
        margins = gate.margins(plan.config.suite.tasks)
        say()
        rows = [floor_row(floor, margins.get(floor.task), gate.score) for floor in floors]
        table(f"What gate.score={gate.score} can resolve", FLOOR_HEADER, rows)
    say()
    items = plan.config.noise.max_items
    say(f"Runs with the same suite, engine and noise.max_items={items} carry these figures into their decision.")


def noise_row(label: str, one: TaskNoise) -> tuple[str, ...]:
    """One line of the table."""
    return (
        label,
        one.task,
        f"{one.num_items} of {one.num_items_total}" + (f", {one.num_unscored} unscored" if one.num_unscored else ""),
        MISSING if one.flip_rate is None else flips_text(one.flip_rate, one.num_items),
        *(MISSING if value is None else f"{value:.2g}" for value in (one.rms_nats, one.max_nats, one.rms_probability)),
    )


def flips_text(rate: float, num_items: int) -> str:
    """A share of flips with its Wilson interval.

    >>> flips_text(0.05, 100)
    '5.0% [2.2%, 11.2%]'
    """
    flips = round(rate * num_items)
    interval = mean_estimate([1.0] * flips + [0.0] * (num_items - flips))
    return f"{rate:.1%} [{interval.lo:.1%}, {interval.hi:.1%}]"


def floor_row(floor: TaskFloor, margin: float | None, score: str) -> tuple[str, ...]:
    """One line of the table of margins; `margin` None for a task that does not decide. `score` is the gate's."""
    points = floor.declared_points(score)
    shown = MISSING if points is None else f"{points:.2g} points"
    if margin is None or points is None:
        return floor.task, str(floor.num_items), shown, MISSING, "does not decide" if margin is None else MISSING
    answer = "can be decided" if margin >= points else "below the noise floor: not decided"
    return floor.task, str(floor.num_items), shown, f"{margin:g} points", answer


def noise_json(found: Iterable[VariantNoise], plan: RunPlan) -> str:
    """The figures as one line of JSON; a figure that was not measured is null, never zero."""
    found = list(found)
    value = {
        "model": plan.config.model.name,
        "paths": list(found[0].report.paths) if found else [],
        "variants": {variant.label: variant.report.tasks for variant in found},
        "margins_points": plan.config.gate.margins(plan.config.suite.tasks),
        "floors": [
            {
                "task": floor.task,
                "num_items": floor.num_items,
                "resolvable_points": floor.accuracy_points,
                "resolvable_probability_points": floor.probability_points,
            }
            for floor in floors_of(found)
        ],
    }
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False)


def run_noise(plan: RunPlan) -> int:
    """Measure, show, and print the JSON where a program reads. Returns the exit code."""
    found = measure_noise(plan)
    show(found, plan)
    console.result(noise_json(found, plan))
    return 0
