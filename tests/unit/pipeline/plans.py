"""Plans of the unit tests: real configuration, facts and stages; no machine is asked and nothing is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.store import StageResult, StageStore
from evals.load.scenario import LoadScenario, from_config
from evals.types import Price
from pipeline.config import RunConfig
from pipeline.plan.plan import make_plan
from pipeline.plan.resolve import NOT_BUILT, RunPlan
from pipeline.plan.variants import variants_of
from pipeline.stages.graph import Stage
from pipeline.types import Machine
from tests.unit.pipeline.shapes import FACTS, MACHINE

POINT = {"concurrency": 1, "input_tokens": 32, "output_tokens": 8, "num_requests": 4}
SCENARIO = from_config({"name": "one", "num_repeats": 2, "points": [POINT]})


def run_plan(config: RunConfig, price: Price, scenario: LoadScenario = SCENARIO, machine: Machine = MACHINE) -> RunPlan:
    """A run's plan for the test machine."""
    choices = make_plan(config, FACTS, machine, price, 100 * 2**30)
    store = StageStore(Path(config.home) / "store")
    variants = variants_of(config, choices, scenario, None, NOT_BUILT, store)
    return RunPlan(config, choices, scenario, variants, NOT_BUILT, store)


def stored(
    stage: Stage[Any], store: StageStore, make: Callable[[Path], dict[str, Any]] = lambda folder: {}
) -> StageResult:
    """Put a stage into the store with another making than its own."""
    return store.run(stage.name, stage.inputs, make, label=stage.label, resumable=stage.resumable)


def store_all(plan: RunPlan) -> None:
    """Make every stage of a plan look finished."""
    for stage in plan.stages:
        if not stage.is_given:
            stored(stage, plan.store)
