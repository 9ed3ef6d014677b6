"""From the raw results of vLLM's benchmark client to figures. Pure: nothing is read, written or timed here.

The figures are the client's own; this module renames them, turns milliseconds into seconds, and puts intervals over
the repeats. Goodput is counted from the per-request records, so that any SLO can be applied to a recorded run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NotRequired, TypedDict

from evals.types import LoadPoint, LoadReport

METRICS = (
    "output_tok_per_s",
    "total_tok_per_s",
    "req_per_s",
    "ttft_p50_s",
    "ttft_p99_s",
    "tpot_p50_s",
    "tpot_p99_s",
    "goodput_req_per_s",
    "duration_s",
    "num_completed",
    "num_failed",
)
"""What is known of every repeat; TTFT is the time to first token, TPOT the time per output token after the first."""

RUN_FACTS = ("duration_s", "num_completed", "num_failed")
"""Those of them that say how a repeat went, and are no figure of the server."""

TIMEOUT = "timeout:"


@dataclass(frozen=True)
class Slo:
    """Limits on a request's latency in seconds; None sets no limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def __bool__(self) -> bool:
        return self.ttft_s is not None or self.tpot_s is not None


@dataclass(frozen=True)
class Figure:
    """A metric over repeats. `lo` and `hi` are None where there is no interval, and `method` says why."""

    value: float
    lo: float | None
    hi: float | None
    num_repeats: int
    method: str


class BenchmarkResult(TypedDict):
    """What is read of a result of `vllm bench serve`, one entry per request in the lists."""

    completed: int
    failed: int
    duration: float
    """Seconds."""
    output_throughput: float
    total_token_throughput: float
    request_throughput: float
    p50_ttft_ms: float
    p99_ttft_ms: float
    p50_tpot_ms: float
    p99_tpot_ms: float
    ttfts: list[float]
    """Seconds to the first token."""
    itls: list[list[float]]
    """Seconds between tokens."""
    output_lens: list[int]
    errors: list[str]
    start_times: NotRequired[list[float]]
    """On the monotonic clock."""


class RawRun(TypedDict):
    """A file that the client leaves (`evals/load/client.py`)."""

    bench: BenchmarkResult
    started_monotonic_s: float
    ended_monotonic_s: float
    metrics_before: list[str]
    metrics_after: list[str]


def summarise(bench: BenchmarkResult, slo: Slo | None = None) -> dict[str, float | None]:
    """The metrics of one repeat, by the names of `METRICS`; None where no request gave a figure."""
    completed, failed = int(bench["completed"]), int(bench["failed"])
    figures: dict[str, float | None] = dict.fromkeys(METRICS)
    figures |= {"duration_s": float(bench["duration"]), "num_completed": float(completed), "num_failed": float(failed)}
    if slo:
        figures["goodput_req_per_s"] = count_good(bench, slo) / float(bench["duration"])
    if completed == 0:
        return figures
    figures["output_tok_per_s"] = float(bench["output_throughput"])
    figures["total_tok_per_s"] = float(bench["total_token_throughput"])
    figures["req_per_s"] = float(bench["request_throughput"])
    figures["ttft_p50_s"] = bench["p50_ttft_ms"] / 1000
    figures["ttft_p99_s"] = bench["p99_ttft_ms"] / 1000
    if any(length > 1 for length in bench["output_lens"]):
        figures["tpot_p50_s"] = bench["p50_tpot_ms"] / 1000
        figures["tpot_p99_s"] = bench["p99_tpot_ms"] / 1000
    return figures


def count_good(bench: BenchmarkResult, slo: Slo) -> int:
    """Requests that succeeded within the SLO (goodput, https://arxiv.org/abs/2401.09670)."""
    return sum(
        (slo.ttft_s is None or ttft_s <= slo.ttft_s) and (slo.tpot_s is None or tpot_s is None or tpot_s <= slo.tpot_s)
        for ttft_s, tpot_s in requests(bench)
    )


def requests(bench: BenchmarkResult) -> list[tuple[float, float | None]]:
    """TTFT and TPOT in seconds of every request that succeeded; a single token has no TPOT."""
    return [
        (ttft, sum(itls) / (length - 1) if length > 1 else None)
        for ttft, itls, length, error in zip(
            bench["ttfts"], bench["itls"], bench["output_lens"], bench["errors"], strict=True
        )
        if not error and length > 0
    ]


def num_timeouts(bench: BenchmarkResult) -> int:
    """Requests that were given up because they took too long."""
    return sum(str(error).startswith(TIMEOUT) for error in bench["errors"])


def over_repeats(values: Sequence[float | None], confidence: float = 0.95) -> Figure | None:
    """One metric over its repeats: the mean with Student's t interval; None where no repeat has the metric.

    Positive metrics are averaged on the logarithm: the interval is then a ratio, never below zero, and the price made
    from a throughput has the inverse of its value and its limits. A metric that was zero in a repeat is averaged as
    it is.

    >>> mean = over_repeats([90.0, 100.0, 110.0])
    >>> round(mean.value, 2), round(mean.lo, 2), round(mean.hi, 2), mean.method
    (99.67, 77.67, 127.89, 'geometric mean, t interval 95%')
    >>> over_repeats([100.0]).method
    'one repeat: no interval'
    >>> over_repeats([None]) is None
    True
    """
    known = [float(value) for value in values if value is not None]
    if not known:
        return None
    if len(known) == 1:
        return Figure(known[0], None, None, 1, "one repeat: no interval")
    logarithmic = min(known) > 0
    points = [math.log(value) for value in known] if logarithmic else known
    mean = sum(points) / len(points)
    variance = sum((point - mean) ** 2 for point in points) / (len(points) - 1)
    half = t_quantile(0.5 + confidence / 2, len(points) - 1) * math.sqrt(variance / len(points))
    back = math.exp if logarithmic else float
    kind = "geometric mean" if logarithmic else "mean"
    method = f"{kind}, t interval {100 * confidence:g}%"
    return Figure(back(mean), back(mean - half), back(mean + half), len(known), method)


