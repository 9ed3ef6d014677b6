"""What the error level of a comparison was spent on: its declared rules, and the candidates that were tried.

A comparison is a family (one baseline, one way of asking) and the tasks that decide. Its error level is shared by all
candidates that are ever tried in it, so they are counted here, in one transaction each: runs on several machines that
start together get different numbers. Candidates come in batches: those of a sweep share one, which has a slot for
each; a candidate of its own is a batch of one. A candidate that was tried before keeps its slot. Nothing is forgotten:
the tables are append-only.

What a rule is, and which changes of it are allowed, the caller knows; here it is a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from finops.controls.approvals import current_user
from finops.ledger import schema
from finops.ledger.database import insert_ignore
from finops.ledger.ledger import Ledger
from finops.money import to_us

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

Rule = Mapping[str, object]
Declared = Sequence[Rule]
"""The rules that were declared in a family, oldest first."""
CheckRule = Callable[[Declared], None]
"""Raises where a rule must not follow those that were declared before it."""


@dataclass(frozen=True)
class Slot:
    """A candidate's slot in a comparison; batches are counted from 1."""

    batch: int
    batch_size: int
    num_attempts: int
    """Candidates that were tried in the comparison so far, this one included."""


class Attempts:
    """The comparisons of a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._database = ledger, ledger.database

    def declared(self, family: str) -> Declared:
        """The rules that were declared in a family, oldest first."""
        with self._database.read() as connection:
            return self._declared(connection, family)

    def claim(
        self, family: str, tasks: Sequence[str], rule: Rule, attempt: str, batch_size: int, check: CheckRule
    ) -> Slot:
        """A candidate's slot, taken with its first answer and the same ever after; the rule is declared with it.

        Args:
            family: digest of the baseline and of how questions are asked.
            tasks: those that decide, in any order.
            rule: what the candidate must show; a change of it is noted.
            attempt: digest of the candidate and of what makes another try of it.
            batch_size: candidates that are tried together, this one included.
            check: raises where the rule must not follow those before it.

        Raises:
            ValueError: a batch of no candidate.
            LedgerUnavailableError: the ledger cannot be used.

        """
        if batch_size < 1:
            raise ValueError(f"a batch has at least one candidate, not {batch_size}")
        with self._database.write() as connection:
            check(self._declared(connection, family))
            comparison = self._comparison(connection, family, json.dumps(sorted(tasks)))
            self._declare(connection, comparison, rule)
            return self._slot(connection, comparison, attempt, batch_size)

    def _declared(self, connection: Connection, family: str) -> Declared:
        rules, comparisons = schema.declared_rules, schema.comparisons
        rows = connection.execute(
            sa.select(rules.c.rule)
            .join(comparisons, comparisons.c.id == rules.c.comparison_id)
            .where(comparisons.c.family == family)
            .order_by(rules.c.id)
        )
        return [json.loads(row.rule) for row in rows]

    def _comparison(self, connection: Connection, family: str, tasks: str) -> int:
        """The comparison's id; its row is locked until the transaction ends."""
        table = schema.comparisons
        values = {"family": family, "tasks": tasks, "created_us": to_us(self._ledger.clock())}
        connection.execute(insert_ignore(table, self._database.is_sqlite).values(values))
        found = sa.select(table.c.id).where(table.c.family == family, table.c.tasks == tasks).with_for_update()
        return int(connection.execute(found).scalar_one())

    def _declare(self, connection: Connection, comparison: int, rule: Rule) -> None:
        table = schema.declared_rules
        text = json.dumps(rule, sort_keys=True)
        same = sa.select(table.c.id).where(table.c.comparison_id == comparison, table.c.rule == text).limit(1)
        if connection.execute(same).scalar() is not None:
            return  # also where another one came between: deciding again and again notes nothing new
        values = {
            "comparison_id": comparison,
            "rule": text,
            "declared_by": current_user(),
            "created_us": to_us(self._ledger.clock()),
        }
        connection.execute(sa.insert(table).values(values))

    def _slot(self, connection: Connection, comparison: int, attempt: str, batch_size: int) -> Slot:
        table = schema.attempts
        mine = table.c.comparison_id == comparison
        rows = connection.execute(sa.select(table).where(mine)).all()
        known = next((row for row in rows if row.attempt == attempt), None)
        if known is not None:
            return Slot(known.batch, known.batch_size, len(rows))
        taken: dict[int, int] = {}
        for row in rows:
            if row.batch_size == batch_size:
                taken[row.batch] = taken.get(row.batch, 0) + 1
        last = max((row.batch for row in rows), default=0)
        batch = next((number for number, count in sorted(taken.items()) if count < batch_size), last + 1)
        values = {
            "comparison_id": comparison,
            "attempt": attempt,
            "batch": batch,
            "batch_size": batch_size,
            "created_us": to_us(self._ledger.clock()),
        }
        connection.execute(sa.insert(table).values(values))
        return Slot(batch, batch_size, len(rows) + 1)
