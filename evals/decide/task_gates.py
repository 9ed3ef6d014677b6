"""What the gates say of recorded answers: each task's gate replayed, and the distance to the baseline. Pure.

The decision (`evals/decide/decide.py`) rests on it, the decision's page shows it, and MLflow's `gate/...` metrics hold
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evals.config import GateConfig
from evals.gate.divergence import divergence
from evals.gate.gate import Verdict, best_of_k_level
from evals.gate.sequential import GateRule, SequentialEvaluation, replay
from evals.stats import PairedComparison, align, flips, paired_bootstrap
from evals.types import Estimate, QualityReport, TaskGate

CONFIDENCE = 0.95


def rule_of(gate: GateConfig, tasks: Sequence[str]) -> GateRule:
    """The gates' rule for a suite of these tasks; single margins and `gate.tasks` are applied."""
    deciding = list(tasks) if gate.tasks is None else gate.tasks
    points = {task: gate.task_delta_points.get(task, gate.delta_points) for task in deciding}
    return GateRule(
        deltas={task: round(value / 100, 12) for task, value in points.items()},
        alpha=best_of_k_level(gate.alpha, gate.num_candidates),
        beta=gate.beta,
        order=gate.order,
        score="accuracy",
        stop_early=gate.stop_early,
        max_items=gate.max_items,
        block_items=gate.block_items,
    )


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
            order=evaluation.orders[task].kind,
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


def how_sure(one: TaskGate, gate: GateConfig) -> str:
    """What a gate's answer rests on, as text."""
    level = best_of_k_level(gate.alpha, gate.num_candidates)
    if one.decision in (Verdict.FUTILE, Verdict.UNDECIDED):
        shown = 0.0 if one.log_e_pass is None else math.exp(min(one.log_e_pass, 700))
        return f"e-value {shown:.3g}, {1 / level:.0f} is needed"
    if one.reason == "exact":
        return "by all items"
    if one.reason == "certain":
        return "certain: the items left cannot change it"
    log_e, error = (one.log_e_pass, level) if one.decision == Verdict.PASS else (one.log_e_fail, gate.beta)
    shown = math.inf if log_e is None else math.exp(min(log_e, 700))
    return f"shown at {error:.3g} error, e-value {shown:.3g}"
