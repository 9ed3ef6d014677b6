"""What a decision that is not made yet would still take is told of the tasks that are open."""

from dataclasses import dataclass, replace
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

from evals.types import Decision, DecisionEvidence, TaskGate
from pipeline.billing.continuation import continuation, next_budget

OPEN = TaskGate("piqa", "futile", "budget", 2.0, "uniform", 100, 1838, None, None, 0.0, 0.0, None, (), (), None,
                items_to_decide=150)  # fmt: skip
DONE = replace(OPEN, task="arc_easy", decision="pass", num_items=400, num_items_total=570, items_to_decide=None)


@dataclass
class Quoted:
    """Notes what was quoted."""

    tokens: int = 0

    def quote(self, stage: object, num_tokens: int) -> Any:
        self.tokens = num_tokens
        return SimpleNamespace(expected_s=60.0, expected_usd=Decimal("0.01"))


def asked(budgets: dict[str, int], action: str = "undecided") -> tuple[str | None, int]:
    suite = SimpleNamespace(source="embedded", num_fewshot=None)
    variant = SimpleNamespace(quality=SimpleNamespace(budgets=budgets))
    plan: Any = SimpleNamespace(config=SimpleNamespace(suite=suite), variants=SimpleNamespace(all=[variant]))
    billing: Any = Quoted()
    evidence = DecisionEvidence(tasks={"arc_easy": DONE, "piqa": OPEN})
    return continuation(Decision(action, "int8", (), None, evidence), plan, billing), billing.tokens


def test_the_budget_is_where_the_last_open_task_is_expected_to_end() -> None:
    assert next_budget([DONE, OPEN]) == 250
    assert next_budget([DONE]) is None


def test_a_decided_task_takes_nothing_more_and_a_shared_order_takes_the_baseline_too() -> None:
    text, tokens = asked({})
    assert text is not None
    assert "gate.max_items=250 goes on from here: about 150 more items" in text
    assert asked({"piqa": 100})[1] == 2 * tokens
    assert tokens == 150 * 75


def test_a_decision_that_is_made_takes_nothing() -> None:
    assert asked({}, "reject") == (None, 0)
