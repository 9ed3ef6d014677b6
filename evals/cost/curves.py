"""The price of a token over the load, and what that means for a fleet. Pure; money is Decimal.

At a given offered load one machine costs the same whichever variant it serves: variants differ in how much one machine
carries, so in the number of machines, and in what a token costs when a machine is driven at a given concurrency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from evals.cost.token_cost import decimal, money_per, usd_per_tokens
from evals.load.summary import Figure, figure, mix_of, over_repeats, t_quantile
from evals.types import LoadPoint, LoadReport, Money, Price


@dataclass(frozen=True)
class CurvePoint:
    """What a token costs while one machine carries this load."""

    name: str
    req_per_s: float
    """Requests completed per second."""
    usd_per_1k_tokens: Money
    """Of input and output together, with the whole machine paid for, busy or not."""
    usd_per_1m_output_tokens: Money
    """The whole bill laid on the output tokens, as benchmarks often quote it."""


def cost_curve(load: LoadReport, price: Price) -> tuple[CurvePoint, ...]:
    """The price of a token over the load, in the order of the load: one point for every measured point of the mix."""
    curve = []
    for point in load.points:
        rates = [figure(point, name) for name in ("req_per_s", "total_tok_per_s", "output_tok_per_s")]
        if (point.input_tokens, point.output_tokens) != mix_of(load) or any(rate is None for rate in rates):
            continue
        requests, tokens, outputs = (rate for rate in rates if rate is not None)
        cost = money_per(price, tokens, 1000), money_per(price, outputs, 1_000_000)
        curve.append(CurvePoint(point.name, requests.value, *cost))
    return tuple(sorted(curve, key=lambda item: item.req_per_s))


def usd_per_1m_output_tokens_at(usd_per_hour: Decimal, offered_req_per_s: float, output_tokens: int) -> Decimal:
    """What a million output tokens cost on one machine that is offered less than it could do.

    Published for Llama-3.1-8B on one H100 at 6.98 USD/h with 256 output tokens: 7.599 measured at 1 request/s and 0.787
    at 10.

    >>> [round(usd_per_1m_output_tokens_at(Decimal("6.98"), rate, 256), 3) for rate in (1, 10)]
    [Decimal('7.574'), Decimal('0.757')]
    """
    return usd_per_tokens(usd_per_hour, offered_req_per_s * output_tokens, 1_000_000)


@dataclass(frozen=True)
class LoadComparison:
    """A variant's price of a token over its baseline's at one load point, with a 95% interval of the repeats."""

    name: str
    ratio: float
    lo: float | None
    hi: float | None
    verdict: str
    """cheaper, more expensive, or not significantly different."""


def compare(baseline: LoadReport, variant: LoadReport, price_ratio: float = 1.0) -> tuple[LoadComparison, ...]:
    """At which loads a variant is cheaper than its baseline, and at which it is not.

    Only points that both have are compared. The interval is Welch's on the logarithm of the throughputs. `price_ratio`
    is the variant's machine price over the baseline's.
    """
    theirs = {point.name: point for point in variant.points}
    found = []
    for point in baseline.points:
        other = theirs.get(point.name)
        if other is not None and (comparison := compare_points(point, other, price_ratio)) is not None:
            found.append(comparison)
    return tuple(found)


def compare_points(baseline: LoadPoint, variant: LoadPoint, price_ratio: float = 1.0) -> LoadComparison | None:
    """As `compare`, of two points that need not be the same load; None where one of them has no throughput."""
    logs = []
    for point in (baseline, variant):
        rates = [rate for repeat in point.repeats if (rate := repeat.get("total_tok_per_s"))]
        if not rates:
            return None
        logs.append([math.log(rate) for rate in rates])
    difference = _mean(logs[0]) - _mean(logs[1]) + math.log(price_ratio)
    ratio = math.exp(difference)
    name = baseline.name if baseline.name == variant.name else f"{variant.name} against {baseline.name}"
    half = _welch_half(logs[0], logs[1])
    if half is None:
        return LoadComparison(name, ratio, None, None, "not significantly different: needs at least 2 repeats of both")
    lo, hi = math.exp(difference - half), math.exp(difference + half)
    verdict = "cheaper" if hi < 1 else "more expensive" if lo > 1 else "not significantly different"
    return LoadComparison(name, ratio, lo, hi, verdict)


def _welch_half(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Half the width of Welch's 95% interval of a difference of means; None with fewer than 2 values on a side."""
    if min(len(first), len(second)) < 2:
        return None
    parts = [_variance(values) / len(values) for values in (first, second)]
    total = sum(parts)
    if total == 0:
        return 0.0
    degrees = total**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (first, second), strict=True))
    return t_quantile(0.975, degrees) * math.sqrt(total)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    mean = _mean(values)
    return sum((value - mean) ** 2 for value in values) / (len(values) - 1)


