"""The decision: promote the cheapest candidate that passed the gate and meets the SLO. Pure.

A candidate must pass its gate on every task that decides (`evals/gate/gate.py`, replayed from the recorded outcomes),
cost less than the baseline by more than run-to-run variation, and meet the p99 latencies where an SLO is given. Of
several that do, the cheapest wins. Every reason carries its figures, and so does every reason against a promotion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evals.config import GateConfig
from evals.decide.evidence import Evidence, measured_apart, price_doubt, worst_latency
from evals.decide.noise_floor import floor_problem
from evals.decide.task_gates import compare, gates_of, how_sure, task_gates
from evals.gate.gate import Combined, Verdict, best_of_k_level, e_bh
from evals.gate.sequential import SequentialEvaluation
from evals.stats import PairedComparison
from evals.types import Decision, DecisionEvidence, LoadReport, QualityReport, TaskGate, ThetaSlo


@dataclass(frozen=True)
class Requirement:
    """One requirement's answer."""

    passed: bool
    reason: str
    beaten_by: str = ""
    """What speaks against the promotion, with its figures; empty where the requirement is met."""


def decide(
    candidate: Evidence, baseline: Evidence, gate: GateConfig, seed: int
) -> tuple[Decision, PairedComparison | None]:
    """Decide on one candidate against its baseline. Also returns its distance from the baseline, if known."""
    evaluation = gates_of(candidate.quality, baseline.quality, gate)
    comparison = None if evaluation is None else compare(candidate.quality, baseline.quality, evaluation, gate, seed)
    tasks = {} if evaluation is None else task_gates(evaluation, candidate.quality, baseline.quality)
    requirements = [
        *_quality(candidate.quality, baseline.quality, evaluation, tasks, gate),
        _price(candidate, baseline),
        *_slo(candidate.load, gate),
    ]
    action = "promote" if all(one.passed for one in requirements) else "hold"
    evidence = DecisionEvidence(
        tasks=tasks,
        recovery=None if comparison is None else comparison.recovery,
        usd_per_1k_tokens=candidate.cost.usd_per_1k_tokens,
        baseline_usd_per_1k_tokens=baseline.cost.usd_per_1k_tokens,
        passed=action == "promote",
        beaten_by=tuple(one.beaten_by for one in requirements if one.beaten_by),
    )
    reasons = tuple(("passed: " if one.passed else "not met: ") + one.reason for one in requirements)
    return Decision(action, candidate.label, reasons, gate, evidence), comparison


def baseline_decision(label: str) -> Decision:
    """The decision on a baseline: there is nothing to compare it with."""
    reason = "this is the baseline that variants are compared with (quant=int8 adds a variant)"
    return Decision("hold", label, (reason,))


@dataclass(frozen=True)
class Loss:
    """Why a candidate was not promoted."""

    variant: str
    beaten_by: tuple[str, ...]
    """Each with figures: a task, a price, a limit, or a cheaper candidate that passed too."""


@dataclass(frozen=True)
class Ranking:
    """All candidates of one baseline, decided together."""

    decisions: tuple[Decision, ...]
    """In the candidates' order; `promote` for the winner alone."""
    comparisons: tuple[PairedComparison | None, ...]
    """How far each candidate is from the baseline, where that is known."""
    winner: int | None
    """Index of the cheapest candidate that may be promoted; None where none may."""
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    """What the error level is when several candidates competed."""


def rank(candidates: Sequence[Evidence], baseline: Evidence, gate: GateConfig, seed: int) -> Ranking:
    """Decide on several candidates: the cheapest of those that passed wins, ties by label."""
    decided = [decide(candidate, baseline, gate, seed) for candidate in candidates]
    decisions = [decision for decision, _ in decided]
    passed = [index for index, decision in enumerate(decisions) if decision.action == "promote"]
    winner = min(passed, key=lambda index: (_usd(candidates[index]), candidates[index].label), default=None)
    for index in passed:
        if winner is not None and index != winner:
            decisions[index] = _outbid(decisions[index], _beaten_on_price(candidates[index], candidates[winner]))
    losses = tuple(
        Loss(decision.variant, decision.evidence.beaten_by)
        for index, decision in enumerate(decisions)
        if index != winner
    )
    comparisons = tuple(comparison for _, comparison in decided)
    return Ranking(tuple(decisions), comparisons, winner, losses, _notes(decisions, gate))


def _outbid(decision: Decision, beaten_by: str) -> Decision:
    evidence = replace(decision.evidence, beaten_by=(beaten_by,))
    return replace(decision, action="hold", reasons=(*decision.reasons, f"not met: {beaten_by}"), evidence=evidence)


def _notes(decisions: Sequence[Decision], gate: GateConfig) -> tuple[str, ...]:
    num = len(decisions)
    if num <= gate.num_candidates:
        return ()
    logs = [min((_log_e(one) for one in d.evidence.tasks.values()), default=-math.inf) for d in decisions]
    kept = ", ".join(decisions[index].variant for index in e_bh(logs, gate.alpha)) or "none"
    level = best_of_k_level(gate.alpha, gate.num_candidates)
    return (
        f"{num} candidates competed, gate.num_candidates={gate.num_candidates}: each was tested at {level:.2%}, "
        f"so some candidate worse by its margin passes with a chance of up to {min(1.0, num * level):.0%} "
        f"(gate.num_candidates={num} limits this to {gate.alpha:.0%})",
        f"e-BH limits the share of false promotions to {gate.alpha:.0%} and selects: {kept}",
    )


def _log_e(task: TaskGate) -> float:
    if task.log_e_pass is not None:
        return task.log_e_pass
    return math.inf if task.decision == Verdict.PASS else -math.inf


def _usd(evidence: Evidence) -> float:
    money = evidence.cost.usd_per_1k_tokens
    return math.inf if money is None else float(money.value)


