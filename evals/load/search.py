"""Which load points to measure next, from those measured so far. Pure.

The driver asks again after every answer, so a killed scenario takes the same path over what it has already measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.load.scenario import LoadScenario, PointSpec, SloSearch, Sweep
from evals.load.summary import Slo, figure
from evals.types import LoadPoint, ThetaSlo

BRACKET = 8.0
"""The search's lower end is the capacity divided by this; below it, an objective is out of reach for practice."""
HEADROOM = 1.2
"""The search's upper end is the capacity times this: a closed loop can be a little slower than the server can be."""
MAX_FAILED_SHARE = 0.01
"""An objective on the 99th percentile is not met when more than this share of requests fails."""


def next_points(scenario: LoadScenario, measured: Sequence[LoadPoint]) -> tuple[PointSpec, ...]:
    """What to measure next; empty when the scenario is complete."""
    names = {point.name for point in measured}
    fixed = tuple(point for point in scenario.points if point.name not in names)
    if fixed:
        return fixed
    if scenario.sweep is not None and (point := next_of_sweep(scenario.sweep, measured)) is not None:
        return (point,)
    if scenario.search is not None and (point := next_of_search(scenario.search, measured)) is not None:
        return (point,)
    return ()


def next_of_sweep(sweep: Sweep, measured: Sequence[LoadPoint]) -> PointSpec | None:
    """The next concurrency: doubled until a doubling adds less than `flat_gain` of throughput, or nothing answers."""
    rates: list[tuple[int, float]] = []
    for point in measured:
        if point.concurrency and point.request_rate is None and not point.prefix_share and _has_mix(point, sweep):
            rate = figure(point, "total_tok_per_s")
            rates.append((point.concurrency, 0.0 if rate is None else rate.value))
    rates.sort()
    concurrency = 1
    known = dict(rates)
    previous: float | None = None
    while concurrency in known:
        rate_now = known[concurrency]
        if rate_now == 0.0 or (previous is not None and rate_now < previous * (1 + sweep.flat_gain)):
            return None
        previous = rate_now
        concurrency *= 2
    if concurrency > sweep.max_concurrency:
        return None
    return sweep_point(sweep, concurrency)


def sweep_point(sweep: Sweep, concurrency: int) -> PointSpec:
    """The sweep's point of so many requests in flight."""
    num_requests = max(sweep.min_requests, sweep.requests_per_slot * concurrency)
    return PointSpec(sweep.input_tokens, sweep.output_tokens, num_requests, concurrency=concurrency)


def holds(point: LoadPoint, slo: Slo) -> bool:
    """Whether a point keeps the objective: p99 of TTFT and TPOT (mean of the repeats) in limits, hardly a failure."""
    num_sent = point.num_requests * len(point.repeats)
    if num_sent and point.num_errors > MAX_FAILED_SHARE * num_sent:
        return False
    for metric, limit in (("ttft_p99_s", slo.ttft_s), ("tpot_p99_s", slo.tpot_s)):
        if limit is not None:
            value = figure(point, metric)
            if value is None or value.value > limit:
                return False
    return True


def capacity_point(search: SloSearch) -> PointSpec:
    """The closed loop whose rate is the search's upper end."""
    parallel = search.capacity_concurrency
    return PointSpec(
        search.input_tokens, search.output_tokens, max(search.min_requests, 2 * parallel), concurrency=parallel
    )


def rate_point(search: SloSearch, rate: float) -> PointSpec:
    """A Poisson point whose arrivals last `point_duration_s`."""
    num_requests = min(search.max_requests, max(search.min_requests, math.ceil(rate * search.point_duration_s)))
    return PointSpec(search.input_tokens, search.output_tokens, num_requests, request_rate=rate)


def next_of_search(search: SloSearch, measured: Sequence[LoadPoint]) -> PointSpec | None:
    """The next rate of the bisection (on the logarithm), or None at its end.

    The first point is a closed loop: its rate is the capacity. The bracket is [capacity / 8, capacity x 1.2], so that 5
    halvings bring the ends to within 8% of each other: 6 points in all. Where no rate in it meets the objective,
    its lower end comes last.
    """
    first = capacity_point(search)
    capacity = _capacity(search, measured)
    if capacity is None:
        return None if any(point.name == first.name for point in measured) else first
    tested = _tested(search, measured)
    if len(tested) + 1 >= search.max_points:
        return None
    lowest = round_rate(capacity / BRACKET)
    held = max((rate for rate, good in tested if good), default=None)
    failed = min((rate for rate, good in tested if not good and (held is None or rate > held)), default=None)
    low, high = held or capacity / BRACKET, failed or capacity * HEADROOM
    if high <= low * (1 + search.tolerance):
        if held is not None or lowest in {rate for rate, _ in tested}:
            return None
        return rate_point(search, lowest)
    rate = round_rate(math.sqrt(low * high))
    return None if rate in {rate for rate, _ in tested} else rate_point(search, rate)


def theta_slo(search: SloSearch, measured: Sequence[LoadPoint]) -> ThetaSlo:
    """What the search found."""
    tested = _tested(search, measured)
    held = max((rate for rate, good in tested if good), default=None)
    failed = min((rate for rate, good in tested if not good and (held is None or rate > held)), default=None)
    if not tested:
        reason = "the server completed no request"
    elif held is None:
        reason = f"no tested rate meets the objective, the lowest was {min(rate for rate, _ in tested):g} requests/s"
    elif failed is None:
        reason = "every tested rate meets the objective: theta_slo is at least this"
    else:
        reason = ""
    num_points = len(tested) + (_capacity(search, measured) is not None)
    return ThetaSlo(search.slo_ttft_p99_s, search.slo_tpot_p99_s, held, failed, num_points, reason)


def round_rate(rate: float) -> float:
    """A rate as its point's name shows it, so that names and rates are one to one."""
    return float(f"{rate:.4g}")


def _tested(search: SloSearch, measured: Sequence[LoadPoint]) -> list[tuple[float, bool]]:
    """Every Poisson rate of the search's mix, and whether it met the objective."""
    return [
        (point.request_rate, holds(point, search.slo))
        for point in measured
        if point.request_rate is not None and not point.prefix_share and _has_mix(point, search)
    ]


def _capacity(search: SloSearch, measured: Sequence[LoadPoint]) -> float | None:
    """Requests per second of the closed loop; None where it was not measured or completed nothing."""
    for point in measured:
        if point.name == capacity_point(search).name and (rate := figure(point, "req_per_s")) is not None:
            return rate.value
    return None


def _has_mix(point: LoadPoint, part: Sweep | SloSearch) -> bool:
    return (point.input_tokens, point.output_tokens) == (part.input_tokens, part.output_tokens)
