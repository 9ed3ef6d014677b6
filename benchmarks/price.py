"""How often is an equal price called cheaper, and how wide is the price's interval? One start of each, against rounds.

    python -m benchmarks.price --simulate --out benchmarks/results/price-2026-11-27.json
    python -m benchmarks.price --model FOLDER [--candidate FOLDER] [--rounds 12] --time --out ...     real servers

`--simulate` draws speeds that are equal, with noise within and between starts, and a machine that drifts, and counts
how often each design calls one of two equal prices cheaper (2.5% are meant), and how often its 95% interval holds the
truth. The designs: three repeats of one start of each, one after the other, by Welch's interval (what the product did
before), and rounds of fresh starts in turn, by Student's t. `looks` asks for more rounds until a price is shown: 4,
then 8, then 16.

With a model, rounds of real servers are measured on this machine, three repeats a side. The former design is read off
the same rounds: the baseline's three repeats of one start against the candidate's of another round's start. So both
designs see the same machine in the same minutes. What is compared is the width of what each of them knows: the spread
of the former's estimates from start to start (its own interval does not contain it), and the interval that four rounds
of two repeats print. `--time` also takes the time of a run's whole load part under conf/load/quick.yaml: both load
stages with three repeats as they were, against both as they are and the rounds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.stats import t as student

from core.environments import CODE, serving_python, versions
from core.files import digest_file, plain, write_json
from evals.config import GateConfig
from evals.cost.curves import compare_points
from evals.cost.price_ratio import CONFIDENCE, confidence_at, price_ratio
from evals.load.counters import busy_reason
from evals.load.interleaved import RoundDesign, Side, run_rounds
from evals.load.run import run_load
from evals.load.scenario import LoadScenario, from_config
from evals.load.summary import t_quantile
from evals.types import LoadPoint, PriceRound, Target
from pipeline.config import EngineConfig
from pipeline.plan.machine import find_machine
from pipeline.serve.engine import server_environment
from pipeline.serve.server import ServedModel
from pipeline.types import Artifact

QUICK = CODE / "conf" / "load" / "quick.yaml"
FORMER_REPEATS = 3
NOISE = ((0.03, 0.03), (0.01, 0.05))
"""Standard deviations of the log speed within and between starts."""
DRIFTS = (0.0, 0.05)
"""Standard deviation of the machine's log speed from one round to the next; the sum of them is its day."""


@dataclass(frozen=True)
class Cell:
    """One design under one noise."""

    design: str
    within: float
    between: float
    drift: float
    repetitions: int
    called_cheaper: float
    """Share of the repetitions in which the interval lies below 1 although the prices are equal; 0.025 is meant."""
    interval_holds_truth: float
    """Share in which the 95% interval holds 1."""
    mean_half_width: float
    """Of the interval, on the logarithm."""


# Simulation ----------------------------------------------------------------------------------------------------------


def drawn_rounds(
    rng: np.random.Generator, noise: tuple[float, float], drift: float, num_rounds: int, num_repeats: int
) -> list[PriceRound]:
    """Rounds of two servers of equal speed."""
    within, between = noise
    found = []
    for machine in np.cumsum(rng.normal(0, drift, num_rounds)):
        sides = [
            tuple(float(x) for x in np.exp(machine + rng.normal(0, between) + rng.normal(0, within, num_repeats)))
            for _ in range(2)
        ]
        found.append(PriceRound(sides[0], sides[1], "baseline", ""))
    return found


def by_one_start(rng: np.random.Generator, noise: tuple[float, float], drift: float) -> tuple[float, float]:
    """The former design: the interval of the log ratio from three repeats of one start of each, at different times."""
    two = drawn_rounds(rng, noise, drift, 2, FORMER_REPEATS)
    return welch(two[0].baseline_tok_per_s, two[1].candidate_tok_per_s)


def by_rounds(
    rng: np.random.Generator, noise: tuple[float, float], drift: float, num_rounds: int, num_repeats: int
) -> tuple[float, float]:
    """The interval of the log ratio over rounds."""
    return log_interval(drawn_rounds(rng, noise, drift, num_rounds, num_repeats))


def by_looks(
    rng: np.random.Generator, noise: tuple[float, float], drift: float, num_repeats: int
) -> tuple[float, float]:
    """The interval that is shown last to somebody who asks for more rounds until the candidate is cheaper."""
    rounds = drawn_rounds(rng, noise, drift, 16, num_repeats)
    for looks, count in enumerate((4, 8, 16)):
        low, high = log_interval(rounds[:count], confidence_at(looks))
        if high < 0:
            break
    return low, high


