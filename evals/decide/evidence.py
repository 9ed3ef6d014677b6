"""What a decision looks at, and simple figures of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from evals.cost.curves import compare_points
from evals.load.summary import headline_point
from evals.types import CostReport, Estimate, LoadReport, QualityReport


@dataclass(frozen=True)
class Evidence:
    """What a decision looks at."""

    label: str
    quality: QualityReport
    load: LoadReport
    cost: CostReport


def price_doubt(load: LoadReport, baseline: LoadReport) -> str:
    """Why a lower price is not significantly different from the baseline's.

    Empty where it is, and where there is one repeat only, which shows no variation.

    At saturation the 95% interval of the throughputs' ratio (Welch, over the repeats) must leave out 1. Where theta_slo
    was searched, the rate that met the objective must reach the lowest at which the baseline failed.
    """
    if load.theta_slo is not None and baseline.theta_slo is not None:
        held, failed = load.theta_slo.held_req_per_s, baseline.theta_slo.failed_req_per_s
        if held is None or (failed is not None and held >= failed):
            return ""
        bound = "the baseline failed at no rate" if failed is None else f"the baseline fails only from {failed:g} on"
        return f"theta_slo is {held:g} requests/s, and {bound} (load.search.tolerance and point_duration_s refine it)"
    point, other = headline_point(load), headline_point(baseline)
    if point is None or other is None:
        return ""
    found = compare_points(other, point)
    if found is None or found.lo is None or found.hi is None or found.hi < 1:
        return ""
    num = len(point.repeats)
    return (
        f"{found.ratio - 1:+.1%} [{found.lo - 1:+.1%}, {found.hi - 1:+.1%}] over {num} repeats "
        f"(load.num_repeats={3 * num} shows smaller differences)"
    )


def measured_apart(load: LoadReport, baseline: LoadReport) -> str:
    """Says that hours lie between two measurements of speed. Empty where they are of one hour, or do not say.

    The interval includes run-to-run variation of one session. It does not include what changes on a machine, above all
    on a shared one, from one hour to another.
    """
    ours, theirs = load.machine.oldest_result_at, baseline.machine.oldest_result_at
    if ours is None or theirs is None:
        return ""
    hours = abs(datetime.fromisoformat(ours) - datetime.fromisoformat(theirs)) / timedelta(hours=1)
    if hours < 1:
        return ""
    return f", their speeds measured {hours:.0f} h apart" if hours < 48 else f", measured {hours / 24:.0f} days apart"


def worst_latency(load: LoadReport, metric: str) -> float | None:
    """The largest value of a latency metric over the repeats of the point that the headline's price stands on."""
    point = headline_point(load)
    values = [value for repeat in point.repeats if (value := repeat.get(metric)) is not None] if point else []
    return max(values) if values else None


def mean_quality(report: QualityReport) -> Estimate | None:
    """Mean over tasks, with the tasks' intervals combined in quadrature.

    None where the scores are not valid, or where a task was not evaluated: another set of tasks has another mean.
    """
    estimates = [result.estimate for result in report.tasks.values()]
    if report.quality_invalid_reason or report.not_evaluated or not estimates:
        return None
    k = len(estimates)
    value = sum(one.value for one in estimates) / k
    below = float(np.sqrt(sum((one.value - one.lo) ** 2 for one in estimates))) / k
    above = float(np.sqrt(sum((one.hi - one.value) ** 2 for one in estimates))) / k
    stopped = next((one.method for one in estimates if "sequence" in one.method), estimates[0].method)
    return Estimate(
        value,
        value - below,
        value + above,
        num_samples=sum(one.num_samples for one in estimates),
        num_unscored=sum(one.num_unscored for one in estimates),
        method=f"{stopped}, tasks combined in quadrature",
    )
