"""The decision: promote the cheapest candidate that passed the gate and meets the SLO. Pure.

A candidate must pass its gate on every task that decides (`evals/gate.py`, replayed from the recorded outcomes), cost
less than the baseline, and hold the p99 latencies where an SLO is given. Of several that do, the cheapest wins. Every
reason carries its figures, and every loser says who beat it and by how much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evals.gate import Combined, best_of_k_level, e_bh
from evals.gate import Decision as GateDecision
from evals.information import Divergence, divergence
from evals.sequential import GateRule, SequentialEvaluation, replay
from evals.stats import PairedComparison, align, flips, paired_bootstrap
from evals.types import CostReport, Estimate, LoadReport, QualityReport, ThetaSlo
from pipeline.schema import GateConfig
from pipeline.types import Decision

CONFIDENCE = 0.95


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
    beaten_by: str = ""
    """Who or what was better, and by how much; empty where the requirement is met."""


@dataclass(frozen=True)
class TaskGate:
    """One task's gate after all recorded answers."""

    task: str
    decision: str
    """pass, fail, futile or undecided."""
    reason: str
    """e-value, certain, exact, budget, or empty."""
    delta_points: float
    order: str
    num_items: int
    num_items_total: int
    decided_at: int | None
    """The item at which the decision fell."""
    difference: Estimate | None
    """Candidate minus baseline over all items, as a share; None before the first item."""
    log_e_pass: float | None
    """Log e-value against "worse by the margin or more"; None where the answer is certain."""
    log_e_fail: float | None
    flip_rate: float | None
    gained: tuple[int, ...]
    """Ids of the items that the candidate got right and the baseline wrong, among those asked."""
    lost: tuple[int, ...]
    divergence: Divergence | None
    """Information; no gate decides by it."""


def rule_of(gate: GateConfig, tasks: Sequence[str]) -> GateRule:
    """The gates' rule for a suite of these tasks; single margins and `gate.tasks` are applied."""
    deciding = list(tasks) if gate.tasks is None else gate.tasks
    points = {task: gate.task_delta_points.get(task, gate.delta_points) for task in deciding}
    return GateRule(
        deltas={task: round(value / 100, 12) for task, value in points.items()},
        alpha=best_of_k_level(gate.alpha, gate.num_candidates),
        beta=gate.beta,
        order=gate.order,
        stop_early=gate.stop_early,
        max_items=gate.max_items,
        block_items=gate.block_items,
    )


def decide(
    candidate: Evidence, baseline: Evidence, gate: GateConfig, seed: int
) -> tuple[Decision, PairedComparison | None]:
    """Promote or hold one candidate against its baseline; returns how far it is from it, where that is known."""
    evaluation = gates_of(candidate.quality, baseline.quality, gate)
    comparison = None if evaluation is None else compare(candidate.quality, baseline.quality, evaluation, gate, seed)
    tasks = {} if evaluation is None else task_gates(evaluation, candidate.quality, baseline.quality)
    verdicts = [
        *_quality(candidate.quality, evaluation, tasks, gate),
        _price(candidate.cost, baseline.cost, "the baseline"),
        *_slo(candidate.load, gate),
    ]
    action = "promote" if all(verdict.passed for verdict in verdicts) else "hold"
    evidence: dict[str, Any] = {
        "tasks": tasks,
        "recovery": None if comparison is None else comparison.recovery,
        "usd_per_1k_tokens": candidate.cost.usd_per_1k_tokens,
        "baseline_usd_per_1k_tokens": baseline.cost.usd_per_1k_tokens,
        "passed": action == "promote",
        "beaten_by": [verdict.beaten_by for verdict in verdicts if verdict.beaten_by],
    }
    reasons = tuple(("passed: " if verdict.passed else "not met: ") + verdict.reason for verdict in verdicts)
    return Decision(action, candidate.label, reasons, vars(gate), evidence), comparison


