"""The cost-quality frontier: which candidates no other candidate beats.

A candidate is dominated when another one costs no more and is no worse, and is better in at least one of the two. A
candidate whose cost or quality was not measured is never on the frontier: missing is never free, fast or certain.

A candidate that was compared with its baseline is drawn as that: its price is the baseline's draw times a draw of the
ratio that was measured in turn, its quality the baseline's draw plus a draw of the paired difference. What both share
(the baseline's own error, the machine's day) then cancels, as it does in the comparison.

Measured values carry errors, so membership does too: `analyze` gives each point's probability of being on the frontier,
a set that contains the true frontier with stated confidence, and the hypervolume with an interval. What to promote does
not come from here: that is the cheapest candidate that passed the gate and meets the SLO.

    frontier = analyze(points, np.random.default_rng(0), Resamples(scores, usd_per_1k_tokens))
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evals.load.summary import t_quantile
from evals.types import Estimate, Point

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

Z95 = 1.959964
"""Estimates carry 95% intervals; this turns their width into a standard deviation."""
SURE_HOEFFDING = 3.27  # sqrt(ln(2e9) / 2)
SURE_SIGMAS = 6.5
SURE_T = 0.9999
"""Student's t has far tails: draws are cut off at this quantile, so that points beyond it are surely dominated."""
FARTHEST = 20.0
"""On a logarithm: two rounds that differ much would else give prices that are no numbers."""
ELEMENTS_AT_ONCE = 500_000
CELLS_AT_MOST = 1_000_000
"""Draws times contenders: thousands of contenders get fewer draws (and `method` says how many)."""


def non_dominated(points: Sequence[Point]) -> BoolArray:
    """Which points are on the frontier of their measured values: shape (len(points),), in the points' order.

    Points with equal cost and quality do not dominate each other. A point without quality or cost is never on it.
    """
    return non_dominated_mask(*_values(points))


def non_dominated_mask(cost: FloatArray, quality: FloatArray) -> BoolArray:
    """The frontier of many point sets at once: (..., num_points) twice -> (..., num_points); nan is not measured.

    One sort by (cost, falling quality) and one running maximum per set: O(num_points log num_points).
    """
    cost, quality = np.broadcast_arrays(np.asarray(cost, np.float64), np.asarray(quality, np.float64))
    measured: BoolArray = ~(np.isnan(cost) | np.isnan(quality))
    cost, quality = np.where(measured, cost, np.inf), np.where(measured, quality, -np.inf)
    if not cost.size:
        return measured
    order = np.lexsort((-quality, cost), axis=-1)
    c, q = np.take_along_axis(cost, order, -1), np.take_along_axis(quality, order, -1)
    # Points of equal cost form a group; its first point is its best. A point survives when it is as good as its
    # group's first and better than everything that is strictly cheaper.
    is_first = np.concatenate([np.ones_like(c[..., :1], dtype=bool), c[..., 1:] != c[..., :-1]], axis=-1)
    first = np.maximum.accumulate(np.where(is_first, np.arange(c.shape[-1]), 0), axis=-1)
    best = np.maximum.accumulate(q, axis=-1)
    best_cheaper = np.where(first > 0, np.take_along_axis(best, np.maximum(first - 1, 0), -1), -np.inf)
    survives = (q == np.take_along_axis(q, first, -1)) & (q > best_cheaper)
    mask: BoolArray = np.zeros_like(measured)
    np.put_along_axis(mask, order, survives, -1)
    mask &= measured
    return mask


@dataclass(frozen=True)
class Spread:
    """The error of a comparison with a baseline. Its middle is the ratio, or the difference, of the points' values."""

    baseline: str
    """The baseline's point by name."""
    standard_error: float
    degrees: float | None = None
    """Of Student's t; None: a normal distribution."""

    def draws(self, rng: np.random.Generator, num_draws: int) -> FloatArray:
        """(num_draws,): errors around zero, cut off where fewer than one in 5,000 would lie."""
        plain = rng.standard_normal(num_draws) if self.degrees is None else rng.standard_t(self.degrees, num_draws)
        return np.asarray(np.clip(self.standard_error * plain, -self.reach, self.reach), np.float64)

    @property
    def reach(self) -> float:
        """No draw is farther from zero."""
        sure = SURE_SIGMAS if self.degrees is None else t_quantile(SURE_T, self.degrees)
        return min(self.standard_error * sure, FARTHEST)


