"""Which items to ask next, and when to stop: the gates of several tasks, fed block by block. Pure.

A candidate is asked the items of each task in one order that is drawn beforehand (`draw_orders`). After each block the
task's gates (`evals/gate/gate.py`) see the differences to the baseline's scores. The tasks take turns; the first one
that fails ends the evaluation, and so does the last one that passes.

    orders = draw_orders(baseline_tasks, rule, guided_identity=..., uniform_identity=...)
    evaluation = SequentialEvaluation(orders, scores_of(baseline_tasks), rule)
    while (block := evaluation.next_block()) is not None:
        evaluation.feed(block.task, [ask(item) for item in block.item_ids])

`replay` gives the same gates from recorded outcomes: a decision needs no more than a report.

The order. It is drawn by a generator whose seed is the SHA-256 of ["order", task, identity]. The identity is made of
digests: candidate, baseline and suite for a guided order, baseline and suite for a uniform one. So nobody has a second
draw: the same candidate meets the same order however often it is tried, and no setting moves it. To the gate the order
is random as long as the answers do not depend on this hash, which no model's do.

Lockstep. A guided order needs the baseline's answers to every item. In a task of more than `LOCKSTEP_ABOVE` items that
costs more than it saves: `order=auto` then asks baseline and candidate the same first items of one uniform order.

Two gates a task. Where the score is the probability of the right choice, its margin is `EQUAL_STRICTNESS` times the
declared one, and a guard with the looser margin `guard_deltas` looks at the accuracy of the same items. The candidate
passes the task when both pass and fails when either fails. The guard fails it early as soon as the accuracy is shown to
be worse by the declared margin: such a candidate is none that one would want to ask more. (Between the two margins
of accuracy the answer may be either; a candidate within the declared margin on both scores is rejected early by each
gate with probability at most beta.) The null hypothesis "worse by the margin in probability, or
by the guard's margin in accuracy" is a union, and each part is tested at alpha: a false pass of the pair is a false
pass of the gate whose hypothesis is true, so it has probability at most alpha without a correction (Berger 1982).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from core.errors import ConfigError, closest
from core.files import digest_json
from evals.gate.betting import PRIOR_FLIP_RATE, make_schedule
from evals.gate.gate import Combined, Gate, GateState, Verdict, both, combine, differences
from evals.gate.intervals import confidence_bounds
from evals.gate.ordering import guide_weights, guided_order, margin, margin_ranks, probability_weights, uniform_order
from evals.gate.scores import ItemScore, margin_unit, require_score, score_kind, scores_of
from evals.types import Estimate, SamplingOrder, TaskResult

ORDERS = ("auto", "guided", "uniform")
LOCKSTEP_ABOVE = 2000
"""Items of a task above which `order=auto` asks baseline and candidate in lockstep, neither in full."""
PRIOR_OF_PROBABILITY = 0.01
"""Mean square of a difference of probabilities that is expected before the first one."""
Scores = Mapping[int, ItemScore]


@dataclass(frozen=True)
class GateRule:
    """What the gates are told.

    Raises:
        ConfigError: a value is out of its range; the message names its key.

    """

    deltas: Mapping[str, float]
    """Margin per task that decides, as a share of the accuracy: 0.02 is 2 points."""
    guard_deltas: Mapping[str, float] = field(default_factory=dict)
    """Margin of the guard on accuracy, per task whose score is the probability; empty: no guard."""
    alpha: float = 0.05
    """Probability, at most, that this candidate is promoted although it is worse by a margin (`attempt_level`)."""
    beta: float = 0.05
    """Probability of a false rejection by the e-value, at most, of each gate."""
    order: str = "auto"
    """`guided` by the baseline's answers or token counts, `uniform`, or `auto`: uniform above `LOCKSTEP_ABOVE`."""
    score: str = "probability"
    """`probability` of the right choice where the baseline has one for every item, else and otherwise `accuracy`."""
    stop_early: bool = True
    """False asks every item and decides by all of them."""
    max_items: int | None = None
    """Budget per task; a task undecided there is futile, which is no pass."""
    block_items: int = 32
    """Items asked between two looks."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"gate.order={self.order}: not one of {', '.join(ORDERS)}{closest(self.order, ORDERS)}")
        require_score(self.score)
        for key in ("alpha", "beta"):
            value = getattr(self, key)
            if not 0 < value < 1:
                raise ConfigError(f"gate.{key}={value}: must lie between 0 and 1, it is an error probability")
        for key in ("block_items", "max_items"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"gate.{key}={value}: must be at least 1")
        for key, margins in (("delta_points", self.deltas), ("guard_delta_points", self.guard_deltas)):
            for task, share in margins.items():
                if not 0 <= share < 1:
                    raise ConfigError(f"gate.{key}={100 * share:g} for '{task}': must be at least 0 and below 100")


@dataclass(frozen=True)
class Block:
    """Items of one task to ask together."""

    task: str
    item_ids: tuple[int, ...]


def uniform_sampling_order(task: str, item_ids: Sequence[int], identity: str) -> SamplingOrder:
    """The uniform permutation of the items that belongs to this identity and this task."""
    order = uniform_order(len(item_ids), _generator(task, identity))
    return SamplingOrder("uniform", tuple(int(item_ids[i]) for i in order))


def task_score(task: str, baseline: TaskResult, rule: GateRule) -> str:
    """`probability` or `accuracy`: what this task's margin is about. It rests on the baseline's answers alone."""
    return score_kind(scores_of({task: baseline})[task].values(), rule.score)


def order_kind(task: str, baseline: TaskResult, rule: GateRule) -> str:
    """`guided` or `uniform`: how this task's order is drawn."""
    if rule.order == "uniform" or (rule.order == "auto" and len(baseline.items) > LOCKSTEP_ABOVE):
        return "uniform"
    if task_score(task, baseline, rule) == "probability" or _costs(baseline) is not None:
        return "guided"
    return (
        "guided" if any(margin(item.loglikelihoods, item.target) is not None for item in baseline.items) else "uniform"
    )


