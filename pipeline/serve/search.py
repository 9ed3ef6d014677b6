"""The search behind `pipeline.tune`: which engine makes a token cheapest. It measures through a parameter alone.

Optuna proposes (TPE, seeded), every proposal that differs from earlier ones is one server, and a server whose first
measured point shows that it cannot win is stopped there. The space has only settings that change no answer but for its
rounding (`pipeline.serve.engine.ROUNDING`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Protocol

from core.errors import ToolError
from evals.cost.curves import LoadComparison, compare
from evals.load.scenario import LoadScenario
from evals.load.search import HEADROOM, capacity_point, sweep_point
from evals.load.summary import saturating_point
from evals.types import CostReport, LoadReport
from pipeline.config import EngineConfig

if TYPE_CHECKING:
    import optuna

MEASURED, STOPPED, INFEASIBLE, FAILED = "measured", "stopped early", "objective not met", "server failed"
NOISE = 1.10
"""A probe is one repeat: within this factor of the best one it is not hopeless yet."""
ASKS_PER_TRIAL = 8
"""Optuna may repeat itself; a search ends when this many proposals for each wanted trial brought nothing new."""
Params = dict[str, Any]


@dataclass(frozen=True)
class Measurement:
    """What a server was found to cost: by a first point, or by the whole scenario."""

    cost: CostReport
    load: LoadReport


class Server(Protocol):
    """A server that runs with one engine."""

    def probe(self) -> Measurement:
        """One repeat at the highest load."""

    def measure(self) -> Measurement:
        """The whole scenario."""


Serve = Callable[[EngineConfig], AbstractContextManager[Server]]
"""Starts a server for an engine and ends it."""


@dataclass(frozen=True)
class Trial:
    """One engine point and what came of it."""

    number: int
    engine: EngineConfig
    params: Params
    outcome: str
    usd_per_1k_tokens: Decimal | None = None
    """The headline; None where the point was not measured whole."""
    bound_usd_per_1k_tokens: Decimal | None = None
    """What the probe says that it costs at least."""
    load: LoadReport | None = None
    basis: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Space:
    """The settings that are searched, each with its values. Those of n-gram speculation count only where it is on."""

    values: Mapping[str, tuple[Any, ...]]
    of_speculation: Mapping[str, tuple[Any, ...]]

    def suggest(self, trial: optuna.trial.Trial, base: EngineConfig) -> tuple[EngineConfig, Params]:
        """The engine that Optuna proposes."""
        params: Params = {name: trial.suggest_categorical(name, values) for name, values in self.values.items()}
        if params.get("speculative") is not None:
            params |= {name: trial.suggest_categorical(name, values) for name, values in self.of_speculation.items()}
        return replace(base, **params), params

    def nearest(self, engine: EngineConfig) -> Params:
        """An engine's point in this space: numbers take the nearest value, null takes the middle one."""
        params: Params = {}
        for name, values in (*self.values.items(), *self.of_speculation.items()):
            wanted = getattr(engine, name)
            if wanted in values:
                params[name] = wanted
            elif isinstance(wanted, (int, float)):
                distances = [abs(value - wanted) for value in values]
                params[name] = values[distances.index(min(distances))]
            else:
                params[name] = values[len(values) // 2]
        return params


def space_for(device: str, max_concurrency: int) -> Space:
    """The space for a device (`cpu` or `cuda`) under a load of at most so many requests in flight.

    More sequences than there are requests are all the same server, so only the next larger value is kept.
    """
    sizes = (8, 16, 32, 64, 128, 256, 512)
    enough = next((size for size in sizes if size >= max_concurrency), sizes[-1])
    values: dict[str, tuple[Any, ...]] = {
        "max_num_seqs": tuple(size for size in sizes if size <= enough),
        "max_num_batched_tokens": (512, 1024, 2048, 4096, 8192, 16384),
        "enable_prefix_caching": (True, False),
        "speculative": (None, "ngram"),
    }
    if device == "cuda":
        values["gpu_memory_utilization"] = (0.80, 0.85, 0.90, 0.95)
    return Space(values, {"num_speculative_tokens": (2, 4, 8)})


def first_scenario(scenario: LoadScenario) -> LoadScenario:
    """One repeat of the scenario's highest load: what the throughput can be at most."""
    if scenario.search is not None:
        point = capacity_point(scenario.search)
    elif scenario.points:
        mix = scenario.mix or (scenario.points[0].input_tokens, scenario.points[0].output_tokens)
        of_mix = [point for point in scenario.points if (point.input_tokens, point.output_tokens) == mix]
        point = max(of_mix, key=lambda point: point.concurrency or 0)
    elif scenario.sweep is not None:
        point = sweep_point(scenario.sweep, scenario.sweep.max_concurrency)
    else:
        raise ValueError("a replayed trace has no highest load")
    mix = (point.input_tokens, point.output_tokens)
    return replace(
        scenario, name=f"{scenario.name}-first", points=(point,), sweep=None, search=None, mix=mix, num_repeats=1
    )


def slack(scenario: LoadScenario) -> float:
    """By how much the whole scenario can turn out cheaper than its probe."""
    return HEADROOM * NOISE if scenario.search is not None else NOISE


def search(
    serve: Serve,
    base: EngineConfig,
    space: Space,
    presets: Sequence[EngineConfig],
    *,
    num_trials: int,
    seed: int,
    slack: float,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Measure the base engine, the presets, and then what Optuna proposes, until `num_trials` engines are known.

    The same seed and the same measurements give the same proposals, so a search that was cut off takes the same way
    again, over measurements that are in the store.

    Raises:
        ToolError: no engine could be measured; the last server's error.

    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, num_trials // 3))
    study = optuna.create_study(direction="minimize", sampler=sampler)
    trials: list[Trial] = []
    last_error: ToolError | None = None
    known: dict[str, Trial] = {}

    def attempt(engine: EngineConfig, params: Params) -> Trial:
        nonlocal last_error
        costs = [trial.usd_per_1k_tokens for trial in trials if trial.usd_per_1k_tokens is not None]
        try:
            trial = _measure(serve, engine, params, len(trials), min(costs, default=None), slack)
        except ToolError as error:
            last_error = error
            trial = Trial(len(trials), engine, params, FAILED, reason=str(error).partition("\n")[0])
        trials.append(trial)
        on_trial(trial)
        return trial

    attempt(base, {})
    for preset in presets:
        study.enqueue_trial(space.nearest(preset), skip_if_exists=True)
    for _ in range(ASKS_PER_TRIAL * num_trials):
        if len(trials) >= num_trials:
            break
        asked = study.ask()
        engine, params = space.suggest(asked, base)
        key = repr(sorted(params.items()))
        if key not in known:
            known[key] = attempt(engine, params)
        _tell(study, asked, known[key])
    if last_error is not None and all(trial.outcome == FAILED for trial in trials):
        raise last_error
    return trials


def _measure(
    serve: Serve, engine: EngineConfig, params: Params, number: int, best: Decimal | None, slack: float
) -> Trial:
    with serve(engine) as server:
        first = server.probe()
        headline = first.cost.usd_per_1k_tokens
        bound = None if headline is None else headline.value / Decimal(repr(slack))
        if bound is None:
            return Trial(number, engine, params, FAILED, reason="no request of the probe succeeded")
        if best is not None and bound > best:
            reason = f"at least {bound:.3g} USD per 1k tokens by its probe, the best is {best:.3g}"
            return Trial(number, engine, params, STOPPED, None, bound, first.load, reason=reason)
        whole = server.measure()
    money = whole.cost.usd_per_1k_tokens
    if money is None:
        reason = whole.cost.missing.get("usd_per_1k_tokens", "")
        return Trial(number, engine, params, INFEASIBLE, None, bound, whole.load, whole.cost.basis, reason)
    return Trial(number, engine, params, MEASURED, money.value, bound, whole.load, whole.cost.basis)


def _tell(study: optuna.Study, asked: optuna.trial.Trial, trial: Trial) -> None:
    """What Optuna learns: a cost, a bound of one that was stopped, or that nothing came of it."""
    from optuna.trial import TrialState

    if trial.usd_per_1k_tokens is not None:
        study.tell(asked, float(trial.usd_per_1k_tokens))
    elif trial.outcome == STOPPED and trial.bound_usd_per_1k_tokens is not None:
        asked.report(float(trial.bound_usd_per_1k_tokens), step=0)
        study.tell(asked, state=TrialState.PRUNED)
    else:
        study.tell(asked, state=TrialState.FAIL)


def winner(trials: Sequence[Trial]) -> Trial | None:
    """The cheapest measured trial; the earlier one of two that cost the same."""
    measured = [trial for trial in trials if trial.usd_per_1k_tokens is not None]
    return min(measured, key=lambda trial: (trial.usd_per_1k_tokens or Decimal(0), trial.number), default=None)


def against_base(trials: Sequence[Trial], best: Trial) -> LoadComparison | None:
    """The winner's price over the base engine's at the load where both are compared; None where it is not known."""
    base = trials[0]
    if base.load is None or best.load is None or base.usd_per_1k_tokens is None or best is base:
        return None
    point = saturating_point(best.load)
    return next((row for row in compare(base.load, best.load) if point is not None and row.name == point.name), None)