def log_interval(rounds: Sequence[PriceRound], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Ends of the log price ratio's interval."""
    found = price_ratio(rounds, confidence=confidence)
    assert found is not None
    assert found.lo is not None
    assert found.hi is not None
    return math.log(found.lo), math.log(found.hi)


def welch(baseline: Sequence[float | None], candidate: Sequence[float | None]) -> tuple[float, float]:
    """Ends of the log price ratio's interval by Welch over repeats: what the product did before.

    The formula of `evals.cost.curves.compare_points` with SciPy's quantile, which is a hundred times faster; the first
    use is held against it.
    """
    logs = [np.log([rate for rate in rates if rate]) for rates in (baseline, candidate)]
    parts = [one.var(ddof=1) / one.size for one in logs]
    degrees = sum(parts) ** 2 / sum(part**2 / (one.size - 1) for part, one in zip(parts, logs, strict=True))
    half = float(student.ppf(0.975, degrees) * math.sqrt(sum(parts)))
    middle = float(logs[0].mean() - logs[1].mean())
    return middle - half, middle + half


def check_welch() -> None:
    """Hold `welch` against the product's own interval."""
    sides = (100.0, 104.0, 98.0), (110.0, 103.0, 109.0)
    points = [LoadPoint("c8", 8, 128, 16, tuple({"total_tok_per_s": rate} for rate in one), 0) for one in sides]
    found = compare_points(points[0], points[1])
    assert found is not None
    assert found.lo is not None
    assert abs(math.log(found.lo) - welch(*sides)[0]) < 1e-9


def simulated(repetitions: int, gate: GateConfig) -> list[Cell]:
    """Every design under every noise."""
    check_welch()
    rounds, repeats = gate.price_rounds, gate.price_repeats
    designs: dict[str, Callable[[np.random.Generator, tuple[float, float], float], tuple[float, float]]] = {
        f"one start of each, {FORMER_REPEATS} repeats, Welch": by_one_start,
        f"{rounds} rounds of {repeats}, t": partial(by_rounds, num_rounds=rounds, num_repeats=repeats),
        f"{2 * rounds} rounds of {repeats}, t": partial(by_rounds, num_rounds=2 * rounds, num_repeats=repeats),
        f"looks at 4, 8, 16 rounds of {repeats}, t": partial(by_looks, num_repeats=repeats),
    }
    cells = []
    for number, (name, interval) in enumerate(designs.items()):
        for noise in NOISE:
            for drift in DRIFTS:
                rng = np.random.default_rng([20, number, *(round(1000 * value) for value in (*noise, drift))])
                ends = np.array([interval(rng, noise, drift) for _ in range(repetitions)])
                cells.append(
                    Cell(
                        name,
                        *noise,
                        drift,
                        repetitions,
                        called_cheaper=float(np.mean(ends[:, 1] < 0)),
                        interval_holds_truth=float(np.mean((ends[:, 0] <= 0) & (ends[:, 1] >= 0))),
                        mean_half_width=float(np.mean(ends[:, 1] - ends[:, 0]) / 2),
                    )
                )
    return cells


# Real servers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What is served, and where."""

    artifacts: Mapping[Side, Artifact]
    engine: EngineConfig
    folder: Path
    python: Path

    @contextmanager
    def start(self, sides: Sequence[Side]) -> Iterator[Mapping[Side, Target]]:
        """Fresh servers of these sides, started at the same time."""
        with ExitStack() as stack:
            models = {
                side: stack.enter_context(
                    ServedModel(
                        self.artifacts[side], self.engine, find_machine(), self.python, self.folder / f"{side}.log"
                    )
                )
                for side in sides
            }
            for model in models.values():
                model.launch()
            yield {side: model.target() for side, model in models.items()}

    @property
    def environment(self) -> dict[str, str]:
        """The client's."""
        return server_environment(self.engine, find_machine())


def place_of(options: argparse.Namespace, folder: Path) -> Place:
    """The two checkpoints; without a second one the first is measured against itself."""
    machine = find_machine()

    def artifact(path: Path, side: str) -> Artifact:
        weights = sorted(path.glob("*.safetensors"))
        return Artifact(path, digest_file(weights[0]) + side, sum(one.stat().st_size for one in weights), side, None)

    engine = EngineConfig(dtype="bfloat16" if machine.has_bf16 else "float32")
    sides: dict[Side, Artifact] = {
        "baseline": artifact(options.model, "baseline"),
        "candidate": artifact(options.candidate or options.model, "candidate"),
    }
    return Place(sides, engine, folder, serving_python())


def quick(num_repeats: int | None = None) -> LoadScenario:
    """conf/load/quick.yaml, as it is or with another number of repeats."""
    found = from_config(yaml.safe_load(QUICK.read_text()))
    return found if num_repeats is None else replace(found, num_repeats=num_repeats)


def headline_design(scenario: LoadScenario, num_rounds: int, num_repeats: int) -> RoundDesign:
    """Rounds at the scenario's point of most requests in flight of its mix."""
    of_mix = [point for point in scenario.points if (point.input_tokens, point.output_tokens) == scenario.mix]
    point = max(of_mix, key=lambda one: one.concurrency or 0)
    return RoundDesign(point, point, num_rounds, num_repeats, True, scenario, 0)


@dataclass(frozen=True)
class RoundTimes:
    """What rounds took, in seconds."""

    all: float
    per_start: float
    """The part of a round, on average, that it takes whatever its repeats: starts, warm-up and end of both servers."""
    per_repeat: float
    """One repeat of both sides, on average."""

    def of(self, num_rounds: int, num_repeats: int) -> float:
        """What so many rounds of so many repeats take."""
        return num_rounds * (self.per_start + num_repeats * self.per_repeat)


def timed_rounds(place: Place, design: RoundDesign, name: str) -> tuple[tuple[PriceRound, ...], RoundTimes]:
    """The rounds, and what they took."""
    started = time.monotonic()
    rounds = run_rounds(
        design,
        place.start,
        place.python,
        place.folder / name,
        env=place.environment,
        on_round=lambda done, total: print(f"{name}: round {done} of {total}", flush=True),
    )
    all_s = time.monotonic() - started
    raw = [json.loads(path.read_text()) for path in (place.folder / name / "raw").glob("round-*.json")]
    repeats_s = sum(run["ended_monotonic_s"] - run["started_monotonic_s"] for run in raw)
    per_repeat = repeats_s / design.num_rounds / design.num_repeats
    return rounds, RoundTimes(all_s, (all_s - repeats_s) / design.num_rounds, per_repeat)


def timed_load(place: Place, scenario: LoadScenario, name: str) -> float:
    """Seconds that both load stages of a scenario take; their servers are up, as they are after the questions."""
    total_s = 0.0
    sides: tuple[Side, Side] = ("baseline", "candidate")
    for side in sides:
        with place.start((side,)) as targets:
            started = time.monotonic()
            run_load(targets[side], scenario, place.python, place.folder / f"{name}-{side}", 0, env=place.environment)
            total_s += time.monotonic() - started
        print(f"{name}: load of {side} done after {total_s:.0f} s", flush=True)
    return total_s


def former_estimates(rounds: Sequence[PriceRound], lag: int) -> list[float]:
    """Log price ratios as the former design gives them: the candidate's start lies `lag` rounds from the baseline's."""

    def mean_log(rates: Sequence[float | None]) -> float:
        return float(np.mean([math.log(rate) for rate in rates[:FORMER_REPEATS] if rate]))

    pairs = [(rounds[index], rounds[index + lag]) for index in range(len(rounds) - lag)]
    both = [*pairs, *((later, earlier) for earlier, later in pairs)]
    return [mean_log(base.baseline_tok_per_s) - mean_log(ours.candidate_tok_per_s) for base, ours in both]


def first_repeats(rounds: Sequence[PriceRound], num_repeats: int) -> list[PriceRound]:
    """The rounds as a design with fewer repeats measures them."""
    return [
        replace(
            one,
            baseline_tok_per_s=one.baseline_tok_per_s[:num_repeats],
            candidate_tok_per_s=one.candidate_tok_per_s[:num_repeats],
        )
        for one in rounds
    ]


def choices(rounds: Sequence[PriceRound], times: RoundTimes) -> list[dict[str, float]]:
    """Designs of so many rounds and repeats: the half width that the measured spread lets expect, and the time."""
    found = []
    for num_repeats in range(1, FORMER_REPEATS + 1):
        ours = first_repeats(rounds, num_repeats)
        spread = float(np.std([sum(log_interval([one, one])) / 2 for one in ours], ddof=1))
        found += [
            {
                "rounds": count,
                "repeats": num_repeats,
                "spread_of_one_round": spread,
                "half_width": t_quantile(0.975, count - 1) * spread / math.sqrt(count),
                "seconds": times.of(count, num_repeats),
            }
            for count in (2, 3, 4, 5, 6, 8)
        ]
    return found


def compared(rounds: Sequence[PriceRound], gate: GateConfig) -> dict[str, Any]:
    """The width of what both designs know, from the same rounds."""
    ours = first_repeats(rounds, gate.price_repeats)
    whole = log_interval(ours)
    # The spread of one start against another, over all lags: a run's two loads lie minutes apart.
    lagged = [value for lag in range(1, len(rounds)) for value in former_estimates(rounds, lag)]
    spread = float(np.std(lagged))
    size = gate.price_rounds
    blocks = [log_interval(ours[start : start + size]) for start in range(0, len(ours) - size + 1, size)]
    halves = [(high - low) / 2 for low, high in blocks]
    pairs = [welch(a.baseline_tok_per_s, b.candidate_tok_per_s) for a in rounds for b in rounds if a is not b]
    ratios = [sum(log_interval([one, one])) / 2 for one in ours]
    round_sd = float(np.std(ratios, ddof=1))
    return {
        "ratio_over_all_rounds": [math.exp(sum(whole) / 2), math.exp(whole[0]), math.exp(whole[1])],
        "former": {
            "spread_of_log_ratio": spread,
            "honest_half_width": 1.96 * spread,
            "printed_half_width": float(np.mean([(high - low) / 2 for low, high in pairs])),
            "share_called_different": float(np.mean([high < 0 or low > 0 for low, high in pairs])),
            "num_pairs": len(pairs),
        },
        "rounds": {
            "num_rounds": size,
            "num_repeats": gate.price_repeats,
            "spread_of_one_round": round_sd,
            "printed_half_widths": halves,
            "mean_printed_half_width": float(np.mean(halves)),
            "expected_half_width": t_quantile(0.975, size - 1) * round_sd / math.sqrt(size),
            "share_called_different": float(np.mean([high < 0 or low > 0 for low, high in blocks])),
        },
        "half_width_over_former": float(np.mean(halves)) / (1.96 * spread),
    }


def measured(options: argparse.Namespace, gate: GateConfig) -> dict[str, Any]:
    """Rounds of real servers, and the time of a run's load part."""
    record: dict[str, Any] = {"load_average_before": os.getloadavg()}
    with tempfile.TemporaryDirectory(prefix="price-benchmark-") as scratch:
        place = place_of(options, Path(scratch))
        if options.time:
            former_s = timed_load(place, quick(FORMER_REPEATS), "former")
            present_s = timed_load(place, quick(), "present")
            design = headline_design(quick(), gate.price_rounds, gate.price_repeats)
            _, taken = timed_rounds(place, design, "default")
            record["seconds"] = {
                "former_load_stages": former_s,
                "present_load_stages": present_s,
                "rounds": asdict(taken),
                "present_over_former": (present_s + taken.all) / former_s,
            }
        rounds, times = timed_rounds(place, headline_design(quick(), options.rounds, FORMER_REPEATS), "rounds")
    record |= {
        "what": f"{options.candidate or 'the model itself'} against {options.model}",
        "seconds_of_all_rounds": asdict(times),
        "choices": choices(rounds, times),
        "rounds": plain(rounds),
        "busy": busy_reason([one.counters for one in rounds]),
        "compared": compared(rounds, gate),
        "load_average_after": os.getloadavg(),
    }
    return record


def main() -> None:
    """Simulate, measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--repetitions", type=int, default=2000, help="of each cell of the simulation")
    parser.add_argument("--model", type=Path, help="folder of the baseline's checkpoint")
    parser.add_argument("--candidate", type=Path, help="folder of the candidate's; without it the baseline itself")
    parser.add_argument("--rounds", type=int, default=12, help="rounds of real servers")
    parser.add_argument("--time", action="store_true", help="also take the time of a run's load part")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    gate, machine = GateConfig(), find_machine()
    record: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "machine": {**machine.fingerprint, "platform": platform.platform(), "load_average": os.getloadavg()},
        "versions": versions(serving_python(), "vllm", "torch"),
    }
    if options.simulate:
        cells = simulated(options.repetitions, gate)
        record["simulated"] = [asdict(cell) for cell in cells]
        for cell in cells:
            noise = f"{cell.within:.0%} within, {cell.between:.0%} between, drift {cell.drift:.0%}"
            print(
                f"{cell.design:<38} {noise:<40} cheaper {cell.called_cheaper:6.2%}  "
                f"holds {cell.interval_holds_truth:6.2%}  half width {cell.mean_half_width:.1%}"
            )
    if options.model is not None:
        found = measured(options, gate)
        record["measured"] = found
        print(
            json.dumps(
                {name: found[name] for name in ("seconds", "busy", "choices", "compared") if name in found}, indent=2
            )
        )
    if options.out is not None:
        write_json(options.out, record)


if __name__ == "__main__":
    main()