def draw_order(task: str, baseline: TaskResult, rule: GateRule, identity: str) -> SamplingOrder:
    """The order for one task, from the baseline's outcomes and an identity alone.

    Where the baseline has not answered every item yet, its own uniform order is kept, so that the same items come
    first.
    """
    if baseline.sampling_order is not None and not baseline.is_complete:
        return baseline.sampling_order
    items = sorted(baseline.items, key=lambda item: item.item_id)
    ids, margins = [item.item_id for item in items], [margin(item.loglikelihoods, item.target) for item in items]
    if order_kind(task, baseline, rule) == "uniform":
        if baseline.sampling_order is not None and baseline.sampling_order.kind == "uniform":
            return baseline.sampling_order
        return uniform_sampling_order(task, ids, identity)
    if task_score(task, baseline, rule) == "probability":
        known = scores_of({task: baseline})[task]
        weights = probability_weights([known[item_id].probability or 0.0 for item_id in ids])
        ranks = margin_ranks(margins)
    else:
        guide = guide_weights(margins, _costs(baseline))
        weights, ranks = guide.weights, guide.ranks
    order = guided_order(weights, _generator(task, identity))
    return SamplingOrder(
        "guided",
        tuple(ids[i] for i in order),
        tuple(weights[order].tolist()),
        tuple(None if math.isnan(rank) else rank for rank in ranks[order].tolist()),
    )


def _costs(baseline: TaskResult) -> list[float] | None:
    """Tokens of every item, by item id; None where one is not known."""
    costs = [float(item.num_tokens or 0) for item in sorted(baseline.items, key=lambda item: item.item_id)]
    return costs if costs and all(cost > 0 for cost in costs) else None


def draw_orders(
    baseline: Mapping[str, TaskResult], rule: GateRule, *, guided_identity: str, uniform_identity: str
) -> dict[str, SamplingOrder]:
    """The orders of all tasks that decide.

    `guided_identity` is a digest of candidate, baseline and suite; `uniform_identity` one of baseline and suite, since
    all candidates share a uniform order with the baseline.

    Raises:
        ConfigError: the rule names a task that the baseline was not asked.

    """
    for key, named in (("gate.tasks", rule.deltas), ("gate.guard_delta_points", rule.guard_deltas)):
        for task in named:
            if task not in baseline:
                raise ConfigError(
                    f"{key}: '{task}' is not in the suite{closest(task, baseline)}; its tasks: {', '.join(baseline)}"
                )
    identities = {"guided": guided_identity, "uniform": uniform_identity}
    return {
        task: draw_order(task, baseline[task], rule, identities[order_kind(task, baseline[task], rule)])
        for task in rule.deltas
    }


