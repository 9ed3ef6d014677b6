"""The decision: promote the cheapest candidate that passed the gate and meets the SLO. Pure.

A candidate must pass its gate on every task that decides (`evals/gate/gate.py`, replayed from the recorded outcomes),
cost less than the baseline by more than the repeats' noise, and hold the p99 latencies where an SLO is given. Of
several that do, the cheapest wins. Every reason carries its figures, and every loser says who beat it and by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evals.config import GateConfig
from evals.decide.evidence import Evidence, measured_apart, price_doubt, worst_latency
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
    """Who or what was better, and by how much; empty where the requirement is met."""


def decide(
    candidate: Evidence, baseline: Evidence, gate: GateConfig, seed: int
) -> tuple[Decision, PairedComparison | None]:
    """Promote or hold one candidate against its baseline; returns how far it is from it, where that is known."""
    evaluation = gates_of(candidate.quality, baseline.quality, gate)
    comparison = None if evaluation is None else compare(candidate.quality, baseline.quality, evaluation, gate, seed)
    tasks = {} if evaluation is None else task_gates(evaluation, candidate.quality, baseline.quality)
    requirements = [
        *_quality(candidate.quality, evaluation, tasks, gate),
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


def hold_baseline(label: str) -> Decision:
    """The decision on a baseline: there is nothing to compare it with."""
    reason = "this is the baseline: it is what variants are compared with (try quant=int8)"
    return Decision("hold", label, (reason,))


@dataclass(frozen=True)
class Loss:
    """Why a candidate was not promoted."""

    variant: str
    beaten_by: tuple[str, ...]
    """Each with figures: the baseline on a task, a limit, a cheaper candidate that passed too."""


@dataclass(frozen=True)
class Contest:
    """All candidates of one baseline, decided together."""

    decisions: tuple[Decision, ...]
    """In the candidates' order; `promote` for the winner alone."""
    comparisons: tuple[PairedComparison | None, ...]
    """How far each candidate is from the baseline, where that is known."""
    winner: int | None
    """Index of the cheapest candidate that may be promoted; None where none may."""
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    """What a reader must know of the error level when several competed."""


def contest(candidates: Sequence[Evidence], baseline: Evidence, gate: GateConfig, seed: int) -> Contest:
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
    return Contest(tuple(decisions), comparisons, winner, losses, _notes(decisions, gate))


def _outbid(decision: Decision, beaten_by: str) -> Decision:
    evidence = replace(decision.evidence, beaten_by=(beaten_by,))
    reasons = (*decision.reasons, f"not met: beaten by {beaten_by}")
    return replace(decision, action="hold", reasons=reasons, evidence=evidence)