def hold_baseline(label: str) -> Decision:
    """The decision on a baseline: there is nothing to compare it with."""
    reason = "this is the baseline: it is what variants are compared with (try quant=int8)"
    return Decision("hold", label, (reason,), {}, {})


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
        Loss(decision.variant, tuple(decision.evidence["beaten_by"]))
        for index, decision in enumerate(decisions)
        if index != winner
    )
    comparisons = tuple(comparison for _, comparison in decided)
    return Contest(tuple(decisions), comparisons, winner, losses, _notes(decisions, gate))


def _outbid(decision: Decision, beaten_by: str) -> Decision:
    evidence = {**decision.evidence, "beaten_by": [beaten_by]}
    return replace(
        decision, action="hold", reasons=(*decision.reasons, f"not met: beaten by {beaten_by}"), evidence=evidence
    )


def _notes(decisions: Sequence[Decision], gate: GateConfig) -> tuple[str, ...]:
    num = len(decisions)
    if num <= gate.num_candidates:
        return ()
    logs = [min((_log_e(one) for one in d.evidence["tasks"].values()), default=-math.inf) for d in decisions]
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
    return math.inf if task.decision == GateDecision.PASS else -math.inf


def _usd(evidence: Evidence) -> float:
    money = evidence.cost.usd_per_1k_tokens
    return math.inf if money is None else float(money.value)


def _beaten_on_price(loser: Evidence, winner: Evidence) -> str:
    more = _usd(loser) / _usd(winner) - 1
    figures = f"{_usd(winner):.3g} against {_usd(loser):.3g} USD per 1k tokens: {more:.1%} dearer"
    return f"'{winner.label}', which passed too, on price: {figures}"


def gates_of(candidate: QualityReport, baseline: QualityReport, gate: GateConfig) -> SequentialEvaluation | None:
    """The gates over the recorded answers; None where the two were not asked the same items in the same way."""
    for name, result in candidate.tasks.items():
        other = baseline.tasks.get(name)
        if other is None or other.settings_digest != result.settings_digest:
            return None
    rule = rule_of(gate, list(baseline.tasks))
    if any(task not in baseline.tasks for task in rule.deltas):
        return None
    return replay(candidate.tasks, baseline.tasks, rule)


def task_gates(
    evaluation: SequentialEvaluation, candidate: QualityReport, baseline: QualityReport
) -> dict[str, TaskGate]:
    """What each gate says, with the figures that a reader wants beside it."""
    found = {}
    for task, gate in evaluation.gates.items():
        state, items = gate.state, candidate.tasks[task].items if task in candidate.tasks else ()
        ids, ours, theirs = align(items, baseline.tasks[task].items)
        flipped = flips(ours, theirs, ids)
        found[task] = TaskGate(
            task=task,
            decision=str(state.decision),
            reason=state.reason,
            delta_points=round(100 * gate.delta, 10),
            order=evaluation.drawings[task].order,
            num_items=state.num_items,
            num_items_total=state.num_items_total,
            decided_at=state.decided_at,
            difference=gate.confidence_sequence(CONFIDENCE) if state.num_items else None,
            log_e_pass=state.log_e_pass if math.isfinite(state.log_e_pass) else None,
            log_e_fail=state.log_e_fail if math.isfinite(state.log_e_fail) else None,
            flip_rate=gate.flip_rate() if state.num_items else None,
            gained=flipped.gained,
            lost=flipped.lost,
            divergence=divergence(items, baseline.tasks[task].items),
        )
    return found


def compare(
    candidate: QualityReport,
    baseline: QualityReport,
    evaluation: SequentialEvaluation,
    gate: GateConfig,
    seed: int,
) -> PairedComparison | None:
    """Difference and recovery: a paired bootstrap where every item was asked, else confidence sequences.

    None where a task was not evaluated, or where a stopped task's baseline is not complete.
    """
    if candidate.not_evaluated or not candidate.tasks:
        return None
    if all(result.is_complete and baseline.tasks[name].is_complete for name, result in candidate.tasks.items()):
        aligned = {name: align(result.items, baseline.tasks[name].items) for name, result in candidate.tasks.items()}
        rng = np.random.default_rng([seed, 0x5EED])
        ours, theirs = ({name: one[k] for name, one in aligned.items()} for k in (1, 2))
        return paired_bootstrap(ours, theirs, rng, num_draws=gate.num_resamples, confidence=CONFIDENCE)
    return _stopped_comparison(candidate, baseline, evaluation)


