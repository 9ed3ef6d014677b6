"""Search the engine's settings for the cheapest token at the latency objective, and keep the winner as a choice.

Each engine is one server: started once, measured, ended. The search starts from `engine=` and the presets; what is
measured is kept, so a search that was cut off goes on, and a run with the winner measures its speed no second time
(`load=` being the same). Only settings that keep the model as it is are searched. They change the rounding of its
answers, so a run with the winner asks the questions anew. The file that is written has the figures that it was chosen
by.

The optimizer is Optuna, called directly: Hydra's own sweeper for it is no longer maintained, and would start one
pipeline per point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from core.console import say, table
from core.errors import ConfigError, ToolError
from core.files import write_atomic
from evals.cost.token_cost import cost_report
from evals.load.scenario import LoadScenario
from evals.types import Price
from pipeline.billing.account import Billing
from pipeline.config import EngineConfig, RunConfig
from pipeline.plan.resolve import RunPlan, resolve
from pipeline.plan.variants import Variant, load_with_engine
from pipeline.run import effects_of
from pipeline.serve.search import Measurement, Trial, against_base, first_scenario, search, slack, space_for, winner
from pipeline.stages.graph import Effects, pending
from pipeline.stages.load import Load

NUM_TRIALS = 16
HEADER = ("#", "engine", "outcome", "USD per 1k tokens", "why")


@dataclass(frozen=True)
class EngineTrial:
    """One served engine under the scenario; `pipeline.serve.search.Server`."""

    load: Load
    """The stage that measures it: the very one that a run with this engine looks for."""
    effects: Effects
    price: Price
    utilisation: Decimal
    label: str
    """What is different from the engine that the search starts from."""

    def probe(self) -> Measurement:
        """One repeat at the highest load."""
        return self._measure_load(first_scenario(self.load.scenario), "probe")

    def measure(self) -> Measurement:
        """The whole scenario."""
        return self._measure_load(self.load.scenario, "whole load")

    def _measure_load(self, scenario: LoadScenario, what: str) -> Measurement:
        say(f"{self.label}: {what}")
        report = self.effects.result(replace(self.load, scenario=scenario))
        return Measurement(cost_report(report, self.price, self.utilisation), report)


def max_concurrency(scenario: LoadScenario) -> int:
    """The most requests that the scenario has in flight at once, as far as it limits them.

    Raises:
        ConfigError: the scenario has no highest load to look at first.

    """
    try:
        return first_scenario(scenario).points[0].concurrency or 1
    except ValueError as error:
        raise ConfigError(f"load={scenario.name}: {error}\n  -> load=slo\n  -> load=sweep") from error


def tune(config: RunConfig, num_trials: int, folder: Path, presets: Sequence[EngineConfig]) -> Path:
    """Search, first of all the presets, and write the winner's file; returns its path.

    Raises:
        ToolError: no engine could be measured, or none held the objective.

    """
    plan = resolve(config)
    config, scenario = plan.config, plan.scenario
    space_size = max_concurrency(scenario)
    variant = plan.variants.all[-1]
    name = f"{config.model.name}/{variant.candidate.label}"
    billing = Billing(plan, pending((variant.checkpoint, variant.load), plan.store))
    billing.estimate()
    with billing:
        effects = effects_of(plan, billing)
        effects.result(variant.checkpoint)
        space = space_for(plan.choices.machine.device, space_size)
        label = variant.candidate.label
        say(f"engines: {num_trials} of {label} under load={scenario.name}; first the one of engine=")
        trials = search(
            lambda engine: serve(plan, variant, engine, effects),
            config.engine,
            space,
            presets,
            num_trials=num_trials,
            seed=config.seed,
            slack=slack(scenario),
            on_trial=lambda trial: say(" | ".join(row(trial))),
        )
        table(f"{name}: {len(trials)} engines", HEADER, [row(trial) for trial in trials])
        best = winner(trials)
        if best is None:
            raise ToolError("no engine held the objective:\n" + "\n".join(f"  {trial.reason}" for trial in trials))
        price = plan.choices.price
        found = tuned_name(config.model.name, label, price.hardware)
        path = folder / f"{found}.yaml"
        write_atomic(path, choice_file(found, best, trials, price, config, scenario, datetime.now(UTC)))
        say(f"winner: {path}   use it with engine=tuned/{found}")
        return path


@contextmanager
def serve(plan: RunPlan, variant: Variant, engine: EngineConfig, effects: Effects) -> Iterator[EngineTrial]:
    """A server that starts when something must be measured, and ends with the block."""
    load = load_with_engine(variant, engine, plan.scenario)
    utilisation = Decimal(str(plan.config.gate.utilisation))
    with effects.serving():
        yield EngineTrial(load, effects, plan.choices.price, utilisation, difference(engine, plan.config.engine))


def difference(engine: EngineConfig, base: EngineConfig) -> str:
    """What an engine has otherwise than the one that the search starts from.

    >>> difference(EngineConfig(max_num_seqs=8), EngineConfig()), difference(EngineConfig(), EngineConfig())
    ('max_num_seqs=8', 'the base engine')
    """
    before = asdict(base)
    return words({name: value for name, value in asdict(engine).items() if value != before[name]})


def words(settings: Mapping[str, object]) -> str:
    """Settings as they are given on a command line; none are the base engine's."""
    return " ".join(f"{name}={value}" for name, value in settings.items()) or "the base engine"


