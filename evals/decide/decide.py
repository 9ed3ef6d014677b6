"""The decision: promote the cheapest candidate that is shown to be good enough, cheaper, and within the SLO. Pure.

A candidate must pass its gate on every task that decides (`evals/gate/gate.py`, replayed from the recorded outcomes),
cost less than the baseline by more than chance and drift explain, and meet the p99 latencies where an SLO is given.
Each requirement is met, failed or undecided. A candidate that fails one is rejected; one that fails none, but has one
undecided, is not decided; the others pass, and of several the cheapest is promoted. Every reason carries its figures,
and so does every reason against a promotion.

Each candidate is tested at its own error level: its share of what is promised for all that are ever tried against the
baseline (`evals/decide/declared.py`). Some candidate that is worse by its margin is then promoted with a probability of
at most `gate.alpha`, however many are tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evals.config import GateConfig
from evals.decide.evidence import Evidence, PriceVerdict, comparable_usd, price_verdict, worst_latency
from evals.decide.noise_floor import floor_problem
from evals.decide.task_gates import compare, describe_task, gates_of, task_gates
from evals.gate.gate import Verdict
from evals.gate.sequential import SequentialEvaluation
from evals.stats import PairedComparison
from evals.types import Decision, DecisionEvidence, LoadReport, QualityReport, TaskGate, ThetaSlo

Answer = Literal["met", "failed", "undecided"]
WORDS: Mapping[Answer, str] = {"met": "passed", "failed": "not met", "undecided": "not decided"}


@dataclass(frozen=True)
class Requirement:
    """One requirement's answer."""

    answer: Answer
    reason: str
    against: str = ""
    """What speaks against the promotion, with its figures; empty where the requirement is met."""


@dataclass(frozen=True)
class Candidate:
    """A candidate to decide on."""

    evidence: Evidence
    level: float
    """The error level at which it is tested."""


def decide(
    candidate: Candidate, baseline: Evidence, gate: GateConfig, seed: int
) -> tuple[Decision, PairedComparison | None]:
    """Decide on one candidate against its baseline. Also returns its distance from the baseline, if known."""
    evidence, level = candidate.evidence, candidate.level
    evaluation = gates_of(evidence.quality, baseline.quality, gate, level)
    comparison = None if evaluation is None else compare(evidence.quality, baseline.quality, evaluation, gate, seed)
    tasks = {} if evaluation is None else task_gates(evaluation, evidence.quality, baseline.quality, seed)
    price = price_verdict(evidence, baseline)
    requirements = [
        *_quality(evidence.quality, baseline.quality, evaluation, tasks, gate),
        _price(price),
        *_slo(evidence.load, gate),
    ]
    action = _action(requirements)
    found = DecisionEvidence(
        tasks=tasks,
        recovery=None if comparison is None else comparison.recovery,
        usd_per_1k_tokens=evidence.cost.usd_per_1k_tokens,
        baseline_usd_per_1k_tokens=baseline.cost.usd_per_1k_tokens,
        price_ratio=price.ratio,
        passed=action == "promote",
        beaten_by=tuple(one.against for one in requirements if one.against),
        level=level,
    )
    reasons = tuple(f"{WORDS[one.answer]}: {one.reason}" for one in requirements)
    return Decision(action, evidence.label, reasons, gate, found), comparison


def _action(requirements: Sequence[Requirement]) -> str:
    answers = {one.answer for one in requirements}
    return "reject" if "failed" in answers else "undecided" if "undecided" in answers else "promote"


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


def rank(candidates: Sequence[Candidate], baseline: Evidence, gate: GateConfig, seed: int) -> Ranking:
    """Decide on several candidates: the cheapest of those that passed wins, ties by label."""
    decided = [decide(candidate, baseline, gate, seed) for candidate in candidates]
    evidence = [candidate.evidence for candidate in candidates]
    decisions = [decision for decision, _ in decided]
    passed = [index for index, decision in enumerate(decisions) if decision.action == "promote"]
    winner = min(passed, key=lambda index: (_usd(evidence[index], baseline), evidence[index].label), default=None)
    for index in passed:
        if winner is not None and index != winner:
            decisions[index] = _outbid(decisions[index], _beaten_on_price(evidence[index], evidence[winner], baseline))
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
    if len(decisions) < 2:
        return ()
    levels = ", ".join(f"{one.variant} at {one.evidence.level:.2%}" for one in decisions)
    return (
        f"{len(decisions)} candidates were tested against this baseline, each at its own share of gate.alpha "
        f"({levels}): some candidate worse by its margin is promoted with a chance of at most {gate.alpha:.0%}",
    )


