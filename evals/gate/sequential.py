"""Which items to ask next, and when to stop: the gates of several tasks, fed block by block. Pure.

A candidate is asked the items of each task in one order that is drawn beforehand (`draw_orders`). After each block the
task's gate (`evals/gate/gate.py`) sees the differences to the baseline's scores. The tasks take turns; the first one
that fails ends the evaluation, and so does the last one that passes.

    orders = draw_orders(baseline_tasks, rule, seed=0)
    evaluation = SequentialEvaluation(orders, scores_of(baseline_tasks), rule)
    while (block := evaluation.next_block()) is not None:
        evaluation.feed(block.task, [ask(item) for item in block.item_ids])

`replay` gives the same gates from recorded outcomes: a decision needs no more than a report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from core.errors import ConfigError, closest
from core.files import digest_json
from evals.gate.betting import confidence_bounds, make_schedule
from evals.gate.gate import Combined, Gate, GateState, Verdict, combine, differences
from evals.gate.ordering import guide_weights, guided_order, margin, uniform_order
from evals.types import Estimate, SamplingOrder, TaskResult

ORDERS = ("guided", "uniform")
Scores = Mapping[int, float | None]


@dataclass(frozen=True)
class GateRule:
    """What the gates are told."""

    deltas: Mapping[str, float]
    """Margin per task that decides, as a share of the score: 0.02 is 2 points."""
    alpha: float = 0.05
    """Probability of a false promotion, at most; for the best of K candidates their common level / K."""
    beta: float = 0.05
    """Probability of a false rejection by the e-value, at most."""
    order: str = "guided"
    """`guided` where the baseline's margins or token counts are known, or `uniform`."""
    stop_early: bool = True
    """False asks every item and decides by all of them."""
    max_items: int | None = None
    """Budget per task; a task undecided there is futile, which is no pass."""
    block_items: int = 32
    """Items asked between two looks."""

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise ConfigError(f"gate.order={self.order}: not one of {', '.join(ORDERS)}{closest(self.order, ORDERS)}")
        if self.block_items < 1:
            raise ConfigError(f"gate.block_items={self.block_items}: must be at least 1")


@dataclass(frozen=True)
class Block:
    """Items of one task to ask together."""

    task: str
    item_ids: tuple[int, ...]


def uniform_sampling_order(task: str, item_ids: Sequence[int], seed: int) -> SamplingOrder:
    """A seeded uniform permutation of the items; the task's name is part of the seed."""
    order = uniform_order(len(item_ids), _generator(task, seed))
    return SamplingOrder("uniform", tuple(int(item_ids[i]) for i in order))


def draw_order(task: str, baseline: TaskResult, rule: GateRule, seed: int) -> SamplingOrder:
    """The order for one task, from the baseline's outcomes alone.

    Where the baseline has not answered every item yet, its own uniform order is kept, so that the same items come
    first.
    """
    if baseline.sampling_order is not None and not baseline.is_complete:
        return baseline.sampling_order
    items = sorted(baseline.items, key=lambda item: item.item_id)
    ids, margins = [item.item_id for item in items], [margin(item.loglikelihoods, item.target) for item in items]
    costs = [float(item.num_tokens or 0) for item in items]
    has_costs = all(cost > 0 for cost in costs)
    if rule.order == "uniform" or not (has_costs or any(m is not None for m in margins)):
        return uniform_sampling_order(task, ids, seed)
    guide = guide_weights(margins, costs if has_costs else None)
    order = guided_order(guide.weights, _generator(task, seed))
    return SamplingOrder(
        "guided",
        tuple(ids[i] for i in order),
        tuple(guide.weights[order].tolist()),
        tuple(None if math.isnan(rank) else rank for rank in guide.ranks[order].tolist()),
    )


