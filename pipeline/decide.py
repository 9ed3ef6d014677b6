"""The decision: is a candidate good enough, cheaper, and fast enough? Pure.

A first rule: the lower end of the recovery's interval (paired bootstrap over the same items) must reach
`gate.min_recovery`, the price must be below the baseline's, and the p99 latencies must hold the SLO where one is given.
Every reason carries its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.stats import PairedComparison, align, paired_bootstrap
from evals.types import CostReport, Estimate, LoadReport, QualityReport
from pipeline.schema import GateConfig
from pipeline.types import Decision


@dataclass(frozen=True)
class Evidence:
    """What a decision looks at."""

    label: str
    quality: QualityReport
    load: LoadReport
    cost: CostReport


@dataclass(frozen=True)
class Verdict:
    """One requirement's answer."""

    passed: bool
    reason: str


def decide(
    candidate: Evidence, baseline: Evidence, gate: GateConfig, seed: int
) -> tuple[Decision, PairedComparison | None]:
    """Promote or hold one candidate against its baseline; returns the comparison behind the first reason too."""
    comparison = compare(candidate.quality, baseline.quality, gate, seed)
    verdicts = [
        _quality(candidate, comparison, gate),
        _price(candidate.cost, baseline.cost),
        *_slo(candidate.load, gate),
    ]
    action = "promote" if all(verdict.passed for verdict in verdicts) else "hold"
    evidence: dict[str, Any] = {
        "recovery": None if comparison is None else comparison.recovery,
        "usd_per_1k_tokens": candidate.cost.usd_per_1k_tokens,
        "baseline_usd_per_1k_tokens": baseline.cost.usd_per_1k_tokens,
    }
    reasons = tuple(("passed: " if verdict.passed else "not met: ") + verdict.reason for verdict in verdicts)
    return Decision(action, candidate.label, reasons, vars(gate), evidence), comparison


def hold_baseline(label: str) -> Decision:
    """The decision on a baseline: there is nothing to compare it with."""
    reason = "this is the baseline: it is what variants are compared with (try quant=int8)"
    return Decision("hold", label, (reason,), {}, {})


def compare(candidate: QualityReport, baseline: QualityReport, gate: GateConfig, seed: int) -> PairedComparison | None:
    """Both on the same items, task by task; None where no task can be compared."""
    scores_candidate: dict[str, list[float | None]] = {}
    scores_baseline: dict[str, list[float | None]] = {}
    for name, result in candidate.tasks.items():
        other = baseline.tasks.get(name)
        if other is None or other.settings_digest != result.settings_digest:
            return None
        _, scores_candidate[name], scores_baseline[name] = align(result.items, other.items)
    rng = np.random.default_rng([seed, 0x5EED])
    return paired_bootstrap(
        scores_candidate, scores_baseline, rng, num_draws=gate.num_resamples, confidence=1 - 2 * gate.alpha
    )


def _quality(candidate: Evidence, comparison: PairedComparison | None, gate: GateConfig) -> Verdict:
    if candidate.quality.meaningless:
        return Verdict(False, f"quality: {candidate.quality.meaningless}")
    if comparison is None:
        return Verdict(False, "quality: candidate and baseline were not asked the same items in the same way")
    recovery = comparison.recovery
    if recovery is None:
        return Verdict(False, f"quality: no recovery: {comparison.recovery_missing}")
    passed = recovery.lo >= gate.min_recovery
    figures = f"recovery {recovery.value:.1%} [{recovery.lo:.1%}, {recovery.hi:.1%}] of the baseline's score"
    relation = "is at least" if passed else "is below"
    return Verdict(passed, f"quality: {figures}; the lower end {relation} gate.min_recovery={gate.min_recovery:.1%}")


def _price(candidate: CostReport, baseline: CostReport) -> Verdict:
    ours, theirs = candidate.usd_per_1k_tokens, baseline.usd_per_1k_tokens
    if ours is None or theirs is None:
        missing = candidate.missing.get("usd_per_1k_tokens") or baseline.missing.get(
            "usd_per_1k_tokens", "not measured"
        )
        return Verdict(False, f"price: unknown: {missing}")
    change = float(ours.value / theirs.value) - 1
    figures = f"{ours.value:.3g} against {theirs.value:.3g} USD per 1k tokens ({change:+.1%})"
    cheaper = ours.value < theirs.value
    return Verdict(cheaper, f"price: {figures}: {'cheaper' if cheaper else 'not cheaper'} than the baseline")


def _slo(load: LoadReport, gate: GateConfig) -> Sequence[Verdict]:
    limits = {"ttft_p99_s": gate.slo_ttft_p99_s, "tpot_p99_s": gate.slo_tpot_p99_s}
    verdicts = []
    for metric, limit in limits.items():
        if limit is None:
            continue
        worst = worst_latency(load, metric)
        if worst is None:
            verdicts.append(Verdict(False, f"SLO: {metric} was not measured"))
        else:
            holds = worst <= limit
            relation = "holds" if holds else "breaks"
            verdicts.append(Verdict(holds, f"SLO: {metric} {worst:.3g} s {relation} the limit of {limit:g} s"))
    return verdicts


def worst_latency(load: LoadReport, metric: str) -> float | None:
    """The largest value of a latency metric over the repeats of the headline's mix at the highest concurrency."""
    point = headline_point(load)
    values = [value for repeat in point.repeats if (value := repeat.get(metric)) is not None] if point else []
    return max(values) if values else None


def headline_point(load: LoadReport) -> Any:
    """The point of the headline's mix with the highest concurrency; None where nothing was measured."""
    mix = load.mix or ((load.points[0].input_tokens, load.points[0].output_tokens) if load.points else None)
    points = [point for point in load.points if (point.input_tokens, point.output_tokens) == mix and point.concurrency]
    return max(points, key=lambda point: point.concurrency or 0, default=None)


def mean_quality(report: QualityReport) -> Estimate | None:
    """Mean over tasks, with the tasks' intervals combined in quadrature; None where the scores mean nothing."""
    estimates = [result.estimate for result in report.tasks.values()]
    if report.meaningless or not estimates:
        return None
    k = len(estimates)
    value = sum(one.value for one in estimates) / k
    below = float(np.sqrt(sum((one.value - one.lo) ** 2 for one in estimates))) / k
    above = float(np.sqrt(sum((one.hi - one.value) ** 2 for one in estimates))) / k
    return Estimate(
        value,
        value - below,
        value + above,
        num_samples=sum(one.num_samples for one in estimates),
        num_unscored=sum(one.num_unscored for one in estimates),
        method=f"{estimates[0].method}, tasks combined in quadrature",
    )
