"""What a decision looks at, and simple figures of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal

import numpy as np

from evals.cost.price_ratio import CONFIDENCE, confidence_at, price_ratio, rounds_without_ratio
from evals.load.counters import busy_reason
from evals.load.summary import headline_point
from evals.types import CostReport, Estimate, LoadReport, PriceRatio, PriceRounds, QualityReport, ThetaSlo


@dataclass(frozen=True)
class Evidence:
    """What a decision looks at."""

    label: str
    quality: QualityReport
    load: LoadReport
    cost: CostReport
    price_rounds: PriceRounds | None = None
    """The candidate's speed beside its baseline's, measured in turn; None for a baseline and in older records."""


@dataclass(frozen=True)
class PriceVerdict:
    """What is shown of a candidate's price against its baseline's."""

    kind: Literal["cheaper", "not cheaper", "undecided"]
    """`cheaper` and `not cheaper` are shown, each at half of the interval's error; everything else is `undecided`."""
    text: str
    """With figures; of `undecided` also the way out."""
    ratio: PriceRatio | None = None
    """The candidate's price over the baseline's, measured in turn; None where it was not."""


def price_verdict(candidate: Evidence, baseline: Evidence) -> PriceVerdict:
    """Whether a candidate is cheaper than its baseline, is not, or whether that is not decided.

    At a load that saturates, the 95% interval of the price ratio over rounds of fresh starts must lie below 1
    (`evals.cost.price_ratio`); a single start of each shows nothing. Where theta_slo was searched, the rate that met
    the objective must reach the lowest at which the baseline failed.
    """
    ours, theirs = candidate.cost.usd_per_1k_tokens, baseline.cost.usd_per_1k_tokens
    if ours is None or theirs is None:
        reasons = (one.cost.missing.get("usd_per_1k_tokens") for one in (candidate, baseline))
        return PriceVerdict("undecided", f"unknown: {next((why for why in reasons if why), 'not measured')}")
    figures = (
        f"{ours.value:.3g} against {theirs.value:.3g} USD per 1k tokens ({float(ours.value / theirs.value) - 1:+.1%})"
    )
    figures += measured_apart(candidate.load, baseline.load)
    if candidate.load.theta_slo is not None and baseline.load.theta_slo is not None:
        return _by_brackets(candidate.load.theta_slo, baseline.load.theta_slo, ours.value < theirs.value, figures)
    ratio = measured_ratio(candidate, baseline)
    if ratio is None or ratio.lo is None or ratio.hi is None:
        return PriceVerdict("undecided", f"{figures}: not decided: {_no_interval(candidate)}", ratio)
    rounds = f"{figures}; measured in turn, {ratio.num_rounds} rounds: {ratio_text(ratio)}{_failures(candidate)}"
    if ratio.hi < 1:
        return PriceVerdict("cheaper", f"{rounds}: cheaper than the baseline", ratio)
    if ratio.lo > 1:
        return PriceVerdict("not cheaper", f"{rounds}: more expensive than the baseline", ratio)
    way_out = f"gate.price_rounds={4 * ratio.num_rounds} shows differences half as large"
    return PriceVerdict("undecided", f"{rounds}: not decided ({way_out})", ratio)


def measured_ratio(candidate: Evidence, baseline: Evidence) -> PriceRatio | None:
    """The candidate's price over the baseline's from rounds that measured both in turn; None where there are none."""
    if candidate.price_rounds is None:
        return None
    per_hour = candidate.cost.price.usd_per_hour / baseline.cost.price.usd_per_hour
    found = candidate.price_rounds
    return price_ratio(found.rounds, float(per_hour), confidence_at(found.earlier_looks))


def comparable_usd(candidate: Evidence, baseline: Evidence) -> Decimal | None:
    """USD per 1k tokens by which candidates of one baseline are ranked: the baseline's, times the ratio to it that was
    measured in turn; the candidate's own where it was not measured so. None where there is no price.
    """
    ours, theirs = candidate.cost.usd_per_1k_tokens, baseline.cost.usd_per_1k_tokens
    ratio = measured_ratio(candidate, baseline)
    if ratio is None or ours is None or theirs is None:
        return None if ours is None else ours.value
    return theirs.value * Decimal(repr(ratio.ratio))


def ratio_text(ratio: PriceRatio) -> str:
    """A price ratio as a change.

    >>> ratio_text(PriceRatio(0.945, 0.91, 0.98, 4, ""))
    '-5.5% [-9.0%, -2.0%]'
    """
    if ratio.lo is None or ratio.hi is None:
        return f"{ratio.ratio - 1:+.1%}"
    level = "" if ratio.confidence == CONFIDENCE else f" (a later look, so {ratio.confidence:.1%})"
    return f"{ratio.ratio - 1:+.1%} [{ratio.lo - 1:+.1%}, {ratio.hi - 1:+.1%}]{level}"


def _failures(candidate: Evidence) -> str:
    """How many requests of the rounds failed; empty where none did."""
    failed = 0 if candidate.price_rounds is None else sum(one.num_failed for one in candidate.price_rounds.rounds)
    return f" ({failed} requests failed)" if failed else ""


def _no_interval(candidate: Evidence) -> str:
    """Why there is no interval of the price ratio, and the way out."""
    found = candidate.price_rounds
    if found is None:
        return (
            "it was not measured in turn with its baseline, and one start of each shows nothing (gate.price_rounds=4)"
        )
    if found.missing:
        return found.missing
    without = rounds_without_ratio(found.rounds)
    if without:
        return f"in {without} of {len(found.rounds)} rounds a request round completed nothing"
    return f"{len(found.rounds)} round shows nothing of how starts differ (gate.price_rounds=4)"


def _by_brackets(ours: ThetaSlo, theirs: ThetaSlo, is_lower: bool, figures: str) -> PriceVerdict:
    """By the brackets of two searches for theta_slo."""
    held, failed = ours.held_req_per_s, theirs.failed_req_per_s
    if held is not None and failed is not None and held >= failed and is_lower:
        return PriceVerdict("cheaper", f"{figures}: cheaper than the baseline")
    if ours.failed_req_per_s is not None and (theirs.held_req_per_s or 0) >= ours.failed_req_per_s:
        return PriceVerdict("not cheaper", f"{figures}: not cheaper than the baseline")
    bound = "the baseline failed at no rate" if failed is None else f"the baseline fails only from {failed:g} on"
    rate = "was not found" if held is None else f"is {held:g} requests/s"
    way_out = "load.search.tolerance and point_duration_s refine it"
    return PriceVerdict("undecided", f"{figures}: not decided: theta_slo {rate}, and {bound} ({way_out})")


def busy_machine(evidence: Evidence) -> str:
    """Why the figures of speed and price are doubtful: what else ran on the machine while they were measured.

    Empty where nothing much did, and where nobody knows (older records, systems without /proc).
    """
    rounds = () if evidence.price_rounds is None else evidence.price_rounds.rounds
    of_load = [counters for point in evidence.load.points for counters in point.counters]
    return busy_reason([*of_load, *(one.counters for one in rounds)])


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
