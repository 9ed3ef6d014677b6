"""Reserved capacity: the purchase, the usage it covers, and the unused rest, so that what was paid is what is used up.

    commitment = Commitment(
        "l4-2026", "NVIDIA L4", "gcp", "europe-west4", 4, Decimal("0.495"), Decimal("0.825"), start, end)
    buy(ledger, commitment, tags)                     # Purchase rows by month: billed, effective cost 0
    rate = commitment.rate()                          # for covered usage: billed 0, effective = the amortized rate
    settle_unused(ledger, commitment, until, tags)    # Usage row `Unused` for what nobody used so far

The sum of effective cost (used + unused) over the term equals the sum billed by the purchase rows, exactly (FOCUS 1.2).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from core.errors import UserError
from finops.ledger import schema
from finops.ledger.charges import Charge, Rate, Resource, charge_key, device_charge
from finops.ledger.database import insert_ignore
from finops.ledger.ledger import Ledger
from finops.ledger.spend import period_bounds
from finops.money import TICK_US, from_us, to_us


@dataclass(frozen=True)
class Commitment:
    """`num_devices` reserved from start to end at `usd_per_hour` each; `list_usd_per_hour` is the on-demand price."""

    id: str
    accelerator: str
    provider: str
    region: str
    num_devices: int
    usd_per_hour: Decimal
    list_usd_per_hour: Decimal
    start: datetime
    end: datetime
    purchase_option: str = "reserved_1y"
    kind: str = "GPU"

    @property
    def price_version(self) -> str:
        """The version that the commitment's charges freeze."""
        return f"commitment:{self.id}"

    def rate(self) -> Rate:
        """The rate of usage that the commitment covers."""
        return Rate(
            self.usd_per_hour,
            self.price_version,
            self.purchase_option,
            self.region,
            list_usd_per_hour=self.list_usd_per_hour,
            commitment_id=self.id,
        )

    def resource(self) -> Resource:
        """The reserved capacity as a resource; FOCUS wants the commitment's id as its ResourceId."""
        return Resource(self.id, self.accelerator, self.kind, self.region, self.provider, self.num_devices)


def buy(ledger: Ledger, commitment: Commitment, tags: Mapping[str, str]) -> list[Charge]:
    """Record the commitment and its Purchase rows, one per month of the term. Repeating it changes nothing."""
    if to_us(commitment.end) <= to_us(commitment.start):
        raise UserError(f"commitment {commitment.id}: its end must lie after its start")
    terms = {key: str(value) for key, value in dataclasses.asdict(commitment).items()}
    rows = []
    begin = commitment.start
    while begin < commitment.end:
        finish = min(period_bounds("month", begin)[1], commitment.end)
        rows.append(_purchase(commitment, tags, begin, finish))
        begin = finish
    with ledger.database.write() as connection:
        connection.execute(
            insert_ignore(schema.commitments, ledger.database.is_sqlite),
            {
                "id": commitment.id,
                "terms": json.dumps(terms, sort_keys=True),
                "start_us": to_us(commitment.start),
                "end_us": to_us(commitment.end),
            },
        )
        for row in rows:
            ledger.record_in(connection, row)
    return rows


def _purchase(commitment: Commitment, tags: Mapping[str, str], start: datetime, end: datetime) -> Charge:
    rate = replace(commitment.rate(), commitment_id=None, list_usd_per_hour=None)
    row = device_charge(
        run_id="",
        stage="purchase",
        resource=commitment.resource(),
        rate=rate,
        tags=tags,
        start=start,
        end=end,
        status="committed",
        meter="commitment_purchase",
    )
    return replace(
        row,
        charge_category="Purchase",
        commitment_id=commitment.id,
        effective_pico=0,
        effective_usd_pico=0,
        consumed_micro=None,
        device_micro=0,
        description=f"commitment {commitment.id}: {commitment.num_devices} x {row.accelerator}",
    )


def _running(connection: Connection, commitment: Commitment, until_us: int) -> int:
    """What usage that ends after a moment had used until then, in micro-hours, rounded down."""
    table = schema.charges
    rows = connection.execute(
        sa.select(table.c.start_us, table.c.end_us, table.c.quantity_micro).where(
            table.c.commitment_id == commitment.id,
            table.c.commitment_status == "Used",
            table.c.start_us < until_us,
            table.c.end_us > until_us,
        )
    ).all()
    parts = (row.quantity_micro * (until_us - row.start_us) // (row.end_us - row.start_us) for row in rows)
    return int(sum(parts))


def settle_unused(ledger: Ledger, commitment: Commitment, until: datetime, tags: Mapping[str, str]) -> Charge | None:
    """Record what the commitment offered from its start to `until` and nobody used, less what was recorded before.

    Usage that goes on beyond `until` counts with its part before it. Returns None where nothing new is unused.

    Raises:
        UserError: at the end of the term more was charged to the commitment than it offers. That usage was on demand
            and needs a correction.

    """
    table = schema.charges
    until_us, start_us = min(to_us(until), to_us(commitment.end)), to_us(commitment.start)
    whole = max(0, until_us - start_us) // TICK_US * commitment.num_devices
    with ledger.database.write() as connection:
        if not ledger.database.is_sqlite:  # two settlements of one commitment wait for each other
            commitments = schema.commitments
            connection.execute(sa.select(commitments).where(commitments.c.id == commitment.id).with_for_update()).all()
        counted = sa.and_(
            table.c.commitment_id == commitment.id, table.c.commitment_status.is_not(None), table.c.end_us <= until_us
        )
        query = sa.select(sa.func.coalesce(sa.func.sum(table.c.quantity_micro), 0)).where(counted)
        rest = whole - int(connection.execute(query).scalar_one()) - _running(connection, commitment, until_us)
        if rest < 0 and until_us == to_us(commitment.end):
            raise UserError(
                f"commitment {commitment.id}: more usage was charged to it than it offers ({-rest} micro-hours)"
            )
        if rest <= 0:
            return None
        last = connection.execute(
            sa.select(sa.func.max(table.c.end_us)).where(counted, table.c.commitment_status == "Unused")
        ).scalar()
        begin = from_us(int(last) if last is not None else start_us)
        row = device_charge(
            run_id="",
            stage="unused",
            resource=commitment.resource(),
            rate=commitment.rate(),
            tags=tags,
            start=begin,
            end=from_us(until_us),
            status="idle",
            work="unused",
            meter="commitment_unused",
            quantity_micro=rest,
        )
        key = charge_key(
            "",
            row.resource_id,
            row.start_us,
            row.end_us,
            meter=f"commitment_unused:{whole}",
            price_version=row.price_version,
        )
        row = replace(row, key=key, commitment_status="Unused", consumed_micro=None)
        ledger.record_in(connection, row)
    return row