def _beaten_on_price(loser: Evidence, winner: Evidence) -> str:
    more = _usd(loser) / _usd(winner) - 1
    figures = f"{_usd(winner):.3g} against {_usd(loser):.3g} USD per 1k tokens"
    return f"'{winner.label}' passed too and is cheaper: {figures} ({more:.1%} more expensive)"


def _quality(
    quality: QualityReport,
    baseline: QualityReport,
    evaluation: SequentialEvaluation | None,
    tasks: Mapping[str, TaskGate],
    gate: GateConfig,
) -> list[Requirement]:
    if quality.quality_invalid_reason:
        return [
            Requirement(
                False,
                f"quality: {quality.quality_invalid_reason}",
                f"its quality is not valid: {quality.quality_invalid_reason}",
            )
        ]
    if evaluation is None:
        text = "candidate and baseline were not asked the same items in the same way"
        return [Requirement(False, f"quality: {text}", f"its quality cannot be compared: {text}")]
    requirements = [
        _task(one, evaluation.combined, gate, floor_problem(one, quality, baseline)) for one in tasks.values()
    ]
    return requirements or [Requirement(False, "quality: no task decides", "no task decides: gate.tasks is empty")]


def _task(one: TaskGate, combined: Combined, gate: GateConfig, below_noise: str | None = None) -> Requirement:
    if one.difference is None:
        text = f"quality: {one.task}: not evaluated"
        if combined.because:
            text += f", because {combined.because} had ended the evaluation"
        return Requirement(False, text)
    d = one.difference
    figures = f"{100 * d.value:+.1f} points [{100 * d.lo:+.1f}, {100 * d.hi:+.1f}] against the baseline"
    asked = f"{one.num_items} of {one.num_items_total} items"
    if below_noise is not None and one.decision != Verdict.FAIL:
        return Requirement(
            False, f"quality: {one.task}: {figures}, {asked}: {below_noise}", f"{one.task}: {below_noise} ({asked})"
        )
    result = {
        Verdict.PASS: f"not worse by {one.delta_points:g} points or more",
        Verdict.FAIL: f"worse by {one.delta_points:g} points or more",
        Verdict.FUTILE: f"not shown within gate.max_items={gate.max_items}",
        Verdict.UNDECIDED: "not decided by these answers",
    }[Verdict(one.decision)]
    passed = one.decision == Verdict.PASS
    against = "" if passed else f"{one.task}: {figures}, {result} ({asked})"
    return Requirement(passed, f"quality: {one.task}: {figures}, {asked}: {result} ({how_sure(one, gate)})", against)


def _price(candidate: Evidence, baseline: Evidence) -> Requirement:
    ours, theirs = candidate.cost.usd_per_1k_tokens, baseline.cost.usd_per_1k_tokens
    if ours is None or theirs is None:
        reasons = (one.cost.missing.get("usd_per_1k_tokens") for one in (candidate, baseline))
        missing = next((reason for reason in reasons if reason), "not measured")
        return Requirement(False, f"price: unknown: {missing}", f"no price was measured ({missing})")
    change = float(ours.value / theirs.value) - 1
    figures = f"{ours.value:.3g} against {theirs.value:.3g} USD per 1k tokens ({change:+.1%})"
    figures += measured_apart(candidate.load, baseline.load)
    cheaper = ours.value < theirs.value
    doubt = price_doubt(candidate.load, baseline.load) if cheaper else ""
    if doubt:
        text = f"not significantly different from the baseline's: {doubt}"
        return Requirement(False, f"price: {figures}: {text}", f"its price is {text}")
    reason = f"price: {figures}: {'cheaper' if cheaper else 'not cheaper'} than the baseline"
    return Requirement(cheaper, reason, "" if cheaper else f"it is not cheaper than the baseline: {figures}")


def _slo(load: LoadReport, gate: GateConfig) -> Sequence[Requirement]:
    limits = {"ttft_p99_s": gate.slo_ttft_p99_s, "tpot_p99_s": gate.slo_tpot_p99_s}
    requirements = []
    for metric, limit in limits.items():
        if limit is None:
            continue
        if load.theta_slo is not None:
            requirements.append(_searched(load.theta_slo, metric, limit))
            continue
        worst = worst_latency(load, metric)
        if worst is None:
            text = f"{metric} was not measured"
            requirements.append(Requirement(False, f"SLO: {text}", f"the SLO cannot be checked: {text}"))
        else:
            is_met = worst <= limit
            figures = f"{metric} {worst:.3g} s {'meets' if is_met else 'exceeds'} the limit of {limit:g} s"
            against = "" if is_met else f"it misses the SLO: {figures} by {worst / limit - 1:.0%}"
            requirements.append(Requirement(is_met, f"SLO: {figures}", against))
    return requirements


def _searched(theta: ThetaSlo, metric: str, limit: float) -> Requirement:
    """Where the load searched for theta_slo, the price rests on that rate, and so does the objective."""
    searched = getattr(theta, metric)
    if searched is None or searched > limit:
        bound = "no limit" if searched is None else f"{searched:g} s"
        text = f"{metric} <= {limit:g} s is asked for, theta_slo was searched with {bound}"
        way_out = f"load.search.slo_{metric}={limit:g} searches with it"
        return Requirement(False, f"SLO: {text} ({way_out})", f"the SLO cannot be checked: {text}")
    if theta.held_req_per_s is None:
        text = f"{metric} <= {searched:g} s: {theta.reason}"
        return Requirement(False, f"SLO: {text}", f"it misses the SLO: {text}")
    text = f"{metric} <= {searched:g} s is met at {theta.held_req_per_s:g} requests/s (theta_slo)"
    return Requirement(True, f"SLO: {text}")
