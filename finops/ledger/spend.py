"""What a charge does to budgets, inside the charge's own transaction: spend, the draw on its reservation, alerts.

Every change to a budget's spend or reservations first locks the budget's row (by ascending id, so that two never wait
for each other). SQLite's single writer gives the same order. So a reservation always reads one consistent state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import sqlalchemy as sa

from finops.ledger import schema
from finops.ledger.database import Database, Row, exact_sum, insert_ignore, join_sum
from finops.money import from_us, to_us

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from finops.ledger.charges import Charge

PERIODS = ("day", "week", "month", "quarter", "year", "total")
THRESHOLDS_PERCENT = (80, 100)
SCOPES = ("team", "environment", "model_family")
_END_OF_TIME = datetime(9999, 1, 1, tzinfo=UTC)
# The statements of every charge, built once: building them costs more than running them.
_budgets, _periods, _holds = schema.budgets, schema.budget_periods, schema.holds
_MATCHING = (
    sa.select(_budgets)
    .where(*[sa.or_(_budgets.c[name].is_(None), _budgets.c[name] == sa.bindparam(name)) for name in SCOPES])
    .order_by(_budgets.c.id)
    .with_for_update()
)
_IS_PERIOD = (_periods.c.budget_id == sa.bindparam("b_id"), _periods.c.period_start_us == sa.bindparam("b_start_us"))
_SPENT = sa.select(_periods.c.spent_pico).where(*_IS_PERIOD)
_SET_SPENT = sa.update(_periods).where(*_IS_PERIOD).values(spent_pico=sa.bindparam("b_spent"))
_DRAW = (
    sa.update(_holds)
    .where(_holds.c.id == sa.bindparam("b_id"))
    .values(used_pico=_holds.c.used_pico + sa.bindparam("b_cost", type_=sa.BigInteger))
)


def period_bounds(period: str, moment: datetime) -> tuple[datetime, datetime]:
    """Start and end (exclusive) of the UTC period that contains a moment."""
    day = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "day":
        return day, day + timedelta(days=1)
    if period == "week":
        monday = day - timedelta(days=day.weekday())
        return monday, monday + timedelta(days=7)
    if period == "total":
        return datetime(1970, 1, 1, tzinfo=UTC), _END_OF_TIME
    months = {"month": 1, "quarter": 3, "year": 12}[period]
    first = (day.month - 1) // months * months
    start = day.replace(month=first + 1, day=1)
    following = first + months
    return start, start.replace(year=start.year + following // 12, month=following % 12 + 1)


def matching_budgets(connection: Connection, scope: dict[str, str]) -> Sequence[Row]:
    """The budgets that a charge with these tags falls under, locked, by ascending id."""
    return connection.execute(_MATCHING, {name: scope.get(name, "") for name in SCOPES}).all()


def spent_in_period(connection: Connection, database: Database, budget: Row, moment: datetime) -> tuple[int, int, bool]:
    """Period start (us), spend (pico-USD), and whether its row was made now, from the charges recorded so far."""
    start, end = period_bounds(budget.period, moment)
    start_us, table = to_us(start), schema.budget_periods
    spent = connection.execute(_SPENT, {"b_id": budget.id, "b_start_us": start_us}).scalar()
    if spent is not None:
        return start_us, int(spent), False
    total = sum_of_charges(connection, budget, start_us, to_us(end))
    connection.execute(
        insert_ignore(table, database.is_sqlite),
        {"budget_id": budget.id, "period_start_us": start_us, "spent_pico": total},
    )
    return start_us, total, True


def sum_of_charges(connection: Connection, budget: Row, start_us: int, end_us: int) -> int:
    """Exact effective cost (pico-USD) of the charges under a budget that began in a period."""
    table = schema.charges
    query = sa.select(*exact_sum(table.c.effective_usd_pico)).where(
        table.c.start_us >= start_us, table.c.start_us < end_us
    )
    for name in SCOPES:
        if (value := getattr(budget, name)) is not None:
            query = query.where(table.c[name] == value)
    return join_sum(*connection.execute(query).one())


def book_spend(connection: Connection, database: Database, charge: Charge, now_us: int) -> None:
    """Add a new charge to the spend of its budgets, take it from its reservation, and note the thresholds it crosses.

    The charge itself must be inserted already: a period's first row counts what stands in the ledger.
    """
    scope = {name: getattr(charge, name) for name in SCOPES}
    cost = charge.effective_usd_pico
    for budget in matching_budgets(connection, scope):
        start_us, spent, is_new = spent_in_period(connection, database, budget, from_us(charge.start_us))
        if not is_new:
            spent += cost
            connection.execute(_SET_SPENT, {"b_id": budget.id, "b_start_us": start_us, "b_spent": spent})
        note_alerts(connection, database, budget, start_us=start_us, spent=spent, run_id=charge.run_id, now_us=now_us)
    if charge.hold_id is not None and cost:
        connection.execute(_DRAW, {"b_id": charge.hold_id, "b_cost": cost})


def note_alerts(
    connection: Connection,
    database: Database,
    budget: Row,
    *,
    start_us: int,
    spent: int,
    run_id: str | None,
    now_us: int,
) -> None:
    """Write an alert row for each threshold reached; the UNIQUE constraint keeps it to one per budget and period."""
    for threshold in THRESHOLDS_PERCENT:
        if spent <= 0 or spent * 100 < budget.limit_pico * threshold:
            continue
        name = hashlib.sha256(f"{budget.id}:{start_us}:{threshold}:{budget.created_us}".encode()).hexdigest()[:32]
        connection.execute(
            insert_ignore(schema.alerts, database.is_sqlite),
            {
                "id": name, "budget_id": budget.id, "period_start_us": start_us, "threshold_percent": threshold,
                "spent_pico": spent, "limit_pico": budget.limit_pico, "run_id": run_id, "created_us": now_us,
            },
        )  # fmt: skip