def _stopped_comparison(
    candidate: QualityReport, baseline: QualityReport, evaluation: SequentialEvaluation
) -> PairedComparison | None:
    names = list(evaluation.gates)
    if not all(baseline.tasks[name].is_complete and evaluation.gates[name].state.num_items for name in names):
        return None
    level = 1 - (1 - CONFIDENCE) / len(names)
    each = {name: evaluation.gates[name].confidence_sequence(level) for name in names}
    means = {name: baseline.tasks[name].estimate.value for name in names}
    method = f"confidence sequences, together {CONFIDENCE:.0%}, valid at any stopping time"
    ratios = {name: _moved(each[name], 1.0, 1 / means[name], method) if means[name] > 0 else None for name in names}
    known = [ratio for ratio in ratios.values() if ratio is not None]
    aligned = {name: align(candidate.tasks[name].items, baseline.tasks[name].items) for name in names}
    return PairedComparison(
        difference=_mean(list(each.values()), method),
        recovery=_mean(known, method) if len(known) == len(names) else None,
        recovery_missing="" if len(known) == len(names) else "a baseline's mean score is 0, so there is no ratio",
        differences=each,
        recoveries=ratios,
        flips={name: flips(ours, theirs, ids) for name, (ids, ours, theirs) in aligned.items()},
    )


def _moved(estimate: Estimate, shift: float, scale: float, method: str) -> Estimate:
    value, lo, hi = (max(0.0, shift + scale * one) for one in (estimate.value, estimate.lo, estimate.hi))
    return Estimate(value, lo, hi, estimate.num_samples, estimate.num_unscored, method)


def _mean(estimates: Sequence[Estimate], method: str) -> Estimate:
    triples = zip(*((e.value, e.lo, e.hi) for e in estimates), strict=True)
    value, lo, hi = (sum(values) / len(estimates) for values in triples)
    num_unscored = sum(e.num_unscored for e in estimates)
    return Estimate(value, min(lo, value), max(hi, value), sum(e.num_samples for e in estimates), num_unscored, method)


def _quality(
    quality: QualityReport, evaluation: SequentialEvaluation | None, tasks: Mapping[str, TaskGate], gate: GateConfig
) -> list[Verdict]:
    if quality.meaningless:
        return [Verdict(False, f"quality: {quality.meaningless}", "nobody: its quality says nothing")]
    if evaluation is None:
        words = "quality: candidate and baseline were not asked the same items in the same way"
        return [Verdict(False, words, "nobody: it cannot be compared")]
    verdicts = [_task(one, evaluation.combined, gate) for one in tasks.values()]
    return verdicts or [Verdict(False, "quality: no task decides", "nobody: gate.tasks is empty")]


def _task(one: TaskGate, combined: Combined, gate: GateConfig) -> Verdict:
    if one.difference is None:
        words = f"quality: {one.task}: not evaluated"
        if combined.because:
            words += f", because {combined.because} had ended the evaluation"
        return Verdict(False, words)
    d = one.difference
    figures = f"{100 * d.value:+.1f} points [{100 * d.lo:+.1f}, {100 * d.hi:+.1f}] against the baseline"
    asked = f"{one.num_items} of {one.num_items_total} items"
    words = {
        GateDecision.PASS: f"not worse by {one.delta_points:g} points or more",
        GateDecision.FAIL: f"worse by {one.delta_points:g} points or more",
        GateDecision.FUTILE: f"not shown within gate.max_items={gate.max_items}",
        GateDecision.UNDECIDED: "not decided by these answers",
    }[GateDecision(one.decision)]
    passed = one.decision == GateDecision.PASS
    beaten = "" if passed else f"the baseline on {one.task}: {figures}, {words} ({asked})"
    return Verdict(passed, f"quality: {one.task}: {figures}, {asked}: {words} ({how_sure(one, gate)})", beaten)


