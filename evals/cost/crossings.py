"""Where the price curves of variants cross, and which variant is the cheapest at which load. Pure.

The load of a closed loop is its concurrency: the requests in flight on one machine. Between two measured loads a curve
is a straight line on logarithmic axes, which an inverse power of the load (an idle machine) is exactly.

>>> plain = Curve("none", ((1.0, 8.0), (4.0, 2.0), (16.0, 1.0)))
>>> int4 = Curve("int4", ((1.0, 4.0), (4.0, 2.0), (16.0, 2.0)))
>>> crossings(plain, int4)
(4.0,)
>>> [(range.name, range.lo, range.hi) for range in cheapest([plain, int4])]
[('int4', 1.0, 4.0), ('none', 4.0, 16.0)]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from evals.cost.token_cost import money_per
from evals.load.summary import figure, mix_of
from evals.types import LoadReport, Money, Price

SAME = 1e-12
"""Logarithms that differ by less are equal: a crossing at a measured load."""


@dataclass(frozen=True)
class Curve:
    """A figure over the load: (load, figure) with rising loads, all above zero."""

    name: str
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        assert all(a[0] < b[0] for a, b in pairwise(self.points)), f"the loads of '{self.name}' do not rise"
        assert all(load > 0 and value > 0 for load, value in self.points), f"'{self.name}' has a figure that is not > 0"

    def at(self, load: float) -> float | None:
        """The figure at a load; None outside what was measured."""
        for (left, low), (right, high) in pairwise(self.points):
            if left <= load <= right:
                share = math.log(load / left) / math.log(right / left)
                return math.exp(math.log(low) * (1 - share) + math.log(high) * share)
        return next((value for known, value in self.points if known == load), None)


@dataclass(frozen=True)
class Range:
    """A variant is the cheapest from one load to another; both are the same where only one load was measured."""

    name: str
    lo: float
    hi: float


def closed_loop(load: LoadReport, price: Price) -> tuple[tuple[float, Money], ...]:
    """USD per 1,000 tokens over the concurrency, of the closed-loop points of the headline's mix."""
    found = []
    for point in load.points:
        is_plain = not point.is_open_loop and not point.prefix_share
        tokens = figure(point, "total_tok_per_s")
        if is_plain and point.concurrency and (point.input_tokens, point.output_tokens) == mix_of(load) and tokens:
            found.append((float(point.concurrency), money_per(price, tokens, 1000)))
    return tuple(sorted(found, key=lambda pair: pair[0]))


def crossings(first: Curve, second: Curve) -> tuple[float, ...]:
    """The loads at which one curve overtakes the other, in rising order; empty where one is below all along."""
    loads = _common_loads([first, second])
    ahead = [(load, _log_ratio(first, second, load)) for load in loads]
    ahead = [(load, 0.0 if abs(ratio) < SAME else ratio) for load, ratio in ahead]
    found = []
    last: tuple[float, float] | None = None  # the last load at which they differed
    touched: float | None = None
    for load, ratio in ahead:
        if ratio == 0:
            touched = load if touched is None else touched
            continue
        if last is not None and last[1] * ratio < 0:
            found.append(_zero(last, (load, ratio)) if touched is None else touched)
        last, touched = (load, ratio), None
    return tuple(found)


def cheapest(curves: Sequence[Curve]) -> tuple[Range, ...]:
    """Which curve is the lowest, from load to load, over the loads that all of them have."""
    drawn = [curve for curve in curves if curve.points]
    loads = _common_loads(drawn)
    if not loads:
        return ()
    crossed = {load for a, b in combinations(drawn, 2) for load in crossings(a, b)}
    ends = sorted({*loads, *crossed})
    if len(ends) == 1:
        return (Range(_lowest(drawn, ends[0]), ends[0], ends[0]),)
    ranges: list[Range] = []
    for left, right in pairwise(ends):
        name = _lowest(drawn, math.sqrt(left * right))
        if ranges and ranges[-1].name == name:
            ranges[-1] = Range(name, ranges[-1].lo, right)
        else:
            ranges.append(Range(name, left, right))
    return tuple(ranges)


def _lowest(curves: Iterable[Curve], load: float) -> str:
    values = [(value, curve.name) for curve in curves if (value := curve.at(load)) is not None]
    return min(values)[1]


def _common_loads(curves: Sequence[Curve]) -> list[float]:
    """Every measured load within the range that all curves have."""
    if not curves or any(not curve.points for curve in curves):
        return []
    lo, hi = max(curve.points[0][0] for curve in curves), min(curve.points[-1][0] for curve in curves)
    return sorted({load for curve in curves for load, _ in curve.points if lo <= load <= hi})


def _log_ratio(first: Curve, second: Curve, load: float) -> float:
    one, other = first.at(load), second.at(load)
    assert one is not None
    assert other is not None
    return math.log(one / other)


def _zero(left: tuple[float, float], right: tuple[float, float]) -> float:
    """Where the line between two log ratios of opposite sign is zero, on the logarithm of the load."""
    share = left[1] / (left[1] - right[1])
    return math.exp(math.log(left[0]) * (1 - share) + math.log(right[0]) * share)
