"""Corrections: what a charge should have cost, minus what the ledger says so far, as a row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import sqlalchemy as sa

from core.errors import UserError
from core.redact import redact_text
from finops.ledger import schema
from finops.ledger.charges import NO_QUANTITIES, Charge, charge_key
from finops.money import from_pico, round_decimals, to_pico, to_us

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

COSTS = ("list", "contracted", "billed", "effective")


def correction(
    connection: Connection,
    key: str,
    *,
    wanted: Mapping[str, Decimal | None],
    reason: str,
    correction_id: str,
    now: datetime,
) -> Charge:
    """The Correction row that brings a charge to its `wanted` costs (billing currency; None leaves a cost as it is).

    The difference is taken to the charge with its earlier corrections. A row with the same `correction_id` that
    stands already is returned as it is, so that a replay adds nothing. Raises `UserError` for an unknown key.
    """
    table = schema.charges
    columns = [table.c[field.name] for field in fields(Charge)]
    original_row = connection.execute(sa.select(*columns).where(table.c.key == key).with_for_update()).one_or_none()
    if original_row is None:
        raise UserError(f"correction: no charge has the key '{key}'. List a run's charges with Ledger.charges(run_id=)")
    original = Charge(**original_row._mapping)
    if original.charge_class is not None:
        raise UserError(f"correction: '{key}' is itself a correction; correct the charge {original.corrects}")
    earlier = [Charge(**row._mapping) for row in connection.execute(sa.select(*columns).where(table.c.corrects == key))]
    row_key = _key(original, correction_id)
    for row in earlier:
        if row.key == row_key:
            return row
    deltas = {}
    for name in COSTS:
        so_far = sum(getattr(row, f"{name}_pico") for row in (original, *earlier))
        value = wanted[name]
        deltas[name] = 0 if value is None else to_pico(round_decimals(value, 12), name) - so_far
    usd = from_pico(deltas["effective"]) / Decimal(original.fx_rate)
    return replace(
        original,
        key=row_key,
        charge_class="Correction",
        corrects=original.key,
        status="corrected",
        description=redact_text(f"correction: {reason}"),
        created_us=to_us(now),
        **NO_QUANTITIES,
        list_pico=deltas["list"],
        contracted_pico=deltas["contracted"],
        billed_pico=deltas["billed"],
        effective_pico=deltas["effective"],
        effective_usd_pico=to_pico(round_decimals(usd, 12)),
        input_tokens=None,
        output_tokens=None,
        num_requests=None,
        busy_micro=None,
        hold_id=None,
    )


def _key(original: Charge, correction_id: str) -> str:
    meter = f"correction:{original.key}:{correction_id}"
    return charge_key(
        original.run_id,
        original.resource_id,
        original.start_us,
        original.end_us,
        meter=meter,
        price_version=original.price_version,
    )