def make_gate(order: SamplingOrder, deltas: tuple[float, float], rule: GateRule, baseline: Scores, score: str) -> Gate:
    """One gate of one task on one score; `deltas` are the margins on that score, to pass and to be rejected early.

    It predicts flips where the order is guided, the score is the accuracy and the baseline's are all there.
    """
    is_guided, ids = order.kind == "guided", order.item_ids
    known = {item_id: one.of(score) for item_id, one in baseline.items()}
    # Not asked: not known. Asked and not scored: 1, the worst case for the candidate (see `differences`).
    scores = [(1.0 if known[i] is None else known[i]) if i in known else None for i in ids]
    can_predict = is_guided and bool(order.ranks) and score == "accuracy" and None not in scores
    return Gate(
        len(ids),
        deltas[0],
        reject_delta=deltas[1],
        alpha=rule.alpha,
        beta=rule.beta,
        order_weights=order.weights if is_guided else None,
        ranks=order.ranks if can_predict else None,
        baseline=scores,
        second_moment=PRIOR_OF_PROBABILITY if score == "probability" else PRIOR_FLIP_RATE,
        max_items=rule.max_items,
        stop_early=rule.stop_early,
    )


@dataclass(frozen=True)
class TaskGates:
    """The gates of one task; both see the same items in the same order."""

    score: str
    """What the main gate compares: `probability` or `accuracy`."""
    main: Gate
    """With the declared margin, on the scale of its score."""
    accuracy: Gate
    """On accuracy: the main gate itself, the guard, or, without a guard, one that is shown and decides nothing."""
    is_guarded: bool
    """Whether `accuracy` decides beside `main`."""

    @property
    def decided_by(self) -> str:
        """The score whose gate failed or waits: `accuracy` where only the guard did, else the main gate's."""
        main, guard = self.main.state.decision, self.accuracy.state.decision
        return "accuracy" if self.is_guarded and main is not guard and self.state.decision is guard else self.score

    @property
    def state(self) -> GateState:
        """The task's verdict."""
        return both(self.main.state, self.accuracy.state) if self.is_guarded else self.main.state

    def update(self, candidate: Sequence[ItemScore], baseline: Sequence[ItemScore]) -> GateState:
        """Feed the scores of the next items, in sampling order; one that is missing is the worst for the candidate."""
        for score, gate in self._each:
            gate.update(differences([one.of(score) for one in candidate], [one.of(score) for one in baseline]))
        return self.state

    @property
    def _each(self) -> tuple[tuple[str, Gate], ...]:
        mine = (self.score, self.main)
        return (mine,) if self.main is self.accuracy else (mine, ("accuracy", self.accuracy))


def make_task_gates(task: str, order: SamplingOrder, rule: GateRule, baseline: Scores) -> TaskGates:
    """The gates of one task under a rule."""
    delta, score = rule.deltas[task], score_kind(baseline.values(), rule.score)
    if score == "accuracy":
        gate = make_gate(order, (delta, delta), rule, baseline, score)
        return TaskGates(score, gate, gate, is_guarded=False)
    mine = round(margin_unit(score) * delta, 12)
    main = make_gate(order, (mine, mine), rule, baseline, score)
    guard_delta = rule.guard_deltas.get(task, delta)
    guard = make_gate(order, (guard_delta, min(delta, guard_delta)), rule, baseline, "accuracy")
    return TaskGates(score, main, guard, is_guarded=task in rule.guard_deltas)


