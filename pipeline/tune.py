"""Search the engine's settings for the cheapest token at the latency objective, and keep the winner as a choice.

Each engine is one server: started once, measured, ended. The search starts from `engine=` and the presets; what is
measured is kept, so a search that was cut off goes on, and a run with the winner measures its speed no second time
(`load=` being the same). Only settings that cannot change an answer are searched: the winner's quality is the
variant's. The file that is written holds the figures it was chosen by.

The optimiser is Optuna, called directly: Hydra's own sweeper for it is no longer maintained, and would start one
pipeline per point.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import ConfigError, ToolError
from core.files import write_atomic
from evals.cost.token_cost import cost_report
from evals.load.scenario import LoadScenario
from evals.types import LoadReport, Price
from pipeline.config import EngineConfig, RunConfig
from pipeline.serve.search import Look, Trial, against_base, first_scenario, search, slack, space_for, winner

if TYPE_CHECKING:
    from pipeline.run import Services
    from pipeline.serve.server import ServedModel
    from pipeline.types import Artifact, Plan

NUM_TRIALS = 16
HEADER = ("#", "engine", "outcome", "USD per 1k tokens", "why")


@dataclass(frozen=True)
class Bench:
    """One served engine under the scenario; `pipeline.serve.search.Server`."""

    served: ServedModel
    config: RunConfig
    plan: Plan
    scenario: LoadScenario
    services: Services
    label: str
    """What is different from the engine that the search starts from."""

    def first_look(self) -> Look:
        """One repeat at the highest load."""
        return self._look(first_scenario(self.scenario), "first look")

    def measure(self) -> Look:
        """The whole scenario: the very stage that a run with this engine looks for."""
        return self._look(self.scenario, "whole load")

    def _look(self, scenario: LoadScenario, what: str) -> Look:
        from core.console import Console
        from pipeline.record.store import revive
        from pipeline.run import load

        console = Console(f"{self.label}: {what}")
        store = self.services.store
        found = load(self.served, self.config, self.plan, scenario, store, self.services, console.stage, console)
        report = revive(LoadReport, found.result)
        return Look(cost_report(report, self.plan.price, Decimal(str(self.config.gate.utilisation))), report)


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
    from core.console import Console, say, table
    from pipeline.billing.account import Account
    from pipeline.plan.resolve import plan_run
    from pipeline.run import distill, machine_lock, make_services, quiet
    from pipeline.stages.base import base_model
    from pipeline.stages.compress import compress

    planned = plan_run(config)
    config, plan, scenario = planned.config, planned.plan, planned.scenario
    space_size = max_concurrency(scenario)
    with Account(config, plan, scenario) as account:
        services = make_services(config, account)
        candidate = plan.candidate or plan.baseline
        base = base_model(config.model, config.seed, services.store)
        student, _ = distill(base, config, plan, services)
        services = replace(services, store=replace(services.store, on_event=quiet))
        with machine_lock(services.home, shared=True):
            console = Console(f"{config.model.name}/{candidate.label}")
            artifact, _ = compress(
                candidate, student, config, plan.plan_hash, services.store, console.stage, planned.elsewhere
            )
        space = space_for(plan.machine.device, space_size)
        say(f"engines: {num_trials} of {candidate.label} under load={scenario.name}; first the one of engine=")
        trials = search(
            lambda engine: serve(
                artifact, replace(config, engine=engine), plan, scenario, services, difference(engine, config.engine)
            ),
            config.engine,
            space,
            presets,
            num_trials=num_trials,
            seed=config.seed,
            slack=slack(scenario),
            on_trial=lambda trial: say(" | ".join(row(trial))),
        )
        table(f"{config.model.name}/{candidate.label}: {len(trials)} engines", HEADER, [row(trial) for trial in trials])
        best = winner(trials)
        if best is None:
            raise ToolError("no engine held the objective:\n" + "\n".join(f"  {trial.reason}" for trial in trials))
        name = tuned_name(config.model.name, candidate.label, plan.price.hardware)
        path = folder / f"{name}.yaml"
        now = datetime.now(UTC)
        write_atomic(path, choice_file(name, best, trials, plan.price, config, scenario, now))
        say(f"winner: {path}   use it with engine=tuned/{name}")
        return path


@contextmanager
def serve(
    artifact: Artifact,
    config: RunConfig,
    plan: Plan,
    scenario: LoadScenario,
    services: Services,
    label: str,
) -> Iterator[Bench]:
    """A server that starts when something must be measured, and ends with the block."""
    from pipeline.serve.server import ServedModel

    log = services.home / "logs" / f"vllm-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.log"
    with ServedModel(artifact, config.engine, plan.machine, services.serving_python, log) as served:
        yield Bench(served, config, plan, scenario, services, label)


def difference(engine: EngineConfig, base: EngineConfig) -> str:
    """What an engine has otherwise than the one that the search starts from.

    >>> difference(EngineConfig(max_num_seqs=8), EngineConfig()), difference(EngineConfig(), EngineConfig())
    ('max_num_seqs=8', 'the base engine')
    """
    before = asdict(base)
    return words({name: value for name, value in asdict(engine).items() if value != before[name]})


def words(settings: Mapping[str, Any]) -> str:
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

    settings: dict[str, Any] = asdict(best.engine) | {"name": f"tuned/{name}"}
    device_name = None if best.load is None else best.load.machine.device_name
    evidence = [
        f"Made by `python -m pipeline.cli.tune` on {now:%Y-%m-%d}: the cheapest of {len(trials)} engines.",
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
            f"{found.verdict}."]  # fmt: skip
