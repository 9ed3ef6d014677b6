"""What the gates say of recorded answers: each task's gate replayed, and the distance to the baseline. Pure.

The decision (`evals/decide/decide.py`) rests on it, the decision's page shows it, and MLflow's `gate/...` metrics hold
it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evals.config import GateConfig
from evals.gate.divergence import divergence
from evals.gate.gate import Gate, Verdict
from evals.gate.items_left import items_to_decide
from evals.gate.population import questions_like_these
from evals.gate.scores import margin_unit
from evals.gate.sequential import GateRule, SequentialEvaluation, TaskGates, replay
from evals.stats import PairedComparison, align, flips, paired_bootstrap
from evals.types import Estimate, GuardGate, QualityReport, TaskGate

CONFIDENCE = 0.95
GUARD_FACTOR = 1.5
"""The margin of the accuracy's guard, as a multiple of the task's margin, where none is given.

A variant that loses three points of accuracy, and less of the right choice's probability, passed a margin of two
points in up to 78% of orders behind a guard of 2.5 margins, and in 5% behind this one (docs/statistics.md).
"""


def rule_of(gate: GateConfig, tasks: Sequence[str], level: float) -> GateRule:
    """The gates' rule for a suite of these tasks; single margins and `gate.tasks` are applied.

    `level` is the error level at which the candidate is tested.
    """
    points = gate.margins(tasks)
    guards = {task: guard_points(gate, value) for task, value in points.items()}
    return GateRule(
        deltas={task: round(value / 100, 12) for task, value in points.items()},
        guard_deltas={task: round(value / 100, 12) for task, value in guards.items()},
        alpha=level,
        beta=gate.beta,
        order=gate.order,
        score=gate.score,
        stop_early=gate.stop_early,
        max_items=gate.max_items,
        block_items=gate.block_items,
    )


def guard_points(gate: GateConfig, delta_points: float) -> float:
    """The accuracy's margin beside a task's own, in points."""
    if gate.guard_delta_points is None:
        return min(GUARD_FACTOR * delta_points, 99.0)
    return max(gate.guard_delta_points, delta_points)  # a stricter guard would decide in the margin's place


def gates_of(
    candidate: QualityReport, baseline: QualityReport, gate: GateConfig, level: float
) -> SequentialEvaluation | None:
    """The gates over the recorded answers; None where the two were not asked the same items in the same way."""
    for name, result in candidate.tasks.items():
        other = baseline.tasks.get(name)
        if other is None or other.settings_digest != result.settings_digest:
            return None
    rule = rule_of(gate, list(baseline.tasks), level)
    if any(task not in baseline.tasks for task in rule.deltas):
        return None
    return replay(candidate.tasks, baseline.tasks, rule)


def task_gates(
    evaluation: SequentialEvaluation, candidate: QualityReport, baseline: QualityReport, seed: int
) -> dict[str, TaskGate]:
    """What each gate says, with the figures that a reader wants beside it; `seed` is the simulation of what is left."""
    found = {}
    for task, gates in evaluation.tasks.items():
        state, main = gates.state, gates.main
        items = candidate.tasks[task].items if task in candidate.tasks else ()
        ids, ours, theirs = align(items, baseline.tasks[task].items)
        flipped = flips(ours, theirs, ids)
        is_asked = main.state.num_items > 0
        left = None
        if is_asked and state.decision not in (Verdict.PASS, Verdict.FAIL):
            left = items_to_decide(evaluation, task, np.random.default_rng([seed, 0xF0CA57]))
        unit = margin_unit(gates.score)
        found[task] = TaskGate(
            task=task,
            decision=str(state.decision),
            reason=state.reason,
            delta_points=_points(evaluation.rule.deltas[task]),
            order=evaluation.orders[task].kind,
            num_items=state.num_items,
            num_items_total=state.num_items_total,
            decided_at=state.decided_at,
            difference=main.confidence_sequence(CONFIDENCE) if is_asked else None,
            log_e_pass=_finite(main.state.log_e_pass),
            log_e_fail=_finite(main.state.log_e_fail),
            flip_rate=gates.accuracy.flip_rate() if is_asked else None,
            gained=flipped.gained,
            lost=flipped.lost,
            divergence=divergence(items, baseline.tasks[task].items),
            score=gates.score,
            margin_points=_points(main.delta),
            guard=_guard(gates),
            max_log_e_pass=main.state.max_log_e_pass,
            max_at=main.state.max_at,
            smallest_margin_points=_smallest_margin(main, evaluation.rule.alpha, unit) if is_asked else None,
            items_to_decide=None if left is None else left.num_items,
            like_these=questions_like_these(main, CONFIDENCE, seed=seed) if is_asked else None,
        )
    return found


def _smallest_margin(gate: Gate, level: float, unit: float) -> float | None:
    shown = gate.smallest_margin(level, unit)
    return None if shown is None else _points(shown)


def _points(share: float) -> float:
    return round(100 * share, 10)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _guard(gates: TaskGates) -> GuardGate | None:
    if not gates.is_guarded:
        return None
    gate = gates.accuracy
    return GuardGate(
        decision=str(gate.state.decision),
        reason=gate.state.reason,
        delta_points=_points(gate.delta),
        reject_points=_points(gate.reject_delta),
        difference=gate.confidence_sequence(CONFIDENCE) if gate.state.num_items else None,
        log_e_pass=_finite(gate.state.log_e_pass),
    )


def compare(
    candidate: QualityReport,
    baseline: QualityReport,
    evaluation: SequentialEvaluation,
    gate: GateConfig,
    seed: int,
) -> PairedComparison | None:
    """Difference and recovery in accuracy over the whole benchmark, and the difference for questions like these.

    Where every item was asked, the benchmark's figures are known, and a paired bootstrap tells of questions like these;
    else both rest on confidence sequences. None where a task was not evaluated.
    """
    if candidate.not_evaluated or not candidate.tasks:
        return None
    if all(result.is_complete and baseline.tasks[name].is_complete for name, result in candidate.tasks.items()):
        aligned = {name: align(result.items, baseline.tasks[name].items) for name, result in candidate.tasks.items()}
        rng = np.random.default_rng([seed, 0x5EED])
        ours, theirs = ({name: one[k] for name, one in aligned.items()} for k in (1, 2))
        found = paired_bootstrap(ours, theirs, rng, num_draws=gate.num_resamples, confidence=CONFIDENCE)
        return replace(
            found,
            difference=_known(found.difference),
            recovery=None if found.recovery is None else _known(found.recovery),
            differences={name: _known(one) for name, one in found.differences.items()},
            recoveries={name: None if one is None else _known(one) for name, one in found.recoveries.items()},
            like_these=found.difference,
        )
    return _stopped_comparison(candidate, baseline, evaluation, seed)


def _known(estimate: Estimate) -> Estimate:
    """The same figure about the benchmark, all of whose items were asked."""
    return replace(estimate, lo=estimate.value, hi=estimate.value, method="exact: all items of the benchmark")


def _stopped_comparison(
    candidate: QualityReport, baseline: QualityReport, evaluation: SequentialEvaluation, seed: int
) -> PairedComparison | None:
    gates = {name: found.accuracy for name, found in evaluation.tasks.items()}
    names = list(gates)
    if not all(gates[name].state.num_items for name in names):
        return None
    level = 1 - (1 - CONFIDENCE) / len(names)
    each = {name: gates[name].confidence_sequence(level) for name in names}
    means = {name: baseline.tasks[name].estimate.value for name in names if baseline.tasks[name].is_complete}
    method = f"confidence sequences, together {CONFIDENCE:.0%}, valid at any stopping time"
    ratios = {
        name: _moved(each[name], 1.0, 1 / means[name], method) if means.get(name, 0.0) > 0 else None for name in names
    }
    known = [ratio for ratio in ratios.values() if ratio is not None]
    aligned = {name: align(candidate.tasks[name].items, baseline.tasks[name].items) for name in names}
    return PairedComparison(
        difference=_mean(list(each.values()), method),
        recovery=_mean(known, method) if len(known) == len(names) else None,
        recovery_missing="" if len(known) == len(names) else _no_ratio(len(means) < len(names)),
        differences=each,
        recoveries=ratios,
        flips={name: flips(ours, theirs, ids) for name, (ids, ours, theirs) in aligned.items()},
        like_these=_mean([questions_like_these(gates[name], level, seed=seed) for name in names], f"{method}, i.i.d."),
    )


def _no_ratio(is_partial: bool) -> str:
    return "the baseline was asked a part of its items" if is_partial else "a baseline's mean score is 0"


def _moved(estimate: Estimate, shift: float, scale: float, method: str) -> Estimate:
    value, lo, hi = (max(0.0, shift + scale * one) for one in (estimate.value, estimate.lo, estimate.hi))
    return Estimate(value, lo, hi, estimate.num_samples, estimate.num_unscored, method)


def _mean(estimates: Sequence[Estimate], method: str) -> Estimate:
    triples = zip(*((e.value, e.lo, e.hi) for e in estimates), strict=True)
    value, lo, hi = (sum(values) / len(estimates) for values in triples)
    num_unscored = sum(e.num_unscored for e in estimates)
    return Estimate(value, min(lo, value), max(hi, value), sum(e.num_samples for e in estimates), num_unscored, method)


def describe_task(one: TaskGate, gate: GateConfig) -> str:
    """A gate's answer with its figures, as text: about this benchmark first, then about questions like these."""
    asked = f"{one.num_items} of {one.num_items_total} items"
    if one.score == "accuracy":
        text = f"{_difference(one.difference)} against the baseline"
    else:
        text = f"probability of the right choice {_difference(one.difference)} against the baseline"
    text += f" on this benchmark ({asked}): {_result(one, gate)}"
    if one.guard is not None:
        guard = one.guard
        text += f"; accuracy {_difference(guard.difference)}: {_guard_result(guard)}"
    if one.like_these is not None:
        text += f"; questions like these: [{100 * one.like_these.lo:+.1f}, {100 * one.like_these.hi:+.1f}]"
    return text