@dataclass
class SequentialEvaluation:
    """The tasks' gates and what each of them has been fed. Same scores, same blocks: it has no clock."""

    orders: Mapping[str, SamplingOrder]
    baseline: Mapping[str, Scores]
    rule: GateRule
    tasks: dict[str, TaskGates] = field(init=False)
    _turn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.tasks = {
            task: make_task_gates(task, order, self.rule, self.baseline[task]) for task, order in self.orders.items()
        }

    @property
    def gates(self) -> dict[str, Gate]:
        """Each task's main gate. Its verdict is not the task's where there is a guard: see `states`."""
        return {task: gates.main for task, gates in self.tasks.items()}

    @property
    def states(self) -> dict[str, GateState]:
        """Each task's verdict."""
        return {task: gates.state for task, gates in self.tasks.items()}

    @property
    def combined(self) -> Combined:
        """All tasks together."""
        return combine(self.states)

    @property
    def items_needed(self) -> dict[str, int]:
        """Undecided tasks whose next block the baseline has not answered, with the items that it must reach."""
        return {task: size for task, size in map(self._reach, self._undecided()) if not self._is_answered(task, size)}

    def next_block(self, among: Iterable[str] | None = None) -> Block | None:
        """The next block of an undecided task, in turns; None when decided, or when the baseline lacks answers."""
        allowed = set(self.orders if among is None else among)
        ready = [task for task in self._undecided() if task in allowed and self._is_answered(*self._reach(task))]
        if not ready:
            return None
        tasks = list(self.orders)
        task = min(ready, key=lambda name: (tasks.index(name) - self._turn) % len(tasks))
        self._turn = (tasks.index(task) + 1) % len(tasks)
        used = self.tasks[task].main.state.num_items
        return Block(task, self.orders[task].item_ids[used : self._reach(task)[1]])

    def feed(self, task: str, scores: Sequence[ItemScore]) -> GateState:
        """The candidate's scores of the task's next items, in sampling order, to all of the task's gates."""
        used = self.tasks[task].main.state.num_items
        ids = self.orders[task].item_ids[used : used + len(scores)]
        return self.tasks[task].update(scores, [self.baseline[task][item_id] for item_id in ids])

    def _undecided(self) -> tuple[str, ...]:
        combined = self.combined
        return combined.undecided if combined.decision is Verdict.UNDECIDED else ()

    def _reach(self, task: str) -> tuple[str, int]:
        gate = self.tasks[task].main
        return task, min(gate.state.num_items + self.rule.block_items, gate.max_items)

    def _is_answered(self, task: str, size: int) -> bool:
        ids = self.orders[task].item_ids[self.tasks[task].main.state.num_items : size]
        return all(item_id in self.baseline[task] for item_id in ids)


def replay(
    candidate: Mapping[str, TaskResult], baseline: Mapping[str, TaskResult], rule: GateRule
) -> SequentialEvaluation:
    """The gates after all recorded answers, under this rule.

    The rule may differ from the one under which the answers were taken: the order was drawn beforehand and the levels
    hold at any stopping time. A task that was asked in full decides by all its items. A task without a recorded answer
    stays undecided.
    """
    known = scores_of(baseline)
    orders = {task: _recorded_order(candidate.get(task) or baseline[task]) for task in rule.deltas}
    evaluation = SequentialEvaluation(orders, known, rule)
    for task in rule.deltas:
        if (
            task in candidate and candidate[task].sampling_order is None
        ):  # no random order: only all items together count
            full = replace(rule, stop_early=False, max_items=None)
            evaluation.tasks[task] = make_task_gates(task, orders[task], full, known[task])
    for task, scores in scores_of({name: candidate[name] for name in rule.deltas if name in candidate}).items():
        asked = [item_id for item_id in orders[task].item_ids if item_id in scores and item_id in known[task]]
        if tuple(asked) == orders[task].item_ids[: len(asked)]:
            evaluation.feed(task, [scores[item_id] for item_id in asked])
    return evaluation


def estimate_after_stopping(
    candidate: TaskResult, baseline: TaskResult, gate: Gate, confidence: float = 0.95
) -> Estimate:
    """The candidate's mean accuracy over all planned items, with an interval that is valid whenever one stops.

    `gate` is the task's gate on accuracy: the mean is the baseline's plus the gate's estimate of the difference. Where
    the baseline has not answered all items (uniform order), it is the mean of the candidate's own scores with their
    confidence sequence. Items without a score count as wrong.
    """
    scores = [0.0 if item.score is None else item.score for item in candidate.items]
    num_unscored = sum(item.score is None for item in candidate.items)
    total = candidate.num_items_planned
    if len(baseline.items) == total:
        mean = float(np.mean([1.0 if item.score is None else item.score for item in baseline.items]))
        found = gate.confidence_sequence(confidence)
        values = [mean + shift for shift in (found.value, found.lo, found.hi)]
    else:
        lo, hi = confidence_bounds(np.array(scores), make_schedule(np.ones(total)), 1 - confidence)
        values = [float(np.mean(scores)), lo, hi]
    value, lo, hi = (min(max(one, 0.0), 1.0) for one in values)
    method = f"confidence sequence {confidence:.0%}, valid at any stopping time; {len(scores)} of {total} items asked"
    return Estimate(value, min(lo, value), max(hi, value), len(scores), num_unscored, method)


def _recorded_order(result: TaskResult) -> SamplingOrder:
    return result.sampling_order or SamplingOrder("uniform", tuple(sorted(item.item_id for item in result.items)))


def _generator(task: str, identity: str) -> np.random.Generator:
    return np.random.default_rng(int(digest_json(["order", task, identity]), 16))