@dataclass(frozen=True)
class Resamples:
    """What the bootstrap may draw from, by point name; a point without an entry is drawn from its interval."""

    scores: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    """Per point and task, the items' scores in the benchmark's order; None where there is none. The same tasks and
    items for all points."""
    usd_per_1k_tokens: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Per point, the cost that each repeat of the load test gives, all at one price per hour. The mean is drawn by
    Student's t on the logarithm: a bootstrap of three repeats covers 73% where 95% are meant."""
    cost_ratios: Mapping[str, Spread] = field(default_factory=dict)
    """Per candidate, how well the ratio of its cost to its baseline's is known, on the logarithm."""
    differences: Mapping[str, Spread] = field(default_factory=dict)
    """Per candidate, how well its difference in quality from its baseline's is known; used for a point that has no
    scores."""


@dataclass(frozen=True)
class Frontier:
    """The frontier under uncertainty; tuples are in the points' order."""

    on_frontier: tuple[bool, ...]
    """Not dominated by the measured values."""
    probability: tuple[float | None, ...]
    """Share of draws in which the point is not dominated; None where it was not measured."""
    confident: tuple[bool, ...]
    """Members of a set that contains all of the true frontier with the stated confidence."""
    hypervolume: Estimate | None
    """Area between the frontier and the reference point, in ln(cost) times quality; None without a measured point."""
    knee: int | None
    """Index of the point farthest above the chord of the frontier: a hint, it moves with the scale of the axes."""
    method: str