def how_sure(one: TaskGate, gate: GateConfig) -> str:
    """What a gate's answer rests on, in words."""
    level = best_of_k_level(gate.alpha, gate.num_candidates)
    if one.decision in (GateDecision.FUTILE, GateDecision.UNDECIDED):
        shown = 0.0 if one.log_e_pass is None else math.exp(min(one.log_e_pass, 700))
        return f"e-value {shown:.3g}, {1 / level:.0f} is needed"
    if one.reason == "exact":
        return "by all items"
    if one.reason == "certain":
        return "certain: the items left cannot change it"
    log_e, error = (one.log_e_pass, level) if one.decision == GateDecision.PASS else (one.log_e_fail, gate.beta)
    shown = math.inf if log_e is None else math.exp(min(log_e, 700))
    return f"shown at {error:.3g} error, e-value {shown:.3g}"


def _price(candidate: CostReport, other: CostReport, name: str) -> Verdict:
    ours, theirs = candidate.usd_per_1k_tokens, other.usd_per_1k_tokens
    if ours is None or theirs is None:
        missing = candidate.missing.get("usd_per_1k_tokens") or other.missing.get("usd_per_1k_tokens", "not measured")
        return Verdict(False, f"price: unknown: {missing}", f"{name}: no price was measured here ({missing})")
    change = float(ours.value / theirs.value) - 1
    figures = f"{ours.value:.3g} against {theirs.value:.3g} USD per 1k tokens ({change:+.1%})"
    cheaper = ours.value < theirs.value
    reason = f"price: {figures}: {'cheaper' if cheaper else 'not cheaper'} than {name}"
    return Verdict(cheaper, reason, "" if cheaper else f"{name} on price: {figures}")


def _slo(load: LoadReport, gate: GateConfig) -> Sequence[Verdict]:
    limits = {"ttft_p99_s": gate.slo_ttft_p99_s, "tpot_p99_s": gate.slo_tpot_p99_s}
    verdicts = []
    for metric, limit in limits.items():
        if limit is None:
            continue
        if load.theta_slo is not None:
            verdicts.append(_searched(load.theta_slo, metric, limit))
            continue
        worst = worst_latency(load, metric)
        if worst is None:
            words = f"SLO: {metric} was not measured"
            verdicts.append(Verdict(False, words, f"the {words}"))
        else:
            holds = worst <= limit
            figures = f"{metric} {worst:.3g} s {'holds' if holds else 'breaks'} the limit of {limit:g} s"
            beaten = "" if holds else f"the SLO: {figures}, {worst / limit - 1:.0%} over it"
            verdicts.append(Verdict(holds, f"SLO: {figures}", beaten))
    return verdicts


def _searched(theta: ThetaSlo, metric: str, limit: float) -> Verdict:
    """Where the load looked for theta_slo the price stands on that rate, and so does the objective."""
    searched = getattr(theta, metric)
    if searched is None or searched > limit:
        bound = "no limit" if searched is None else f"{searched:g} s"
        words = f"{metric} <= {limit:g} s is asked for, theta_slo was searched with {bound}"
        way_out = f"load.search.slo_{metric}={limit:g} searches with it"
        return Verdict(False, f"SLO: {words}; {way_out}", f"the SLO: {words}")
    if theta.held_req_per_s is None:
        words = f"{metric} <= {searched:g} s: {theta.reason}"
        return Verdict(False, f"SLO: {words}", f"the SLO: {words}")
    return Verdict(True, f"SLO: {metric} <= {searched:g} s holds at {theta.held_req_per_s:g} requests/s (theta_slo)")


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
    """Mean over tasks, with the tasks' intervals combined in quadrature.

    None where the scores mean nothing, or where a task was not evaluated: another set of tasks has another mean.
    """
    estimates = [result.estimate for result in report.tasks.values()]
    if report.meaningless or report.not_evaluated or not estimates:
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