def _difference(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not measured"
    points = f"{100 * estimate.value:+z.1f} points"
    if estimate.lo == estimate.hi:
        return points
    return f"{points} [{100 * estimate.lo:+z.1f}, {100 * estimate.hi:+z.1f}]"


def _margin(one: TaskGate) -> str:
    tested = one.delta_points if one.margin_points is None else one.margin_points
    if tested == one.delta_points:
        return f"{tested:g} points"
    return f"{tested:g} points (a margin of {one.delta_points:g} on this score)"


def _result(one: TaskGate, gate: GateConfig) -> str:
    if one.decision == Verdict.PASS:
        return f"not worse by {_margin(one)} or more ({_how_sure(one, gate)})"
    if one.decision == Verdict.FAIL:
        is_guards = one.guard is not None and one.guard.decision == Verdict.FAIL
        return "see the accuracy" if is_guards else f"worse by {_margin(one)} or more ({_how_sure(one, gate)})"
    shown = one.smallest_margin_points
    margin = "no margin is shown yet" if shown is None else f"the smallest margin shown so far is {shown:g}"
    text = f"a margin of {one.delta_points:g} points is not decided; {margin}"
    if one.items_to_decide is not None:
        left = one.num_items_total - one.num_items
        text += f", {one.delta_points:g} takes about {one.items_to_decide} of the {left} items left"
    return text


def _guard_result(guard: GuardGate) -> str:
    failed = guard.reject_points if guard.reason == "e-value" else guard.delta_points
    return {
        Verdict.PASS: f"not worse by {guard.delta_points:g} points or more",
        Verdict.FAIL: f"worse by {failed:g} points or more",
    }.get(Verdict(guard.decision), f"a margin of {guard.delta_points:g} points is not decided")


def _how_sure(one: TaskGate, gate: GateConfig) -> str:
    """What a gate's answer rests on."""
    if one.reason == "exact":
        return "by all items"
    if one.reason == "certain":
        return "certain: the items left cannot change it"
    if one.decision == Verdict.PASS:
        return f"e-value {_e_value(one.max_log_e_pass)} at item {one.max_at}"
    return f"error {gate.beta:g}" if one.log_e_fail is None else f"e-value {_e_value(one.log_e_fail)}"


def _e_value(log_e: float) -> str:
    return f"{math.exp(min(log_e, 700)):.3g}"
