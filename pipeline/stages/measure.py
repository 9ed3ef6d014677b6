"""One variant's stages, and what they say together."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from core.store import StageResult
from evals.cost.token_cost import cost_report
from evals.types import Price
from finops.pricing.prices import serving_price
from pipeline.distill.results import distill_metrics, training_curve
from pipeline.plan.variants import Variant
from pipeline.stages.distill import Distill
from pipeline.stages.graph import Effects
from pipeline.types import Artifact, Measured


def measure(variant: Variant, effects: Effects, price: Price, utilisation: float) -> Measured:
    """One candidate's checkpoint, health, quality and speed, and its price from them.

    Args:
        variant: what to measure.
        effects: store, machine and servers.
        price: of the machine.
        utilisation: declared share of time at which the machine is busy.

    Raises:
        HealthError: the checkpoint is broken.
        ToolError: a tool failed; the message ends with its log.

    """
    label = variant.candidate.label
    with effects.serving():
        artifact = effects.result(variant.checkpoint)
        if variant.health is not None:
            health = effects.result(variant.health)
            effects.say(f"{variant.quality.served.name}: health: {health.line()}")
            artifact = replace(artifact, making=replace(artifact.making, health_metrics=health.metrics()))
        quality, load = effects.result(variant.quality), effects.result(variant.load)
        attempt = variant.quality.attempt(effects)
        price_rounds = None if variant.price is None else effects.result(variant.price)
    found: dict[str, StageResult] = {
        stage.name: effects.found(stage) for stage in variant.stages if stage.label == label
    }
    if (noise := variant.noise.find(effects.store)) is not None:  # measured by its own command, or not at all
        quality = replace(quality, noise=variant.noise.load(noise))
        found["noise"] = noise
    made: dict[str, StageResult] = distilled(variant, effects) | found
    speed_price = serving_price(price, load.machine.startup_s)
    return Measured(
        candidate=variant.candidate,
        artifact=with_student(artifact, made),
        quality=quality,
        load=load,
        cost=cost_report(load, speed_price, Decimal(str(utilisation))),
        server_log=made["load"].folder / "vllm.log",
        stage_keys={name: stage.key for name, stage in made.items()},
        stage_wall_s={name: stage.wall_s for name, stage in made.items()},
        stage_started_at={name: stage.started_at for name, stage in made.items()},
        made_now=tuple(name for name, stage in made.items() if not stage.reused),
        reused=tuple(name for name, stage in found.items() if stage.reused and name != "digest"),
        attempt=attempt,
        measured_at=min(
            made["quality"].started_at,
            load.machine.oldest_result_at or made["load"].started_at,
            *(one.ended_at for one in (() if price_rounds is None else price_rounds.rounds)),
        ),
        price_rounds=price_rounds,
    )


def distilled(variant: Variant, effects: Effects) -> dict[str, StageResult]:
    """The stage that made the student behind a variant's checkpoint, where there is one."""
    for stage in (variant.checkpoint, *variant.checkpoint.needs):
        if isinstance(stage, Distill):
            return {"distill": effects.found(stage)}
    return {}


def with_student(artifact: Artifact, made: dict[str, StageResult]) -> Artifact:
    """A student's checkpoint with the figures of its training, also where it was compressed after that."""
    if "distill" not in made:
        return artifact
    result = made["distill"].result
    making = replace(artifact.making, distill_metrics=distill_metrics(result), distill_curve=training_curve(result))
    return replace(artifact, making=making)