def draw_orders(baseline: Mapping[str, TaskResult], rule: GateRule, seed: int) -> dict[str, SamplingOrder]:
    """The orders of all tasks that decide.

    Raises:
        ConfigError: the rule names a task that the baseline was not asked.

    """
    for task in rule.deltas:
        if task not in baseline:
            raise ConfigError(
                f"gate.tasks: '{task}' is not in the suite{closest(task, baseline)}; its tasks: {', '.join(baseline)}"
            )
    return {task: draw_order(task, baseline[task], rule, seed) for task in rule.deltas}


def scores_of(tasks: Mapping[str, TaskResult]) -> dict[str, dict[int, float | None]]:
    """Scores by task and item id."""
    return {name: {item.item_id: item.score for item in result.items} for name, result in tasks.items()}


def make_gate(order: SamplingOrder, task: str, rule: GateRule, baseline: Scores) -> Gate:
    """The gate of one task. It predicts answers where the order is guided and the baseline's scores are all there."""
    is_guided = order.kind == "guided"
    can_predict = is_guided and bool(order.ranks) and all(item_id in baseline for item_id in order.item_ids)
    scores = [baseline[item_id] for item_id in order.item_ids] if can_predict else []
    return Gate(
        len(order.item_ids),
        rule.deltas[task],
        alpha=rule.alpha,
        beta=rule.beta,
        order_weights=order.weights if is_guided else None,
        ranks=order.ranks if can_predict else None,
        baseline=[1.0 if score is None else score for score in scores] if can_predict else None,
        max_items=rule.max_items,
        stop_early=rule.stop_early,
    )


@dataclass
class SequentialEvaluation:
    """The tasks' gates and what each of them has been fed. Same scores, same blocks: it has no clock."""

    orders: Mapping[str, SamplingOrder]
    baseline: Mapping[str, Scores]
    rule: GateRule
    gates: dict[str, Gate] = field(init=False)
    _turn: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.gates = {
            task: make_gate(order, task, self.rule, self.baseline[task]) for task, order in self.orders.items()
        }

    @property
    def combined(self) -> Combined:
        """All tasks together."""
        return combine({task: gate.state for task, gate in self.gates.items()})

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
        used = self.gates[task].state.num_items
        return Block(task, self.orders[task].item_ids[used : self._reach(task)[1]])

    def feed(self, task: str, scores: Sequence[float | None]) -> GateState:
        """The candidate's scores of the task's next items, in sampling order; None: could not be scored."""
        used = self.gates[task].state.num_items
        ids = self.orders[task].item_ids[used : used + len(scores)]
        return self.gates[task].update(differences(list(scores), [self.baseline[task][item_id] for item_id in ids]))

    def _undecided(self) -> tuple[str, ...]:
        combined = self.combined
        return combined.undecided if combined.decision is Verdict.UNDECIDED else ()

    def _reach(self, task: str) -> tuple[str, int]:
        gate = self.gates[task]
        return task, min(gate.state.num_items + self.rule.block_items, gate.max_items)

    def _is_answered(self, task: str, size: int) -> bool:
        ids = self.orders[task].item_ids[self.gates[task].state.num_items : size]
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
            evaluation.gates[task] = make_gate(
                orders[task], task, replace(rule, stop_early=False, max_items=None), known[task]
            )
    for task, scores in scores_of({name: candidate[name] for name in rule.deltas if name in candidate}).items():
        asked = [item_id for item_id in orders[task].item_ids if item_id in scores and item_id in known[task]]
        if tuple(asked) == orders[task].item_ids[: len(asked)]:
            evaluation.feed(task, [scores[item_id] for item_id in asked])
    return evaluation


def estimate_after_stopping(
    candidate: TaskResult, baseline: TaskResult, gate: Gate, confidence: float = 0.95
) -> Estimate:
    """The candidate's mean score over all planned items, with an interval that is valid whenever one stops.

    It is the baseline's mean score plus the gate's estimate of the difference. Where the baseline has not answered all
    items (uniform order), it is the mean of the candidate's own scores with their confidence sequence. Items without a
    score count as wrong.
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


def _generator(task: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, int(digest_json(["order", task])[:8], 16)])
