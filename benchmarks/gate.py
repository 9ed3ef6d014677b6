"""How often the gate errs, and how many items it needs: by simulation, and on recorded answers in many orders.

    python -m benchmarks.gate --simulate boundary --out benchmarks/results/gate-boundary.md  # power, tests, guided
    python -m benchmarks.gate --simulate all --quick            # all tables in a minute, with a tenth of the repeats
    python -m benchmarks.gate --answers FOLDER --out benchmarks/results/gate-answers.md

The simulation runs the code of the gate itself (evals/gate/betting.py), with a leading axis of replications.

`--answers` reads every *.json of FOLDER, one per variant and task:

    {"variant": "int8", "task": "piqa",
     "items": [{"item_id": 0, "score": 1.0, "loglikelihoods": [-3.1, -4], "target": 0}, ...]}

or the `evidence.json` of a recorded run (an MLflow artifact; its label is the variant, and all its tasks are read). The
variant "baseline" (`--baseline NAME`; `none` for recorded runs) is what the others are compared with; its margins (the
right choice's log-likelihood beside the best of the others, or best minus second where "target" is left out) guide the
guided order and its flip model. `score` may be null (not scored: the worst case). An item may carry "num_tokens", its
cost; then the guide uses it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from evals.gate import betting
from evals.gate.gate import ACCEPT_BETS, REJECT_BETS, differences
from evals.gate.ordering import Guide, guide_weights, margin

ELEMENTS_AT_ONCE = 2_000_000
GUIDED_ELEMENTS_AT_ONCE = 200_000
"""A flip model holds about seventy numbers an item."""
BLOCK = 128
PASSES = (betting.E_ACCEPT, betting.SURE_ACCEPT)
CASES = {"equal": 0.0, "worse by delta/2": -0.5, "worse by 2 delta": -2.0, "worse by 5 delta": -5.0}
# Flips in % by tenth of the baseline's margin, as measured on PIQA (docs/statistics.md).
MEASURED_FLIPS = {"int8": (30, 10, 5, 1, 0, 0, 1, 0, 0, 0), "awq": (46, 21, 8, 9, 0, 3, 1, 0, 0, 0)}


@dataclass(frozen=True)
class Guided:
    """A guide beside the baseline's scores (N,), which its flip model starts from."""

    guide: Guide
    baseline: NDArray[np.float64]


@dataclass(frozen=True)
class Side:
    """One of the gates that look at the same items: arrays (N,) by item."""

    d: NDArray[np.float64]
    delta: float
    """The margin on this score."""
    baseline: NDArray[np.float64] | None = None
    """The baseline's scores; None: not known."""
    ranks: NDArray[np.float64] | None = None
    """Of its margins: with a flip model; None: without one."""
    second_moment: float = betting.PRIOR_FLIP_RATE
    bets: tuple[betting.Bets, betting.Bets] = (ACCEPT_BETS, REJECT_BETS)
    reject_delta: float | None = None
    """The margin that an early rejection must show; None: `delta`."""


@dataclass(frozen=True)
class Runs:
    """What happened in each replication: arrays (num_runs,)."""

    passed: NDArray[np.bool_]
    failed: NDArray[np.bool_]
    num_items: NDArray[np.int64]
    sup_log_pass: NDArray[np.float64]
    """Of the first side."""
    sup_log_fail: NDArray[np.float64]


def run_gate(
    d: NDArray[np.float64],
    delta: float,
    rng: np.random.Generator,
    *,
    num_runs: int,
    alpha: float = 0.05,
    beta: float = 0.05,
    guided: Guided | None = None,
    to_the_end: bool = False,
) -> Runs:
    """The gate over `num_runs` orders of the differences d (N,); `to_the_end` never stops, for the suprema."""
    side = Side(d, delta) if guided is None else Side(d, delta, guided.baseline, guided.guide.ranks)
    weights = None if guided is None else guided.guide.weights
    return run_gates([side], rng, num_runs=num_runs, levels=(alpha, beta), weights=weights, to_the_end=to_the_end)


