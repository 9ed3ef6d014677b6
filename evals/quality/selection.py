"""What the worker asks next: every item, the first ones of a random order, or what the gates still need.

Pure: it knows task names and item ids, not requests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evals.gate.gate import Verdict
from evals.gate.scores import ItemScore
from evals.gate.sequential import Block, GateRule, SequentialEvaluation, uniform_sampling_order
from evals.quality.messages import QualityJob
from evals.types import SamplingOrder

ItemId = int
PLAIN_BLOCK_ITEMS = 64
"""Items asked between two writes of the answer cache where no gate looks at them."""


@dataclass
class ItemSelection:
    """Hands out blocks of items and remembers which were asked."""

    plain: dict[str, list[ItemId]]
    """Items to ask of each task without a gate, in this order."""
    orders: dict[str, SamplingOrder] = field(default_factory=dict)
    """The order of each task of which not all items may be asked."""
    evaluation: SequentialEvaluation | None = None
    """The gates; their tasks are asked first."""
    _asked: dict[str, dict[ItemId, None]] = field(default_factory=dict, init=False)
    _fed: dict[str, dict[ItemId, float | None]] = field(default_factory=dict, init=False)

    @property
    def num_items(self) -> int:
        """Items that will be asked, at most."""
        gates = () if self.evaluation is None else self.evaluation.gates.values()
        return sum(map(len, self.plain.values())) + sum(gate.max_items for gate in gates)

    @property
    def num_asked(self) -> int:
        """Items asked so far."""
        return sum(map(len, self._asked.values()))

    @property
    def items_needed(self) -> dict[str, int]:
        """Tasks whose gate waits for the baseline's answers, with the number of items that it must reach."""
        return {} if self.evaluation is None else self.evaluation.items_needed

    def is_gated(self, task: str) -> bool:
        """Whether the task's scores are wanted after each block."""
        return self.evaluation is not None and task in self.evaluation.gates

    def asked(self, task: str) -> Collection[ItemId]:
        """The items asked so far, in this order."""
        return self._asked.get(task, {}).keys()

    def sampling_order(self, task: str) -> SamplingOrder | None:
        """The task's order; None where every item is asked anyway."""
        return self.orders.get(task)

    def check_score(self, task: str, item_id: ItemId, score: float | None) -> None:
        """The score that the gate saw is the one that lm-eval reports at the end."""
        fed = self._fed.get(task, {}).get(item_id, score)
        assert fed == score, f"{task}, item {item_id}: the gate was fed {fed}, lm-eval says {score}"

    def is_flip(self, task: str, item_id: ItemId, score: float | None) -> bool:
        """Whether a gated item's score is not the baseline's."""
        return (
            self.evaluation is not None
            and self.is_gated(task)
            and self.evaluation.baseline[task][item_id].accuracy != score
        )

    def next_block(self, among: Collection[str]) -> Block | None:
        """The next items to ask, of one of these tasks; None when there is nothing to ask now."""
        block = self._gated_block(among) or self._plain_block(among)
        if block is not None:
            self._asked.setdefault(block.task, {}).update(dict.fromkeys(block.item_ids))
        return block

    def feed(self, block: Block, scores: Sequence[float | None]) -> None:
        """The scores of a gated block."""
        assert self.evaluation is not None, "nobody waits for these scores"
        self.evaluation.feed(block.task, [ItemScore(score, None) for score in scores])
        self._fed.setdefault(block.task, {}).update(zip(block.item_ids, scores, strict=True))

    def _gated_block(self, among: Collection[str]) -> Block | None:
        return None if self.evaluation is None else self.evaluation.next_block(among)

    def _plain_block(self, among: Collection[str]) -> Block | None:
        if self.evaluation is not None and (
            self.evaluation.combined.decision in (Verdict.FAIL, Verdict.FUTILE) or self.items_needed
        ):
            return None
        for task, ids in self.plain.items():
            done = len(self.asked(task))
            if task in among and done < len(ids):
                return Block(task, tuple(ids[done : done + PLAIN_BLOCK_ITEMS]))
        return None


def make_selection(job: QualityJob, items: Mapping[str, list[ItemId]]) -> ItemSelection:
    """The selection of a job: `items` are all chosen items of each task."""
    gate, first = job.get("gate"), job.get("first_items")
    if gate is None and first is None:
        return ItemSelection(dict(items))
    if gate is None:
        orders = {task: uniform_sampling_order(task, ids, str(job["seed"])) for task, ids in items.items()}
        return ItemSelection({task: list(drawn.item_ids[:first]) for task, drawn in orders.items()}, orders)
    orders = {task: sampling_order_from_json(raw) for task, raw in gate["orders"].items()}
    for task, drawn in orders.items():
        assert sorted(drawn.item_ids) == sorted(items[task]), (
            f"{task}: the sampling order has other items than the suite"
        )
    baseline = {
        task: {int(item_id): ItemScore(*pair) for item_id, pair in scores.items()}
        for task, scores in gate["baseline"].items()
    }
    evaluation = SequentialEvaluation(orders, baseline, GateRule(**gate["rule"]))
    return ItemSelection({task: ids for task, ids in items.items() if task not in orders}, orders, evaluation)


def sampling_order_from_json(raw: Mapping[str, Any]) -> SamplingOrder:
    """A sampling order from its JSON form."""
    return SamplingOrder(raw["kind"], *(tuple(raw.get(name, ())) for name in ("item_ids", "weights", "ranks")))