def _usd(evidence: Evidence, baseline: Evidence) -> float:
    usd = comparable_usd(evidence, baseline)
    return math.inf if usd is None else float(usd)


def _beaten_on_price(loser: Evidence, winner: Evidence, baseline: Evidence) -> str:
    ours, theirs = _usd(winner, baseline), _usd(loser, baseline)
    more = theirs / ours - 1
    figures = f"{ours:.3g} against {theirs:.3g} USD per 1k tokens"
    return f"'{winner.label}' passed too and is cheaper: {figures} ({more:.1%} more expensive)"


def _quality(
    quality: QualityReport,
    baseline: QualityReport,
    evaluation: SequentialEvaluation | None,
    tasks: Mapping[str, TaskGate],
    gate: GateConfig,
) -> list[Requirement]:
    if quality.quality_invalid_reason:
        text = quality.quality_invalid_reason
        return [Requirement("undecided", f"quality: {text}", f"its quality is not valid: {text}")]
    if evaluation is None:
        text = "candidate and baseline were not asked the same items in the same way"
        return [Requirement("undecided", f"quality: {text}", f"its quality cannot be compared: {text}")]
    requirements = [_task(one, evaluation, gate, floor_problem(one, quality, baseline)) for one in tasks.values()]
    nothing = Requirement("undecided", "quality: no task decides", "no task decides: gate.tasks is empty")
    return requirements or [nothing]


def _task(one: TaskGate, evaluation: SequentialEvaluation, gate: GateConfig, below_noise: str | None) -> Requirement:
    if one.difference is None:
        combined = evaluation.combined
        why = f", because {combined.because} had ended the evaluation" if combined.because else ""
        return Requirement("undecided", f"quality: {one.task}: not evaluated{why}")
    if below_noise is not None and one.decision != Verdict.FAIL:
        text = f"{one.task}: {below_noise}"
        return Requirement("undecided", f"quality: {text}", text)
    answers: dict[str, Answer] = {Verdict.PASS: "met", Verdict.FAIL: "failed"}
    answer = answers.get(one.decision, "undecided")
    text = f"{one.task}: {describe_task(one, gate)}"
    return Requirement(answer, f"quality: {text}", "" if answer == "met" else text)


def _price(verdict: PriceVerdict) -> Requirement:
    answers: dict[str, Answer] = {"cheaper": "met", "not cheaper": "failed", "undecided": "undecided"}
    answer = answers[verdict.kind]
    against = "" if answer == "met" else f"it is not shown to be cheaper than the baseline: {verdict.text}"
    return Requirement(answer, f"price: {verdict.text}", against)


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
            requirements.append(Requirement("undecided", f"SLO: {text}", f"the SLO cannot be checked: {text}"))
        else:
            is_met = worst <= limit
            figures = f"{metric} {worst:.3g} s {'meets' if is_met else 'exceeds'} the limit of {limit:g} s"
            against = "" if is_met else f"it misses the SLO: {figures} by {worst / limit - 1:.0%}"
            requirements.append(Requirement("met" if is_met else "failed", f"SLO: {figures}", against))
    return requirements


def _searched(theta: ThetaSlo, metric: str, limit: float) -> Requirement:
    """Where the load searched for theta_slo, the price rests on that rate, and so does the objective."""
    searched = getattr(theta, metric)
    if searched is None or searched > limit:
        bound = "no limit" if searched is None else f"{searched:g} s"
        text = f"{metric} <= {limit:g} s is asked for, theta_slo was searched with {bound}"
        way_out = f"load.search.slo_{metric}={limit:g} searches with it"
        return Requirement("undecided", f"SLO: {text} ({way_out})", f"the SLO cannot be checked: {text}")
    if theta.held_req_per_s is None:
        text = f"{metric} <= {searched:g} s: {theta.reason}"
        return Requirement("failed", f"SLO: {text}", f"it misses the SLO: {text}")
    text = f"{metric} <= {searched:g} s is met at {theta.held_req_per_s:g} requests/s (theta_slo)"
    return Requirement("met", f"SLO: {text}")