def _notes(decisions: Sequence[Decision], gate: GateConfig) -> tuple[str, ...]:
    num = len(decisions)
    if num <= gate.num_candidates:
        return ()
    logs = [min((_log_e(one) for one in d.evidence.tasks.values()), default=-math.inf) for d in decisions]
    kept = ", ".join(decisions[index].variant for index in e_bh(logs, gate.alpha)) or "none"
    level = best_of_k_level(gate.alpha, gate.num_candidates)
    return (
        f"{num} candidates competed, gate.num_candidates={gate.num_candidates}: each was tested at {level:.2%}, "
        f"so some candidate worse by its margin passes with a chance of up to {min(1.0, num * level):.0%}; "
        f"gate.num_candidates={num} keeps that at {gate.alpha:.0%}",
        f"with the share of false ones among the chosen held at {gate.alpha:.0%} (e-BH): {kept}",
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
    figures = f"{_usd(winner):.3g} against {_usd(loser):.3g} USD per 1k tokens: {more:.1%} dearer"
    return f"'{winner.label}', which passed too, on price: {figures}"


def _quality(
    quality: QualityReport, evaluation: SequentialEvaluation | None, tasks: Mapping[str, TaskGate], gate: GateConfig
) -> list[Requirement]:
    if quality.meaningless:
        return [Requirement(False, f"quality: {quality.meaningless}", "nobody: its quality says nothing")]
    if evaluation is None:
        words = "quality: candidate and baseline were not asked the same items in the same way"
        return [Requirement(False, words, "nobody: it cannot be compared")]
    requirements = [_task(one, evaluation.combined, gate) for one in tasks.values()]
    return requirements or [Requirement(False, "quality: no task decides", "nobody: gate.tasks is empty")]


def _task(one: TaskGate, combined: Combined, gate: GateConfig) -> Requirement:
    if one.difference is None:
        words = f"quality: {one.task}: not evaluated"
        if combined.because:
            words += f", because {combined.because} had ended the evaluation"
        return Requirement(False, words)
    d = one.difference
    figures = f"{100 * d.value:+.1f} points [{100 * d.lo:+.1f}, {100 * d.hi:+.1f}] against the baseline"
    asked = f"{one.num_items} of {one.num_items_total} items"
    words = {
        Verdict.PASS: f"not worse by {one.delta_points:g} points or more",
        Verdict.FAIL: f"worse by {one.delta_points:g} points or more",
        Verdict.FUTILE: f"not shown within gate.max_items={gate.max_items}",
        Verdict.UNDECIDED: "not decided by these answers",
    }[Verdict(one.decision)]
    passed = one.decision == Verdict.PASS
    beaten = "" if passed else f"the baseline on {one.task}: {figures}, {words} ({asked})"
    return Requirement(passed, f"quality: {one.task}: {figures}, {asked}: {words} ({how_sure(one, gate)})", beaten)


def _price(candidate: Evidence, baseline: Evidence) -> Requirement:
    ours, theirs = candidate.cost.usd_per_1k_tokens, baseline.cost.usd_per_1k_tokens
    if ours is None or theirs is None:
        reasons = (one.cost.missing.get("usd_per_1k_tokens") for one in (candidate, baseline))
        missing = next((reason for reason in reasons if reason), "not measured")
        return Requirement(False, f"price: unknown: {missing}", f"the baseline: no price was measured here ({missing})")
    change = float(ours.value / theirs.value) - 1
    figures = f"{ours.value:.3g} against {theirs.value:.3g} USD per 1k tokens ({change:+.1%})"
    figures += measured_apart(candidate.load, baseline.load)
    cheaper = ours.value < theirs.value
    doubt = price_doubt(candidate.load, baseline.load) if cheaper else ""
    if doubt:
        reason = f"price: {figures}: not told apart from the baseline's: {doubt}"
        return Requirement(False, reason, f"the baseline on price: {doubt}")
    reason = f"price: {figures}: {'cheaper' if cheaper else 'not cheaper'} than the baseline"
    return Requirement(cheaper, reason, "" if cheaper else f"the baseline on price: {figures}")


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
            words = f"SLO: {metric} was not measured"
            requirements.append(Requirement(False, words, f"the {words}"))
        else:
            holds = worst <= limit
            figures = f"{metric} {worst:.3g} s {'holds' if holds else 'breaks'} the limit of {limit:g} s"
            beaten = "" if holds else f"the SLO: {figures}, {worst / limit - 1:.0%} over it"
            requirements.append(Requirement(holds, f"SLO: {figures}", beaten))
    return requirements


def _searched(theta: ThetaSlo, metric: str, limit: float) -> Requirement:
    """Where the load looked for theta_slo the price stands on that rate, and so does the objective."""
    searched = getattr(theta, metric)
    if searched is None or searched > limit:
        bound = "no limit" if searched is None else f"{searched:g} s"
        words = f"{metric} <= {limit:g} s is asked for, theta_slo was searched with {bound}"
        way_out = f"load.search.slo_{metric}={limit:g} searches with it"
        return Requirement(False, f"SLO: {words}; {way_out}", f"the SLO: {words}")
    if theta.held_req_per_s is None:
        words = f"{metric} <= {searched:g} s: {theta.reason}"
        return Requirement(False, f"SLO: {words}", f"the SLO: {words}")
    return Requirement(
        True, f"SLO: {metric} <= {searched:g} s holds at {theta.held_req_per_s:g} requests/s (theta_slo)"
    )