def tuned_name(model: str, label: str, hardware: str) -> str:
    """The winner's name under conf/engine/tuned.

    >>> tuned_name("smollm2-135m", "none", "l4-24gb"), tuned_name("smollm2-135m", "int8", "l4-24gb")
    ('smollm2-135m-l4-24gb', 'smollm2-135m-int8-l4-24gb')
    """
    parts = [model, *([] if label == "none" else [label]), hardware]
    return "-".join("".join(c if c.isalnum() or c in "._-" else "-" for c in part) for part in parts)


def row(trial: Trial) -> tuple[str, ...]:
    """A trial's line: the settings that were searched, and what came of them."""
    cost = "" if trial.usd_per_1k_tokens is None else f"{trial.usd_per_1k_tokens:.4g}"
    return str(trial.number), words(trial.params), trial.outcome, cost, trial.reason


def choice_file(
    name: str,
    best: Trial,
    trials: Sequence[Trial],
    price: Price,
    config: RunConfig,
    scenario: LoadScenario,
    now: datetime,
) -> str:
    """The winner as a choice of `engine=`, whole and without defaults, its evidence as comments above it."""
    import yaml

    settings: dict[str, object] = asdict(best.engine) | {"name": f"tuned/{name}"}
    device_name = None if best.load is None else best.load.machine.device_name
    evidence = [
        f"Made by `parsimony tune` on {now:%Y-%m-%d}: the cheapest of {len(trials)} engines.",
        f"Model {config.model.name}, load={scenario.name}; {best.basis}.",
        f"Machine {device_name or price.hardware}, {price.usd_per_hour_lo}-{price.usd_per_hour_hi} USD "
        f"per hour ({price.purchase_option}), busy {config.gate.utilisation:g} of the time.",
        f"Lowest of several measurements, so a little too low: {best.usd_per_1k_tokens:.4g} USD per 1k tokens.",
        *_against_base(trials, best),
        "All engines, in the order of the search:",
        *(f"  {' | '.join(cell for cell in row(trial) if cell)}" for trial in trials),
    ]
    comments = "".join(f"# {line}\n" for text in evidence for line in text.splitlines())
    return comments + str(yaml.safe_dump(settings, sort_keys=False))


def _against_base(trials: Sequence[Trial], best: Trial) -> list[str]:
    if best is trials[0]:
        return ["No engine was cheaper than the one that the search started from."]
    found = against_base(trials, best)
    if found is None:
        return []
    interval = "" if found.lo is None or found.hi is None else f" [{found.lo - 1:+.1%}, {found.hi - 1:+.1%}]"
    return [f"Against the engine that the search started from, at {found.name}: {found.ratio - 1:+.1%}{interval}, "
            "by one start of each."]  # fmt: skip