def run_gates(
    sides: Sequence[Side],
    rng: np.random.Generator,
    *,
    num_runs: int,
    levels: tuple[float, float] = (0.05, 0.05),
    weights: NDArray[np.float64] | None = None,
    budget: int | None = None,
    to_the_end: bool = False,
) -> Runs:
    """All gates of a task over `num_runs` orders: it passes when all pass and fails when one fails, within a budget.

    `levels` are alpha and beta; `weights` (N,) draw the orders, None uniformly. `to_the_end` never stops.
    """
    num_items = len(sides[0].d)
    is_small = any(side.ranks is not None for side in sides)
    size = max(1, (GUIDED_ELEMENTS_AT_ONCE if is_small else ELEMENTS_AT_ONCE) // num_items)
    logs = (math.log(1 / levels[0]), math.log(1 / levels[1]))
    parts = [
        _run_chunk(sides, rng, min(size, num_runs - i), logs, weights, budget or num_items, to_the_end)
        for i in range(0, num_runs, size)
    ]
    return Runs(*(np.concatenate([getattr(p, name) for p in parts]) for name in Runs.__dataclass_fields__))


@dataclass
class _Going:
    """One side's processes in the replications that go on."""

    side: Side
    values: NDArray[np.float64]
    schedule: betting.Schedule
    carry: betting.Carry
    has_passed: NDArray[np.bool_]

    def keep(self, rows: NDArray[np.bool_]) -> None:
        self.values, self.carry, self.has_passed = self.values[rows], self.carry.rows(rows), self.has_passed[rows]
        self.schedule = self.schedule.rows(rows)


def draw(num_items: int, num_runs: int, weights: NDArray[np.float64] | None, rng: np.random.Generator) -> NDArray[Any]:
    """Orders (num_runs, N): uniform permutations, or weighted ones by exponential keys."""
    if weights is None:
        return rng.permuted(np.broadcast_to(np.arange(num_items, dtype=np.int32), (num_runs, num_items)), axis=1)
    return np.argsort(rng.exponential(size=(num_runs, num_items)) / weights, axis=1)


def _start(side: Side, order: NDArray[Any], weights: NDArray[np.float64] | None) -> _Going:
    drawn = np.ones(order.shape[1]) if weights is None else weights[order]
    ranks, baseline = (None if one is None else one[order] for one in (side.ranks, side.baseline))
    if weights is None and ranks is not None:
        drawn = np.ones(order.shape)
    schedule = betting.make_schedule(drawn, ranks, baseline, side.second_moment)
    carry = betting.start(*side.bets, (len(order),))
    return _Going(side, side.d[order], schedule, carry, np.zeros(len(order), bool))


def _run_chunk(
    sides: Sequence[Side],
    rng: np.random.Generator,
    num_runs: int,
    log_levels: tuple[float, float],
    weights: NDArray[np.float64] | None,
    budget: int,
    to_the_end: bool,
) -> Runs:
    n = len(sides[0].d)
    order = draw(n, num_runs, weights, rng)
    going = [_start(side, order, weights) for side in sides]
    zeros, low = np.zeros(num_runs, bool), np.full(num_runs, -np.inf)
    runs = Runs(zeros, zeros.copy(), np.full(num_runs, budget), low, low.copy())
    rows, is_open = np.arange(num_runs), np.ones(num_runs, bool)
    for begin in range(0, budget, BLOCK):
        ends, passes = _advance(going, begin, min(begin + BLOCK, budget), log_levels, runs, rows)
        first = ends.argmax(axis=1)
        hit = is_open & ends.any(axis=1)
        well = np.take_along_axis(passes, first[:, None], 1)[:, 0]
        runs.passed[rows[hit]], runs.failed[rows[hit]] = well[hit], ~well[hit]
        runs.num_items[rows[hit]] = begin + 1 + first[hit]
        is_open &= ~hit
        if not to_the_end and is_open.mean() < 0.7:
            if not is_open.any():
                break
            for one in going:
                one.keep(is_open)
            rows, is_open = rows[is_open], is_open[is_open]
    return runs


def _advance(
    going: Sequence[_Going], begin: int, end: int, log_levels: tuple[float, float], runs: Runs, rows: NDArray[Any]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Feed a block to all sides: after which items the task is decided, and where it passes, (R, T) each."""
    passes, fails = [], []
    for number, one in enumerate(going):
        n, side = len(one.side.d), one.side
        bounds = (-n * side.delta, -n * (side.delta if side.reject_delta is None else side.reject_delta))
        one.carry, path = betting.advance(one.carry, one.values[:, begin:end], one.schedule, bounds, side.bets)
        codes = betting.verdicts(path, one.schedule.block(begin, end), n, bounds[0], log_levels)
        passed = np.logical_or.accumulate(np.isin(codes, PASSES), axis=1) | one.has_passed[:, None]
        fails.append((codes == betting.SURE_REJECT) | ((codes == betting.E_REJECT) & ~passed))
        passes.append(passed)
        one.has_passed = passed[:, -1]
        if not number:
            runs.sup_log_pass[rows] = np.maximum(runs.sup_log_pass[rows], path.log_accept.max(axis=1))
            runs.sup_log_fail[rows] = np.maximum(runs.sup_log_fail[rows], path.log_reject.max(axis=1))
    all_passed, any_failed = np.logical_and.reduce(passes), np.logical_or.reduce(fails)
    return all_passed | any_failed, all_passed & ~any_failed


def population(num_items: int, mean: float, flip_rate: float) -> NDArray[np.float64]:
    """Differences (N,) of 0/1 scores of mean `mean` (or the next possible one below), with so many flips."""
    lost_net = math.ceil(-mean * num_items - 1e-9)
    num_flips = max(round(flip_rate * num_items), abs(lost_net))
    num_flips += (num_flips - lost_net) % 2
    if num_flips > num_items:
        num_flips -= 2
    num_lost = (num_flips + lost_net) // 2
    d = np.zeros(num_items)
    d[:num_lost], d[num_lost:num_flips] = -1.0, 1.0
    return d


def oracle_limit(d: NDArray[np.float64], delta: float, level: float) -> float:
    """min(N, ln(1/level) / growth) for the best fixed bet of one who knows the mean and the flip rate."""
    sign = 1.0 if d.mean() > -delta else -1.0
    values, counts = np.unique(sign * (d + delta), return_counts=True)
    share = counts / counts.sum()
    if (values * share).sum() <= 0:
        return float(len(d))
    # A candidate without a single loss would be bet everything on: the oracle keeps to bets below 1 / (1 + m).
    largest = 1 / (1 - sign * delta)
    bets = np.linspace(0, largest * (1 - 1e-9), 20_001)[:, None]
    growth = float((np.log1p(bets * values) * share).sum(axis=1).max())
    return min(float(len(d)), math.log(1 / level) / growth)


def fixed_num_items(num_items: int, flip_rate: float, mean: float, delta: float, alpha: float, power: float) -> int:
    """Items that a paired z-test for non-inferiority needs, planned with the true mean and flip rate (finite N)."""
    edge = abs(mean + delta)
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    n = (flip_rate - mean**2) * (z / edge) ** 2
    return math.ceil(n / (1 + n / num_items))


def published_num_items(
    d: NDArray[np.float64], delta: float, level: float, rng: np.random.Generator, num_runs: int
) -> NDArray[np.float64]:
    """Items (num_runs,) to a decision with the published bets: aGRAPA without replacement, cut at 3/4, one each way.

    Waudby-Smith and Ramdas (arXiv 2010.09686, sections 4 and 5) on x = (D + 1) / 2, with the gate's exact end.
    """
    n = len(d)
    x = (rng.permuted(np.broadcast_to(d, (num_runs, n)), axis=1) + 1) / 2
    t, total = np.arange(1, n + 1), np.cumsum(x, axis=1)
    mean = (0.5 + total) / (t + 1)
    spread = (0.25 + np.cumsum((x - mean) ** 2, axis=1)) / (t + 1)
    before = [np.concatenate([np.full((num_runs, 1), a), b[:, :-1]], axis=1) for a, b in ((0.5, mean), (0.25, spread))]
    m = (n * (1 - delta) / 2 - (total - x)) / (n - t + 1)
    is_open = (m > 1e-9) & (m < 1 - 1e-9)
    m = np.where(is_open, m, 0.5)
    bet = (before[0] - m) / (before[1] + (before[0] - m) ** 2)
    is_decided = ~is_open
    for sign, largest in ((1.0, 0.75 / m), (-1.0, 0.75 / (1 - m))):
        factor = np.log1p(np.clip(sign * bet, 0, largest) * sign * (x - m))
        is_decided |= np.cumsum(np.where(is_open, factor, 0.0), axis=1) >= math.log(1 / level)
    return np.where(is_decided.any(axis=1), is_decided.argmax(axis=1) + 1, n)


def table(header: list[str], rows: Iterable[list[object]]) -> Iterator[str]:
    """A Markdown table."""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(str(x) for x in row) + " |"


def percent(share: float) -> str:
    """A share as a percentage with one digit."""
    return f"{100 * share:.1f}"


def margin_profile(
    num_items: int, percents: tuple[int, ...], mean: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Margins (N,), and differences that flip by tenth of the margin at the given rates with a mean of about `mean`."""
    margins = np.sort(rng.exponential(size=num_items))
    flip_share = np.interp((np.arange(num_items) + 0.5) / num_items * 10 - 0.5, np.arange(10), np.array(percents) / 100)
    is_flip = rng.random(num_items) < flip_share
    flipped = np.flatnonzero(is_flip)
    num_lost = min(len(flipped), max(0, round((len(flipped) - mean * num_items) / 2)))
    d = np.zeros(num_items)
    d[flipped] = 1.0
    d[rng.choice(flipped, num_lost, replace=False)] = -1.0
    return margins, d


def boundary_tables(rng: np.random.Generator, num_runs: int) -> Iterator[str]:
    """False promotions where the true difference is exactly -delta."""
    sizes, rates, deltas, alphas = (
        (100, 1000, 5000, 20_000),
        (0.01, 0.03, 0.1, 0.3),
        (0.005, 0.01, 0.02, 0.05),
        (0.01, 0.05, 0.1),
    )
    cells: dict[tuple[str, float, str], list[tuple[float, float]]] = {}
    rows = []
    for num_items in sizes:
        for delta in deltas:
            row: list[object] = [num_items, 100 * delta]
            for rate in rates:
                d = population(num_items, -delta, rate)
                for order in ("uniform", "adversarial"):
                    guided = adversarial_guide(d, rng) if order == "adversarial" else None
                    runs = num_runs if num_items < 20_000 else num_runs // 4
                    if guided is not None:
                        runs //= 4
                    done = run_gate(d, delta, rng, num_runs=runs, guided=guided, to_the_end=True)
                    for alpha in alphas:
                        for side, sup in (("p", done.sup_log_pass), ("f", done.sup_log_fail)):
                            if side == "f" and abs(d.mean() + delta) > betting.TIE:
                                continue  # N delta is no whole number: the next mean below is rightly rejected
                            share = float((sup >= math.log(1 / alpha)).mean())
                            p_value = float(binom.sf(round(share * len(sup)) - 1, len(sup), alpha))
                            cells.setdefault((order, alpha, side), []).append((share, p_value))
                            if alpha == 0.05 and side == "p":
                                row.append(percent(share))
            rows.append(row)
    header = ["N", "delta, points"] + [f"flips {100 * r:g}%, {o}" for r in rates for o in ("uniform", "adversarial")]
    yield f"""## False promotions at the boundary

True difference exactly -delta (or the next possible value below it); share in % of {num_runs} orders (N = 20,000: a
quarter; adversarial: a quarter of each) in which the wealth *ever* reached 1/alpha, so for any stopping time; alpha
= 5%. "adversarial": a guided order in which every loss hides where the weights are least, beside a flip model that
expects no flip there and flips everywhere else."""
    yield ""
    yield from table(header, rows)
    yield ""
    yield """Over all cells of that table: the mean share and the largest one in %. p: how likely the simulation is to
show one of so many cells that far above alpha if the true share were alpha in all of them (binomial, Bonferroni). A
share above alpha would show as a small p."""
    yield ""
    names = {"p": "false promotion", "f": "false rejection of a tie"}
    yield from table(
        ["error", "order", "alpha = beta, %", "cells", "mean, %", "largest, %", "p"],
        [
            [
                names[side],
                order,
                100 * alpha,
                len(found),
                percent(float(np.mean([share for share, _ in found]))),
                percent(max(share for share, _ in found)),
                f"{min(1.0, len(found) * min(p_value for _, p_value in found)):.2f}",
            ]
            for (order, alpha, side), found in sorted(cells.items(), key=lambda one: (one[0][2] != "p", one[0]))
        ],
    )


def adversarial_guide(d: NDArray[np.float64], rng: np.random.Generator) -> Guided:
    """Weights that look everywhere but at the losses: those lie at the floor of half the mean, and none is foretold."""
    weights = np.where(d < 0, 0.5, rng.uniform(0.8, 2.0, d.size))
    return Guided(Guide(weights, np.where(d < 0, 1.0, 0.0)), baseline_scores(d, rng))


def baseline_scores(d: NDArray[np.float64], rng: np.random.Generator, accuracy: float = 0.6) -> NDArray[np.float64]:
    """Scores (N,) of a baseline that the differences are possible beside; right at random where nothing changes."""
    return np.where(d == 0, (rng.random(d.size) < accuracy).astype(float), (d < 0).astype(float))


def power_tables(rng: np.random.Generator, num_runs: int) -> Iterator[str]:
    """Power and items used, beside the limit and the tests of fixed size."""
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    yield f"""## Power and items used

Uniform order, alpha = beta = 5%, {num_runs} orders per cell. "right": share that decides as the full evaluation does.
"limit" = min(N, ln(1/level) / Kelly growth of an oracle that knows the true mean and flip rate). "published": median
items with aGRAPA bets (arXiv 2010.09686) in place of ours. "z 90%": items of a paired z-test of fixed size, planned for
90% power with the true mean and flip rate, which nobody knows beforehand. A full evaluation takes N."""
    for case, factor in CASES.items():
        rows = []
        for num_items in (500, 2000, 10_000):
            for delta in (0.01, 0.02, 0.05):
                for rate in (0.01, 0.05, 0.1, 0.3):
                    d = population(num_items, factor * delta, rate)
                    done = run_gate(d, delta, rng, num_runs=num_runs)
                    limit = oracle_limit(d, delta, 0.05)
                    ratio = float(np.median(done.num_items)) / limit
                    ratios[case].append(ratio)
                    right = (done.passed == (d.mean() > -delta)).mean()
                    published = published_num_items(d, delta, 0.05, rng, min(200, num_runs))
                    fixed = fixed_num_items(num_items, float((d != 0).mean()), float(d.mean()), delta, 0.05, 0.9)
                    rows.append(
                        [
                            num_items,
                            100 * delta,
                            percent((d != 0).mean()),
                            percent(right),
                            int(np.median(done.num_items)),
                            round(done.num_items.mean()),
                            round(limit),
                            f"{ratio:.2f}",
                            int(np.median(published)),
                            fixed,
                        ]
                    )
        yield f"\n### {case[0].upper() + case[1:]}\n"
        header = [
            "N",
            "delta, points",
            "flips, %",
            "right, %",
            "median items",
            "mean items",
            "limit",
            "median / limit",
            "published",
            "z 90%",
        ]
        yield from table(header, rows)
    yield "\n### Median items over the limit\n"
    yield from table(
        ["case", "cells", "geometric mean", "largest", "cells over 1.25"],
        [
            [case, len(r), f"{math.exp(np.mean(np.log(r))):.2f}", f"{max(r):.2f}", sum(x > 1.25 for x in r)]
            for case, r in ratios.items()
        ],
    )


def mcnemar_p_value(num_gained: int, num_lost: int) -> float:
    """Two-sided exact McNemar test of "gains and losses are equally likely" (McNemar 1947; binomial form)."""
    n, k = num_gained + num_lost, min(num_gained, num_lost)
    tail = sum(math.comb(n, i) for i in range(k + 1))
    return min(1.0, float(2 * tail / 2**n))


def fixed_tests_table(rng: np.random.Generator, num_runs: int) -> Iterator[str]:
    """What fixed-size tests do at the boundary."""
    yield f"""## The usual tests at the boundary

True difference exactly -delta, N = 10,000; share promoted in % of {num_runs} samples of n items without replacement.
"z": the paired z-test for non-inferiority at 5%. "z, peeking": the same looked at after every 50 items from the
hundredth to n, promoted at the first success. "McNemar": promoted when the exact test finds no significant difference
at 5%, as is often done."""
    yield ""
    rows: list[list[object]] = []
    for delta, rate in ((0.01, 0.03), (0.02, 0.05), (0.02, 0.1), (0.05, 0.1), (0.05, 0.3)):
        d = population(10_000, -delta, rate)
        n = fixed_num_items(10_000, rate, 0.0, delta, 0.05, 0.9)
        sample = rng.permuted(np.broadcast_to(d.astype(np.int8), (num_runs, d.size)), axis=1)[:, :n].astype(np.float64)
        looks = np.array([*range(100, n, 50), n]) - 1
        count = looks + 1
        mean = np.cumsum(sample, axis=1)[:, looks] / count
        spread = np.maximum(np.cumsum(sample**2, axis=1)[:, looks] / count - mean**2, 1e-12)
        error = np.sqrt(spread / count * (1 - count / d.size))
        passes = (mean + delta) / error > NormalDist().inv_cdf(0.95)
        gains, losses = (sample > 0).sum(axis=1), (sample < 0).sum(axis=1)
        mcnemar = float(np.mean([mcnemar_p_value(int(g), int(b)) >= 0.05 for g, b in zip(gains, losses, strict=True)]))
        gate = run_gate(d, delta, rng, num_runs=num_runs, to_the_end=True).sup_log_pass >= math.log(20)
        rows.append(
            [
                *(100 * delta, 100 * rate, n),
                *(percent(float(x)) for x in (passes[:, -1].mean(), passes.any(axis=1).mean(), mcnemar, gate.mean())),
            ]
        )
    yield from table(["delta, points", "flips, %", "n", "z", "z, peeking", "McNemar", "the gate, any time"], rows)


def guided_tables(rng: np.random.Generator, num_runs: int) -> Iterator[str]:
    """Guided against uniform, flips by tenth of the margin as measured."""
    yield f"""## Guided against uniform order

Flips by tenth of the baseline's margin as measured on PIQA (8.8% AWQ, 4.7% INT8 flips in all), {num_runs} orders
per cell, alpha = beta = 5%. "useless": the same flips, with margins that say nothing. Factor: uniform / guided median
items."""
    yield ""
    rows: list[list[object]] = []
    factors: dict[str, list[float]] = {"as measured": [], "useless": []}
    for name, percents in MEASURED_FLIPS.items():
        for num_items in (800, 2000, 10_000):
            for delta in (0.01, 0.02, 0.03, 0.05):
                for case in ("equal", "worse by delta/2", "worse by 2 delta"):
                    margins, d = margin_profile(num_items, percents, CASES[case] * delta, rng)
                    uniform = run_gate(d, delta, rng, num_runs=num_runs)
                    row: list[object] = [name, num_items, 100 * delta, case, int(np.median(uniform.num_items))]
                    scores = baseline_scores(d, rng)
                    for guess, shown in (("as measured", margins), ("useless", rng.permutation(margins))):
                        guide = Guided(guide_weights(shown.tolist()), scores)
                        guided = run_gate(d, delta, rng, num_runs=num_runs, guided=guide)
                        factor = float(np.median(uniform.num_items) / np.median(guided.num_items))
                        row += [int(np.median(guided.num_items)), f"{factor:.2f}"]
                        if (
                            np.median(uniform.num_items) < 0.8 * num_items
                            and abs(d.mean() - CASES[case] * delta) < delta / 4
                        ):
                            factors[guess].append(factor)
                    rows.append(row)
    yield from table(
        ["flips as", "N", "delta, points", "case", "uniform", "guided", "factor", "useless guide", "factor"],
        rows,
    )
    yield ""
    for guess, values in factors.items():
        yield (
            f"Guide {guess}, cells in which uniform stops before 80% of N ({len(values)}): geometric mean of the "
            f"factor {math.exp(np.mean(np.log(values))):.2f}, smallest {min(values):.2f}."
        )
        yield ""


def read_answers(folder: Path) -> dict[tuple[str, str], dict[int, dict[str, Any]]]:
    """The items by id of each (variant, task)."""
    answers = {}
    for path in sorted(folder.glob("*.json")):
        data = json.loads(path.read_text())
        try:
            for variant, task, items in _sets_of_items(data):
                answers[variant, task] = {item["item_id"]: item for item in items}
        except (KeyError, TypeError) as error:
            raise SystemExit(f"{path}: not in the format of --answers (see --help): {error!r}") from error
    if not answers:
        raise SystemExit(f"{folder}: no *.json; the format is in --help")
    return answers


def _sets_of_items(data: dict[str, Any]) -> Iterator[tuple[str, str, list[dict[str, Any]]]]:
    """(variant, task, items) of one file, in either form. A stopped run holds no answers to every item: left out."""
    if "quality" not in data:
        yield data["variant"], data["task"], data["items"]
        return
    for task, result in data["quality"]["tasks"].items():
        order = result.get("sampling_order") or result.get("drawing")  # the field's name in older evidence
        if order is None or len(order["item_ids"]) == len(result["items"]):
            yield data["label"], task, result["items"]
        else:
            print(f"left out: {data['label']} on {task} was stopped early; run it with gate=full", file=sys.stderr)


@dataclass(frozen=True)
class Cell:
    """One variant on one task under one margin, in many orders."""

    variant: str
    task: str
    d: NDArray[np.float64]
    delta: float
    uniform: Runs
    guided: Runs

    @property
    def passes(self) -> bool:
        """What all items say."""
        return bool(self.d.mean() > -self.delta)

    @property
    def wrong(self) -> tuple[float, float]:
        """Share of uniform and guided orders that decide otherwise."""
        return float((self.uniform.passed != self.passes).mean()), float((self.guided.passed != self.passes).mean())

    @property
    def medians(self) -> tuple[float, float]:
        """Items to a decision, uniform and guided."""
        return float(np.median(self.uniform.num_items)), float(np.median(self.guided.num_items))

    @property
    def factor(self) -> float:
        """How many times fewer items the guided order needs."""
        return self.medians[0] / self.medians[1]

    @property
    def limit(self) -> float:
        """The oracle's, for the uniform order."""
        return oracle_limit(self.d, self.delta, 0.05)

    def row(self) -> list[object]:
        """A line of the table."""
        shares = (self.d != 0).mean(), *self.wrong
        flips, *wrong = (percent(share) for share in shares)
        said = "pass" if self.passes else "fail"
        items = [f"{median:.0f}" for median in self.medians]
        about = [self.variant, self.task, len(self.d), f"{100 * self.d.mean():+.1f}", flips, 100 * self.delta, said]
        return [*about, *wrong, *items, f"{self.factor:.2f}", f"{self.limit:.0f}"]


def answer_cells(folder: Path, baseline: str, rng: np.random.Generator, num_runs: int) -> Iterator[Cell]:
    """Every recorded variant and task beside its baseline's answers, under three margins."""
    answers = read_answers(folder)
    for (variant, task), items in answers.items():
        if variant == baseline:
            continue
        if (baseline, task) not in answers:
            raise SystemExit(f"{folder}: no answers of the variant '{baseline}' on {task} to compare '{variant}' with")
        base = answers[baseline, task]
        ids = sorted(items.keys() & base.keys())
        d = differences([items[i]["score"] for i in ids], [base[i]["score"] for i in ids])
        costs = [base[i]["num_tokens"] for i in ids] if all(base[i].get("num_tokens") for i in ids) else None
        margins = [margin(base[i].get("loglikelihoods") or (), base[i].get("target")) for i in ids]
        scores = np.array([1.0 if base[i]["score"] is None else base[i]["score"] for i in ids])
        guide = Guided(guide_weights(margins, costs), scores)
        for delta in (0.02, 0.03, 0.05):
            uniform = run_gate(d, delta, rng, num_runs=num_runs)
            guided = run_gate(d, delta, rng, num_runs=num_runs, guided=guide)
            yield Cell(variant, task, d, delta, uniform, guided)


def answers_tables(folder: Path, baseline: str, rng: np.random.Generator, num_runs: int) -> Iterator[str]:
    """Recorded answers, re-ordered."""
    yield f"""## Recorded answers in {num_runs} orders

alpha = beta = 5%. "wrong": share that decides otherwise than all items do. Factor: uniform / guided median items.
"limit": the oracle's, as in the simulation, for the uniform order."""
    yield ""
    cells = list(answer_cells(folder, baseline, rng, num_runs))
    header = "variant|task|N|difference, points|flips, %|delta, points|all items say|wrong, uniform, %|wrong, guided, %"
    yield from table([*header.split("|"), "uniform", "guided", "factor", "limit"], [cell.row() for cell in cells])
    yield ""
    early = [cell.factor for cell in cells if cell.medians[0] < 0.8 * len(cell.d)]
    if early:
        yield (
            f"Cells in which uniform stops before 80% of N ({len(early)} of {len(cells)}): geometric mean "
            f"of the factor {math.exp(np.mean(np.log(early))):.2f}, smallest {min(early):.2f}."
        )
    yield ""
    wrong = [share for cell in cells for share in cell.wrong]
    smallest = min(cell.factor for cell in cells)
    yield (
        f"All {len(cells)} cells: smallest factor {smallest:.2f}; uniform median over the limit at most "
        f"{max(cell.medians[0] / cell.limit for cell in cells):.2f}; wrong decisions "
        f"{percent(float(np.mean(wrong)))}% on average, at most {percent(max(wrong))}% in a cell "
        f"(one standard error at 5%: {percent(math.sqrt(0.05 * 0.95 / num_runs))}%)."
    )


TABLES = {
    "boundary": (boundary_tables, 6400),
    "power": (power_tables, 1600),
    "tests": (fixed_tests_table, 2000),
    "guided": (guided_tables, 600),
}


def main() -> None:
    """Print the tables, and write them where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--simulate", choices=[*TABLES, "all"], help="simulation tables")
    what.add_argument("--answers", type=Path, metavar="FOLDER", help="recorded answers, one JSON per variant and task")
    parser.add_argument("--baseline", default="baseline", help="the variant to compare with (--answers)")
    parser.add_argument("--num-orders", type=int, default=200, help="orders per cell (--answers)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the repeats (--simulate)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    args = parser.parse_args()
    rng, begin = np.random.default_rng(args.seed), time.monotonic()
    if args.answers:
        sections = [answers_tables(args.answers, args.baseline, rng, args.num_orders)]
    else:
        chosen = TABLES if args.simulate == "all" else {args.simulate: TABLES[args.simulate]}
        sections = [make(rng, num_runs // (10 if args.quick else 1)) for make, num_runs in chosen.values()]
    lines = [
        "# The gate, measured",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, one thread of {platform.machine()}, Python "
        f"{platform.python_version()}, numpy {np.__version__}, seed {args.seed}. Bets: {ACCEPT_BETS}, {REJECT_BETS}.",
        "",
    ]
    for section in sections:
        lines += [*section, ""]
    lines.append(f"Took {time.monotonic() - begin:.0f} s.")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
