"""Budgets that cannot be passed, not even by two runs at once.

A run reserves its estimate's upper end before it starts, in one transaction over all budgets it falls under; a
reservation that would pass a limit is rejected, never reduced to the rest. Charges draw on the reservation as they are
recorded, so spend + live reservations <= limit at every instant while runs stay within what they reserved. A run that
needs more asks with `extend`, and must stop if that is refused. A reservation without heartbeat expires. (Reserving in
one step answers the race of litellm#34732 and #40095, where requests at once pass a budget that each alone respects.)
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import sqlalchemy as sa

from core.errors import ConfigError, UserError, closest
from finops.errors import BudgetExceededError, ReservationError
from finops.ledger import schema
from finops.ledger.database import Row
from finops.ledger.ledger import Ledger, utc_now
from finops.ledger.spend import PERIODS, SCOPES, matching_budgets, note_alerts, period_bounds, spent_in_period
from finops.money import from_pico, from_us, to_pico, to_us, usd_text

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

RESERVATION_TTL_S = 120.0


@dataclass(frozen=True)
class Budget:
    """A budget and its state in the current period. A scope that is None covers every value."""

    name: str
    period: str
    limit_usd: Decimal
    spent_usd: Decimal
    reserved_usd: Decimal
    period_start: datetime
    period_end: datetime
    team: str | None = None
    environment: str | None = None
    model_family: str | None = None

    @property
    def left_usd(self) -> Decimal:
        """What can still be reserved."""
        return self.limit_usd - self.spent_usd - self.reserved_usd

    @property
    def scope(self) -> str:
        """`team=research, environment=prod`, or `everything`."""
        parts = [f"{name}={value}" for name in SCOPES if (value := getattr(self, name)) is not None]
        return ", ".join(parts) or "everything"


@dataclass(frozen=True)
class Reservation:
    """A reservation. Give its id to the run's charges; settle or release it once."""

    id: str
    run_id: str
    amount_usd: Decimal
    budgets: Budgets

    def heartbeat(self) -> None:
        """See `Budgets.heartbeat`."""
        self.budgets.heartbeat(self.id)

    def extend(self, extra_usd: Decimal) -> None:
        """See `Budgets.extend`."""
        self.budgets.extend(self.id, extra_usd)

    def settle(self) -> Decimal:
        """See `Budgets.settle`."""
        return self.budgets.settle(self.id)

    def release(self) -> None:
        """See `Budgets.release`."""
        self.budgets.release(self.id)