@dataclass(frozen=True)
class FleetView:
    """What a variant changes for a fleet that must carry a peak load: machines, not tokens, are on the bill."""

    peak_req_per_s: float
    num_baseline: int
    """Machines of the baseline: ceil(peak / theta)."""
    num_variant: int
    usd_per_hour_baseline: Decimal
    usd_per_hour_variant: Decimal
    verdict: str

    @property
    def saving_usd_per_hour(self) -> Decimal:
        """What the bill falls by; negative where it rises."""
        return self.usd_per_hour_baseline - self.usd_per_hour_variant


def fleet_view(
    peak_req_per_s: float,
    baseline: tuple[float, Price],
    variant: tuple[float, Price],
) -> FleetView:
    """Compare two candidates, each given as (theta in requests/s of one machine, its price), at a peak load.

    A variant that is 30% faster saves nothing while one machine is enough, and a machine where it was not:

    >>> price = Price("l4-24gb", Decimal("0.80"), Decimal("0.80"), "on_demand", "", "2026")
    >>> fleet_view(4.0, (5.0, price), (6.5, price)).verdict
    'saves nothing now: 1 machine either way, but one machine carries more: 5 to 6.5 requests/s'
    >>> view = fleet_view(6.0, (5.0, price), (6.5, price))
    >>> view.verdict, view.saving_usd_per_hour
    ('removes 1 of 2 machines', Decimal('0.80'))
    """
    (theta_0, price_0), (theta_1, price_1) = baseline, variant
    if min(peak_req_per_s, theta_0, theta_1) <= 0:
        raise ValueError("the peak load and both thetas must be above 0")
    # A load that is a whole number of thetas up to rounding needs no machine more.
    num_0, num_1 = (math.ceil(peak_req_per_s / theta - 1e-9) for theta in (theta_0, theta_1))
    bill_0, bill_1 = num_0 * price_0.usd_per_hour, num_1 * price_1.usd_per_hour
    if bill_1 >= bill_0:
        verdict = "costs more" if bill_1 > bill_0 else "saves nothing now"
        verdict += f": {_machines(num_0)} either way" if num_0 == num_1 else f": {num_1} instead of {_machines(num_0)}"
        if theta_1 > theta_0:
            verdict += f", but one machine carries more: {theta_0:.3g} to {theta_1:.3g} requests/s"
    elif num_1 < num_0:
        verdict = f"removes {num_0 - num_1} of {_machines(num_0)}"
    else:
        verdict = f"runs on a cheaper machine: {price_1.hardware} instead of {price_0.hardware}"
    return FleetView(peak_req_per_s, num_0, num_1, bill_0, bill_1, verdict)


def _machines(num: int) -> str:
    return f"{num} machine" if num == 1 else f"{num} machines"


def energy_usd_per_1k_tokens(
    energy_j: float, num_tokens: float, usd_per_kwh: Decimal, power_usage_effectiveness: Decimal = Decimal(1)
) -> Decimal:
    """What the electricity of 1,000 tokens costs. It is part of the price of a rented machine, not on top of it.

    300 J for 1,000 tokens at 0.12 USD per kWh in a room that uses 1.2 times what its machines do:

    >>> energy_usd_per_1k_tokens(300.0, 1000, Decimal("0.12"), Decimal("1.2"))
    Decimal('0.000012')
    """
    if energy_j < 0 or num_tokens <= 0:
        raise ValueError(f"{energy_j} J for {num_tokens} tokens")
    kwh = decimal(energy_j) / 3_600_000 * power_usage_effectiveness
    return (kwh * usd_per_kwh / decimal(num_tokens) * 1000).normalize()


def energy_per_token_j(point: LoadPoint, counter: str = "gpu_energy_j") -> Figure | None:
    """Joules per token (input and output) of one point over its repeats; None where no energy was read."""
    joules = []
    for repeat, counters in zip(point.repeats, point.counters, strict=False):
        energy, rate, seconds = counters.get(counter), repeat.get("total_tok_per_s"), repeat.get("duration_s")
        joules.append(energy / (rate * seconds) if energy is not None and rate and seconds else None)
    return over_repeats(joules)


def blend_3_to_1(usd_per_input: Decimal, usd_per_output: Decimal) -> Decimal:
    """Three parts input to one part output: only to stand beside public API prices, which are quoted so.

    >>> blend_3_to_1(Decimal("0.10"), Decimal("0.30"))
    Decimal('0.15')
    """
    return (3 * usd_per_input + usd_per_output) / 4