@cache
def t_quantile(probability: float, degrees: float) -> float:
    """Quantile of Student's t distribution above the median, to 10 digits.

    In plain Python, because SciPy takes longer to import than a whole re-pricing takes.

    >>> round(t_quantile(0.975, 2), 3), round(t_quantile(0.975, 1e6), 3)
    (4.303, 1.96)
    """
    assert 0.5 < probability < 1
    assert degrees > 0
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while _two_sided_tail(high, degrees) > tail:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _two_sided_tail(middle, degrees) > tail else (low, middle)
    return (low + high) / 2


def _two_sided_tail(t: float, degrees: float) -> float:
    """P(|T| > t): the regularized incomplete beta function at degrees / (degrees + t^2) (DLMF 8.17)."""
    x = degrees / (degrees + t * t)
    a, b = degrees / 2, 0.5
    # The continued fraction converges fast below (a + 1) / (a + b + 2); above it, the complement does.
    if x < (a + 1) / (a + b + 2):
        return _beta_fraction(a, b, x)
    return 1 - _beta_fraction(b, a, 1 - x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """I_x(a, b) by its continued fraction (DLMF 8.17.22), evaluated from the far end."""
    if x <= 0:
        return 0.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    fraction = 1.0
    for m in range(200, 0, -1):
        odd = -(a + m - 1) * (a + b + m - 1) * x / ((a + 2 * m - 2) * (a + 2 * m - 1))
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = 1 + odd / (1 + even / fraction)
    return math.exp(log_front) / (a * fraction)


def figure(point: LoadPoint, metric: str) -> Figure | None:
    """A point's metric over its repeats; None where it was not measured (`point.missing` says why)."""
    if metric not in METRICS:
        raise KeyError(f"{metric}: not one of {METRICS}")
    return over_repeats([repeat.get(metric) for repeat in point.repeats])


def mix_of(report: LoadReport) -> tuple[int, int]:
    """Input and output tokens of the mix that the report's headline speaks of."""
    return report.mix or (report.points[0].input_tokens, report.points[0].output_tokens)


def saturating_point(report: LoadReport) -> LoadPoint | None:
    """The point of the headline's mix with the largest throughput; None where none was measured.

    Points whose prompts share a prefix stand for the headline only where there is no other.
    """
    mix = mix_of(report)
    points = [point for point in report.points if (point.input_tokens, point.output_tokens) == mix]
    plain = [point for point in points if not point.prefix_share]
    best: tuple[float, LoadPoint] | None = None
    for point in plain or points:
        rate = figure(point, "total_tok_per_s")
        if rate is not None and (best is None or rate.value > best[0]):
            best = rate.value, point
    return best and best[1]


def headline_point(report: LoadReport) -> LoadPoint | None:
    """The point that the headline's price stands on: at theta_slo where it was searched and found, else at saturation.

    None where nothing was measured, or where no rate met the objective.
    """
    if report.theta_slo is None:
        return saturating_point(report)
    held, mix = report.theta_slo.held_req_per_s, mix_of(report)
    of_mix = [point for point in report.points if (point.input_tokens, point.output_tokens) == mix]
    return next((point for point in of_mix if held is not None and point.request_rate == held), None)


def metrics(report: LoadReport) -> dict[str, float]:
    """Flat names for a tracking store: `load/<scenario>/<metric>` of the headline's point, and of each point below it.

    Beside what the client measured, with `.lo` and `.hi`: errors, the mean of each counter over the repeats, and the
    bracket of theta_slo (`.lo` met the objective, `.hi` did not). What was not measured has no entry.
    """
    scenario = f"load/{report.scenario}"
    flat: dict[str, float] = {}
    headline = headline_point(report)
    groups = [(scenario, headline)] if headline else []
    groups += [(f"{scenario}/{point.name}", point) for point in report.points]
    for prefix, point in groups:
        for metric in (name for name in METRICS if name not in RUN_FACTS):
            if (value := figure(point, metric)) is not None:
                flat |= _with_interval(f"{prefix}/{metric}", value)
        flat[f"{prefix}/num_errors"] = float(point.num_errors)
        flat |= {f"{prefix}/{name}": mean for name, mean in counter_means(point).items()}
    theta = report.theta_slo
    if theta is not None and theta.held_req_per_s is not None:
        held = theta.held_req_per_s
        flat |= _with_interval(f"{scenario}/theta_slo_req_per_s", Figure(held, held, theta.failed_req_per_s, 1, ""))
    return flat


def counter_means(point: LoadPoint) -> dict[str, float]:
    """The mean over the repeats of each counter that could be read."""
    read: dict[str, list[float]] = {}
    for counters in point.counters:
        for name, value in counters.items():
            if value is not None:
                read.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in read.items()}


def _with_interval(name: str, value: Figure) -> dict[str, float]:
    ends = {f"{name}.lo": value.lo, f"{name}.hi": value.hi}
    return {name: value.value, **{key: end for key, end in ends.items() if end is not None}}
