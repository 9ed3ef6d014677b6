"""What the ledger holds open now: stages that are charged at this moment, and reservations of running work."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa

from finops.ledger import schema
from finops.ledger.ledger import Ledger
from finops.money import from_pico, from_us, to_us


@dataclass(frozen=True)
class LiveCharge:
    """A stage whose charge is open: it runs, or it died and the next run's start will charge it."""

    run_id: str
    stage: str
    host: str
    started: datetime
    last_sign_of_life: datetime


@dataclass(frozen=True)
class Reservation:
    """An amount that a running job may still spend."""

    run_id: str
    amount_usd: Decimal
    used_usd: Decimal
    expires: datetime


@dataclass(frozen=True)
class Live:
    """Both, oldest first."""

    charges: tuple[LiveCharge, ...]
    reservations: tuple[Reservation, ...]


def live(ledger: Ledger) -> Live:
    """What is open now. Raises `LedgerUnavailableError`."""
    opened, holds = schema.open_charges, schema.holds
    with ledger.database.read() as connection:
        charges = connection.execute(
            sa.select(opened).where(opened.c.state == "open").order_by(opened.c.start_us)
        ).all()  # fmt: skip
        reserved = connection.execute(
            sa.select(holds)
            .where(holds.c.state == "live", holds.c.expires_us > to_us(ledger.clock()))
            .order_by(holds.c.created_us)
        ).all()
    return Live(
        tuple(
            LiveCharge(row.run_id, row.stage, row.host, from_us(row.start_us), from_us(row.heartbeat_us))
            for row in charges
        ),
        tuple(
            Reservation(row.run_id, from_pico(row.amount_pico), from_pico(row.used_pico), from_us(row.expires_us))
            for row in reserved
        ),
    )