def analyze(
    points: Sequence[Point],
    rng: np.random.Generator,
    resamples: Resamples | None = None,
    *,
    reference: tuple[float, float] | None = None,
    num_draws: int = 1000,
    confidence: float = 0.95,
) -> Frontier:
    """All of the frontier's figures from one set of paired bootstrap draws.

    Each draw takes the same item indices for all points (per task; tasks weigh the same), and the same draw of a
    baseline for all candidates that were compared with it. Points that some other point dominates in every possible
    draw are left out of the draws: their probability is zero, and whatever they dominate is dominated by that other
    point too.

    `reference` (cost in USD per 1k tokens, quality) is the corner of the hypervolume; keep it fixed to compare dates.
    None takes the dearest and the worst measured point. The share of draws and its interval are themselves estimates:
    the maximum of noisy points is biased upwards, so read the hypervolume as a trend.

    Raises ValueError where a cost is not positive, names are not unique, or the resamples' items do not agree.
    """
    resamples = resamples or Resamples()
    names = [p.name for p in points]
    if len(set(names)) != len(names):
        raise ValueError("the points' names must be unique")
    cost, quality = _values(points)
    measured = ~(np.isnan(cost) | np.isnan(quality))
    if np.any(cost <= 0):
        raise ValueError(f"costs must be positive: {[names[i] for i in np.flatnonzero(cost <= 0)[:5]]}")
    on_frontier = non_dominated_mask(cost, quality)
    kept = np.flatnonzero(_can_be_on_frontier(points, resamples) & measured)
    probability = np.where(measured, 0.0, np.nan)
    confident = np.zeros(len(points), bool)
    hypervolume, method = None, "no measured point"
    if kept.size:
        drawn = _with_baselines(kept, names, measured, resamples)
        some = [points[i] for i in kept]
        num_draws = min(num_draws, max(100, CELLS_AT_MOST // drawn.size))
        column = np.searchsorted(drawn, kept)
        contenders = [points[i] for i in drawn]
        draws = _quality_draws(contenders, resamples, rng, num_draws)[:, column]
        costs = _cost_draws(contenders, resamples, rng, num_draws)[:, column]
        probability[kept] = np.mean([m.mean(axis=0) for m in _in_chunks(non_dominated_mask, costs, draws)], axis=0)
        confident[kept] = _confident(cost[kept], quality[kept], costs, draws, 1 - confidence)
        corner = reference or (float(np.nanmax(cost)), float(np.nanmin(quality[measured])))
        volumes = hypervolumes(costs, draws, corner)
        tail = (1 - confidence) / 2
        lo, hi = (float(x) for x in np.quantile(volumes, [tail, 1 - tail]))
        value = float(hypervolumes(cost[measured], quality[measured], corner))
        num_paired = sum(p.name in resamples.scores for p in some)
        num_ratios = sum(p.name in resamples.cost_ratios for p in some)
        method = (
            f"bootstrap {confidence:.0%}, {num_draws} draws, {num_paired} of {len(some)} contenders paired by item, "
            f"{num_ratios} priced against their baseline"
        )
        hypervolume = Estimate(value, min(lo, value), max(hi, value), int(measured.sum()), method=method)
    return Frontier(
        tuple(on_frontier.tolist()),
        tuple(None if np.isnan(x) else float(x) for x in probability),
        tuple(confident.tolist()),
        hypervolume,
        knee(cost, quality),
        method,
    )


def dominating(points: Sequence[Point], eps_quality: float, eps_cost: float) -> list[int | None]:
    """Per point, the index of the best point that dominates it by epsilon, or None.

    a dominates b where quality_a >= quality_b - eps_quality and cost_a <= cost_b (1 - eps_cost): nearly as good, and
    cheaper by a share that matters. Dominance goes down in cost, so no two points dominate each other. A point without
    quality or cost dominates none and is dominated by none.

    Raises ValueError where eps_cost is not in (0, 1) or eps_quality is negative.
    """
    if not 0 < eps_cost < 1 or eps_quality < 0:
        raise ValueError(f"eps_cost must lie in (0, 1) and eps_quality be at least 0, not {eps_cost} and {eps_quality}")
    cost, quality = _values(points)
    measured = np.flatnonzero(~(np.isnan(cost) | np.isnan(quality)))
    order = measured[np.argsort(cost[measured], kind="stable")]
    best = np.maximum.accumulate(quality[order]) if order.size else quality[order]
    is_new = np.concatenate([[True], best[1:] > best[:-1]]) if order.size else np.zeros(0, bool)
    holder = np.maximum.accumulate(np.where(is_new, np.arange(order.size), 0)) if order.size else order
    num_cheaper = np.searchsorted(cost[order], cost * (1 - eps_cost), side="right")
    dominated: list[int | None] = [None] * len(points)
    for i in measured:
        k = num_cheaper[i] - 1
        if k >= 0 and best[k] >= quality[i] - eps_quality:
            dominated[i] = int(order[holder[k]])
    return dominated


def hypervolumes(cost: FloatArray, quality: FloatArray, reference: tuple[float, float]) -> FloatArray:
    """Area that each point set dominates up to the reference (cost, quality), in ln(cost) x quality: (..., n) -> (...).

    Points more expensive or worse than the reference add nothing (Zitzler and Thiele 1999).
    """
    cost, quality = np.broadcast_arrays(cost, quality)
    order = np.argsort(cost, axis=-1)
    log_cost = np.minimum(np.log(np.take_along_axis(cost, order, -1)), np.log(reference[0]))
    height = np.maximum(np.take_along_axis(quality, order, -1) - reference[1], 0.0)
    best = np.maximum.accumulate(height, axis=-1)
    width = np.diff(log_cost, axis=-1, append=np.full((*log_cost.shape[:-1], 1), np.log(reference[0])))
    return np.asarray((best * width).sum(axis=-1), np.float64)


def knee(cost: FloatArray, quality: FloatArray) -> int | None:
    """The frontier's point farthest above the line between its ends, in ln(cost) and quality; None below 3 points."""
    on = np.flatnonzero(non_dominated_mask(cost, quality))
    if on.size < 3:
        return None
    x, y = np.log(cost[on]), quality[on]
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return int(on[np.argmax((y - y.min()) / np.ptp(y) - (x - x.min()) / np.ptp(x))])


def _values(points: Sequence[Point]) -> tuple[FloatArray, FloatArray]:
    cost = [np.nan if p.usd_per_1k_tokens is None else float(p.usd_per_1k_tokens.value) for p in points]
    quality = [np.nan if p.quality is None else p.quality.value for p in points]
    return np.array(cost, np.float64), np.array(quality, np.float64)


def _can_be_on_frontier(points: Sequence[Point], resamples: Resamples) -> BoolArray:
    """Where no other point is cheaper and better in (practically) every draw."""
    num = len(points)
    q_lo, q_hi, c_lo, c_hi = np.full(num, -np.inf), np.full(num, np.inf), np.full(num, -np.inf), np.full(num, np.inf)
    for i, p in enumerate(points):
        if p.quality is None or p.usd_per_1k_tokens is None:
            continue
        q, money = p.quality, p.usd_per_1k_tokens
        tasks = resamples.scores.get(p.name)
        if tasks:
            # Hoeffding's inequality for the resampled mean: beyond this with probability below 1e-9.
            reach = sum(1 / max(1, len(s)) for s in tasks.values()) / len(tasks) ** 2
            q_lo[i], q_hi[i] = q.value - SURE_HOEFFDING * reach**0.5, q.value + SURE_HOEFFDING * reach**0.5
        else:
            spread = SURE_SIGMAS * (q.hi - q.lo) / (2 * Z95)
            q_lo[i], q_hi[i] = q.value - spread, q.value + spread
        own = _own_spread(p, resamples)
        if own is None:
            c_lo[i], c_hi[i] = float(money.lo), float(money.hi)
        else:
            c_lo[i], c_hi[i] = (float(money.value) * math.exp(sign * own.reach) for sign in (-1, 1))
    for bounds, spreads, is_log in (
        ((c_lo, c_hi), resamples.cost_ratios, True),
        ((q_lo, q_hi), {n: s for n, s in resamples.differences.items() if n not in resamples.scores}, False),
    ):
        _move_bounds(points, bounds, spreads, is_log=is_log)
    order = np.argsort(c_hi, kind="stable")
    best = np.maximum.accumulate(q_lo[order])
    num_cheaper = np.searchsorted(c_hi[order], c_lo, side="left")  # strictly cheaper, so never the point itself
    dominated = (num_cheaper > 0) & (best[np.maximum(num_cheaper - 1, 0)] > q_hi)
    return np.asarray(~dominated, np.bool_)


def _move_bounds(
    points: Sequence[Point], bounds: tuple[FloatArray, FloatArray], spreads: Mapping[str, Spread], *, is_log: bool
) -> None:
    """Of points that are drawn beside their baseline: as far as its draws and those of the comparison reach."""
    index = {p.name: i for i, p in enumerate(points)}
    values = _values(points)[0 if is_log else 1]
    forth: Callable[[float], float] = _log if is_log else float
    back: Callable[[float], float] = math.exp if is_log else float
    for name, spread in spreads.items():
        i, base = index.get(name), index.get(spread.baseline)
        if i is None or base is None or np.isnan(values[i]) or np.isnan(values[base]):
            continue
        apart = forth(values[i]) - forth(values[base])
        bounds[0][i] = back(forth(bounds[0][base]) + apart - spread.reach)
        bounds[1][i] = back(forth(bounds[1][base]) + apart + spread.reach)


def _log(cost: float) -> float:
    return math.log(max(cost, sys.float_info.min))


def _with_baselines(
    kept: NDArray[np.intp], names: Sequence[str], measured: BoolArray, resamples: Resamples
) -> NDArray[np.intp]:
    """The points to draw, in order: those that can be on the frontier, and the baselines that their draws rest on."""
    index = {name: i for i, name in enumerate(names)}
    found = set(kept.tolist())
    for i in kept:
        for spreads in (resamples.cost_ratios, resamples.differences):
            base = index.get(spreads[names[i]].baseline) if names[i] in spreads else None
            if base is not None and measured[base]:
                found.add(base)
    return np.array(sorted(found), np.intp)


def _own_spread(point: Point, resamples: Resamples) -> Spread | None:
    """The error of the mean of a point's load repeats, on the logarithm; None where fewer than two are known."""
    repeats = np.asarray(resamples.usd_per_1k_tokens.get(point.name, ()), np.float64)
    if repeats.size < 2:
        return None
    return Spread("", float(np.log(repeats).std(ddof=1)) / repeats.size**0.5, repeats.size - 1)


def _quality_draws(
    points: Sequence[Point], resamples: Resamples, rng: np.random.Generator, num_draws: int
) -> FloatArray:
    """(num_draws, len(points)): means of resampled items; the baseline's draw plus one of the difference from it; or
    normal draws from the interval.
    """
    estimates = [p.quality for p in points if p.quality is not None]
    value = np.array([e.value for e in estimates])
    sigma = np.array([(e.hi - e.lo) / (2 * Z95) for e in estimates])
    draws = value + sigma * rng.standard_normal((num_draws, len(points)))
    paired = [i for i, p in enumerate(points) if p.name in resamples.scores]
    if paired:
        tables = [resamples.scores[points[i].name] for i in paired]
        tasks = list(tables[0])
        if any(set(t) != set(tasks) for t in tables):
            raise ValueError("all points with scores must have the same tasks")
        means = np.mean([_task_draws(task, [t[task] for t in tables], rng, num_draws) for task in tasks], axis=0)
        # Row 0 holds the means of all items: the draws are centered on what was reported.
        draws[:, paired] = value[paired] + means[1:] - means[0]
    index = {p.name: i for i, p in enumerate(points)}
    for i, p in enumerate(points):
        spread = resamples.differences.get(p.name)
        base = None if spread is None or i in paired else index.get(spread.baseline)
        if spread is not None and base is not None:
            draws[:, i] = draws[:, base] + value[i] - value[base] + spread.draws(rng, num_draws)
    return np.asarray(draws, np.float64)


def _task_draws(
    task: str, scores: list[Sequence[float | None]], rng: np.random.Generator, num_draws: int
) -> FloatArray:
    """Mean scores (1 + num_draws, num_points): of all items, then of the same resampled items for all points."""
    num_items = len(scores[0])
    if any(len(s) != num_items for s in scores):
        raise ValueError(f"{task}: all points must have the same items, None where one has no score")
    table = np.array(scores, np.float64).T  # None becomes nan
    known = ~np.isnan(table)
    if not known.any(axis=0).all():
        raise ValueError(f"{task}: a point has no score at all")
    counts = np.ones((1 + num_draws, num_items))
    counts[1:] = rng.multinomial(num_items, np.full(num_items, 1 / num_items), size=num_draws)
    total = counts @ np.where(known, table, 0.0)
    num_known = np.maximum(counts @ known, 1.0)
    return np.asarray(total / num_known, np.float64)


def _cost_draws(points: Sequence[Point], resamples: Resamples, rng: np.random.Generator, num_draws: int) -> FloatArray:
    """(num_draws, len(points)): of the mean of the load repeats, or even ones between lo and hi; of a candidate the
    baseline's draw times one of the ratio to it.
    """
    draws = np.empty((num_draws, len(points)))
    value, _ = _values(points)
    for i, p in enumerate(points):
        money, own = p.usd_per_1k_tokens, _own_spread(p, resamples)
        assert money is not None, "only measured points are drawn"
        if own is not None:
            draws[:, i] = value[i] * np.exp(own.draws(rng, num_draws))
        else:
            draws[:, i] = rng.uniform(float(money.lo), float(money.hi), num_draws)
    index = {p.name: i for i, p in enumerate(points)}
    for i, p in enumerate(points):
        spread = resamples.cost_ratios.get(p.name)
        base = None if spread is None else index.get(spread.baseline)
        if spread is not None and base is not None:
            draws[:, i] = draws[:, base] * (value[i] / value[base]) * np.exp(spread.draws(rng, num_draws))
    return np.maximum(draws, np.finfo(np.float64).tiny)


def _in_chunks(
    function: Callable[[FloatArray, FloatArray], BoolArray], cost: FloatArray, quality: FloatArray
) -> Iterator[BoolArray]:
    rows = max(1, ELEMENTS_AT_ONCE // cost.shape[-1])
    if len(cost) % rows:
        rows = next(r for r in range(rows, 0, -1) if len(cost) % r == 0)  # equal chunks: their means may be averaged
    for start in range(0, len(cost), rows):
        yield function(cost[start : start + rows], quality[start : start + rows])


def _confident(
    cost: FloatArray, quality: FloatArray, cost_draws: FloatArray, quality_draws: FloatArray, error: float
) -> BoolArray:
    """Points that no other beats under simultaneous bounds, each axis at error / 2 (max-t, Westfall and Young 1993).

    Quality and log cost are taken relative to the mean of all points in the same draw: what all points share cancels in
    every comparison, so the bounds are those of paired differences.
    """
    relative = quality_draws - quality_draws.mean(axis=1, keepdims=True)
    q_half = _simultaneous_half_width(relative, quality - quality.mean(), error / 2)
    logs = np.log(cost_draws)
    relative = logs - logs.mean(axis=1, keepdims=True)
    c_half = _simultaneous_half_width(relative, np.log(cost) - np.log(cost).mean(), error / 2)
    q_lo, q_hi = quality - q_half, quality + q_half
    c_lo, c_hi = np.log(cost) - c_half, np.log(cost) + c_half
    order = np.argsort(c_hi, kind="stable")
    best = np.maximum.accumulate(q_lo[order])
    num_cheaper = np.searchsorted(c_hi[order], c_lo, side="left")
    dominated = (num_cheaper > 0) & (best[np.maximum(num_cheaper - 1, 0)] >= q_hi)
    return np.asarray(~dominated, np.bool_)


def _simultaneous_half_width(draws: FloatArray, value: FloatArray, error: float) -> FloatArray:
    """Half widths (n,) such that all |draw - value| stay within them in a share 1 - error of the draws.

    Each is a multiple of the point's own quantile (Beran 1988), not of its standard deviation, which far tails set.
    """
    off = np.abs(draws - value)
    scale = np.quantile(off, 1 - error, axis=0)
    t = off / np.where(scale > 0, scale, np.inf)
    return np.asarray(np.quantile(t.max(axis=1), 1 - error) * scale, np.float64)
