"""What a decision that is not made yet would still take: items, time and USD, and how to go on from there."""

from __future__ import annotations

from core.console import duration
from evals.quality.sizes import suite_tokens
from evals.types import Decision, TaskGate
from finops.money import usd_text
from pipeline.billing.account import Billing
from pipeline.plan.resolve import RunPlan


def next_budget(tasks: list[TaskGate]) -> int | None:
    """The budget of items per task at which these tasks are expected to be decided; None where none is open."""
    wanted = [one.num_items + one.items_to_decide for one in tasks if one.items_to_decide]
    return max(wanted, default=None)


def continuation(decision: Decision, plan: RunPlan, billing: Billing) -> str | None:
    """How to go on where the budget of items ended before the decision fell; None where it did not."""
    tasks = list(decision.evidence.tasks.values())
    budget = next_budget(tasks)
    if decision.action != "undecided" or budget is None:
        return None
    suite, stage = plan.config.suite, plan.variants.all[-1].quality
    more = {one.task: min(budget, one.num_items_total) - one.num_items for one in tasks if one.items_to_decide}
    # In a uniform order the baseline is asked the same items.
    asked = [*more, *(task for task in more if task in stage.budgets)]
    tokens = suite_tokens(suite.source, asked, more, suite.num_fewshot)
    found = billing.quote(stage, tokens)
    takes = f"about {sum(more.values())} more items, {duration(found.expected_s)}, {usd_text(found.expected_usd)} USD"
    return f"the same command with gate.max_items={budget} goes on from here: {takes}"