class Budgets:
    """Limits and reservations in a ledger. Every method is one transaction and raises `LedgerUnavailableError`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._database = ledger, ledger.database

    def define(
        self,
        name: str,
        *,
        limit_usd: Decimal,
        period: str = "month",
        team: str | None = None,
        environment: str | None = None,
        model_family: str | None = None,
    ) -> None:
        """Create a budget, or change its limit. Its scope and period never change: make another budget for that."""
        if period not in PERIODS:
            raise ConfigError(
                f"budget.period: '{period}' does not exist. It must be one of {', '.join(PERIODS)}"
                + closest(period, PERIODS)
            )
        limit = to_pico(limit_usd, "budget.limit_usd")
        if limit < 0:
            raise UserError(f"budget.limit_usd: {limit_usd} is negative")
        scope = {"team": team, "environment": environment, "model_family": model_family}
        table = schema.budgets
        with self._database.write() as connection:
            if not self._database.is_sqlite:  # wait for charges in flight, which do not see this budget yet
                connection.execute(sa.text("LOCK TABLE finops_charges IN SHARE MODE"))
            now = self._now(connection)
            row = connection.execute(sa.select(table).where(table.c.name == name).with_for_update()).one_or_none()
            if row is None:
                values = {"name": name, "period": period, "limit_pico": limit, "created_us": to_us(now), **scope}
                connection.execute(sa.insert(table), values)
            elif (row.period, *(getattr(row, key) for key in SCOPES)) != (period, *scope.values()):
                raise UserError(
                    f"budget '{name}': it is for {row.period}, "
                    f"{', '.join(f'{key}={getattr(row, key)}' for key in SCOPES)}; a budget's scope and period "
                    "do not change. Choose another name"
                )
            else:
                connection.execute(sa.update(table).where(table.c.id == row.id).values(limit_pico=limit))
            budget = connection.execute(sa.select(table).where(table.c.name == name)).one()
            start_us, spent, _ = spent_in_period(connection, self._database, budget, now)
            note_alerts(
                connection, self._database, budget, start_us=start_us, spent=spent, run_id=None, now_us=to_us(now)
            )

    def status(self) -> list[Budget]:
        """Every budget as it stands in its current period, by name."""
        table = schema.budgets
        with self._database.write() as connection:
            # Locked: the first read of a period adds up its charges, and none may be booked meanwhile. The time is
            # read after the wait for the lock: a reservation that expired meanwhile has made room for another one.
            rows = connection.execute(sa.select(table).order_by(table.c.id).with_for_update()).all()
            now = self._now(connection)
            return sorted((self._status(connection, row, now) for row in rows), key=lambda item: item.name)

    def _status(self, connection: Connection, row: Row, now: datetime) -> Budget:
        _, spent, _ = spent_in_period(connection, self._database, row, now)
        start, end = period_bounds(row.period, now)
        return Budget(
            row.name, row.period, from_pico(row.limit_pico), from_pico(spent),
            from_pico(self._reserved(connection, row.id, to_us(now))), start, end,
            row.team, row.environment, row.model_family,
        )  # fmt: skip

    def _reserved(self, connection: Connection, budget_id: int, now_us: int) -> int:
        """What live reservations still take of a budget, in any period: a run may go on into the next one."""
        holds, links = schema.holds, schema.hold_budgets
        rest = sa.case((holds.c.used_pico < holds.c.amount_pico, holds.c.amount_pico - holds.c.used_pico), else_=0)
        query = (
            sa.select(rest.label("rest"))
            .join(links, links.c.hold_id == holds.c.id)
            .where(links.c.budget_id == budget_id, holds.c.state == "live", holds.c.expires_us > now_us)
        )
        return sum(int(value) for value in connection.execute(query).scalars())

    def reserve(
        self, run_id: str, amount_usd: Decimal, tags: Mapping[str, str], *, ttl_s: float = RESERVATION_TTL_S,
        require_budget: bool = False,
    ) -> Reservation:  # fmt: skip
        """Reserve an amount in every budget that a run with these tags falls under, or in none.

        Raises `BudgetExceededError` (exit code 4) that lists each budget it would pass. With `require_budget` a run
        that falls under no budget is refused. Without it the run gets a reservation that limits nothing.
        """
        amount = to_pico(amount_usd, "reservation")
        if amount < 0:
            raise UserError(f"reservation: {amount_usd} is negative")
        hold_id = uuid.uuid4().hex
        with self._database.write() as connection:
            rows = matching_budgets(connection, dict(tags))
            if not rows and require_budget:
                shown = ", ".join(f"{key}={tags.get(key, '')}" for key in SCOPES)
                raise BudgetExceededError(
                    f"budget: none covers {shown}\n"
                    f"    -> {self._database.command('budgets set NAME --limit-usd AMOUNT')}"
                )
            now = self._now(connection)
            self._refuse_if_over(connection, rows, amount, now)
            connection.execute(
                sa.insert(schema.holds),
                {
                    "id": hold_id, "run_id": run_id, "amount_pico": amount, "used_pico": 0, "state": "live",
                    "created_us": to_us(now), "expires_us": to_us(now) + int(ttl_s * 1e6), "ttl_us": int(ttl_s * 1e6),
                },
            )  # fmt: skip
            for row in rows:
                connection.execute(sa.insert(schema.hold_budgets), {"hold_id": hold_id, "budget_id": row.id})
        return Reservation(hold_id, run_id, amount_usd, self)

    def _refuse_if_over(self, connection: Connection, rows: Sequence[Row], amount: int, now: datetime) -> None:
        problems, raising = [], []
        for row in rows:
            _, spent, _ = spent_in_period(connection, self._database, row, now)
            reserved = self._reserved(connection, row.id, to_us(now))
            if spent + reserved + amount > row.limit_pico:
                start, end = period_bounds(row.period, now)
                problems.append(
                    f"  - {row.name} ({row.period} from {start.date()}): limit {_usd(row.limit_pico)}, spent "
                    f"{_usd(spent)}, reserved by running work {_usd(reserved)}, wanted {_usd(amount)} "
                    f"(the next period begins {end.date()})"
                )
                scope = "".join(f" --{key.replace('_', '-')} {value}" for key in SCOPES if (value := getattr(row, key)))
                text = f"budgets set {row.name} --limit-usd AMOUNT --period {row.period}{scope}"
                raising.append(self._database.command(text))
        if problems:
            ways = ["    -> wait, or make the run smaller", *(f"    -> {one}" for one in raising)]
            raise BudgetExceededError("\n".join(["the run would pass its budget:", *problems, *ways]))

    def heartbeat(self, hold_id: str) -> None:
        """Prolong a reservation by its time to live.

        Raises `ReservationError` where it is settled, released or expired.
        """
        with self._database.write() as connection:
            row, now_us = self._lock(connection, hold_id)
            self._update(connection, hold_id, expires_us=now_us + row.ttl_us)

    def extend(self, hold_id: str, extra_usd: Decimal) -> None:
        """Reserve more. Raises `BudgetExceededError` where it would pass a limit: then the run must stop."""
        extra = to_pico(extra_usd, "reservation")
        if extra < 0:
            raise UserError(f"reservation: {extra_usd} is negative")
        with self._database.write() as connection:
            row, now_us = self._lock(connection, hold_id)
            links, table = schema.hold_budgets, schema.budgets
            rows = connection.execute(
                sa.select(table).join(links, links.c.budget_id == table.c.id).where(links.c.hold_id == hold_id)
            ).all()
            # A run that used more than it reserved has that in the committed spend already; only new room is asked for.
            kept = max(row.amount_pico, row.used_pico)
            self._refuse_if_over(connection, rows, extra, from_us(now_us))
            self._update(connection, hold_id, amount_pico=kept + extra, expires_us=now_us + row.ttl_us)

    def settle(self, hold_id: str) -> Decimal:
        """End a reservation after its charges are recorded, and free what it did not use. Returns what it used, in USD.

        Single-use: raises `ReservationError` the second time, and for a released or expired reservation.
        """
        return self._end(hold_id, "settled")

    def release(self, hold_id: str) -> None:
        """Give a reservation back after a failure. Single-use, like `settle`."""
        self._end(hold_id, "released")

    def _end(self, hold_id: str, state: str) -> Decimal:
        with self._database.write() as connection:
            row, _ = self._lock(connection, hold_id)
            self._update(connection, hold_id, state=state)
            return from_pico(row.used_pico)

    def _lock(self, connection: Connection, hold_id: str) -> tuple[Row, int]:
        """Lock a reservation's budgets and then the reservation. Refuse one that is not live at this moment."""
        links, table, holds = schema.hold_budgets, schema.budgets, schema.holds
        connection.execute(
            sa.select(table.c.id)
            .join(links, links.c.budget_id == table.c.id)
            .where(links.c.hold_id == hold_id)
            .order_by(table.c.id)
            .with_for_update(of=table)
        ).all()
        row = connection.execute(sa.select(holds).where(holds.c.id == hold_id).with_for_update()).one_or_none()
        now_us = to_us(self._now(connection))
        if row is None:
            raise ReservationError(f"reservation {hold_id}: it does not exist")
        state = "expired" if row.state == "live" and row.expires_us <= now_us else row.state
        if state != "live":
            raise ReservationError(
                f"reservation {hold_id} of run {row.run_id}: it is {state} and works only once. Reserve again"
            )
        return row, now_us

    def _update(self, connection: Connection, hold_id: str, **values: object) -> None:
        connection.execute(sa.update(schema.holds).where(schema.holds.c.id == hold_id).values(**values))

    def _now(self, connection: Connection) -> datetime:
        """The ledger's clock; on PostgreSQL the server's, so that hosts agree when a reservation expires."""
        if self._database.is_sqlite or self._ledger.clock is not utc_now:
            return self._ledger.clock()
        moment: datetime = connection.execute(sa.text("SELECT clock_timestamp()")).scalar_one()
        return moment.astimezone(UTC)


def _usd(pico: int) -> str:
    return f"{usd_text(from_pico(pico))} USD"
