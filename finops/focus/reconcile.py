"""A provider's FOCUS file into the ledger: what was estimated becomes what was billed, by Correction rows.

Rows of one resource and charge period are added up and given to our charges of that resource inside the period, by
their device time (largest remainder, exact). Where the provider billed more device hours than we charged, the rest of
its cost belongs to time that no run used: it becomes an idle charge. Importing a file again changes nothing; a newer
one with other figures leaves exactly its billed cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from core.errors import UserError
from core.files import digest_json
from finops.focus.files import read_rows
from finops.ledger import schema
from finops.ledger.charges import NO_QUANTITIES, Charge, charge_key
from finops.ledger.corrections import correction
from finops.ledger.ledger import COLUMNS, Ledger
from finops.money import (
    day_of,
    from_pico,
    from_us,
    month_of,
    parse_moment,
    round_decimals,
    split,
    to_decimal,
    to_micro,
    to_pico,
    to_us,
)

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

_COSTS = {
    "list": "ListCost",
    "contracted": "ContractedCost",
    "billed": "BilledCost",
    "effective": "EffectiveCost",
}
_REASON = "billed by the provider"
_NEEDED = ("ResourceId", "ChargePeriodStart", "ChargePeriodEnd", "BillingCurrency", "ChargeCategory", *_COSTS.values())


@dataclass
class _Bill:
    """What a provider charged for one resource in one period."""

    resource_id: str
    start_us: int
    end_us: int
    currency: str
    where: str
    costs_pico: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_COSTS, 0))
    quantity_micro: int | None = None


@dataclass(frozen=True)
class ImportReport:
    """What an import did; costs in the file's currency."""

    num_bills: int
    num_matched: int
    num_corrections: int
    billed: Decimal
    billed_unmatched: Decimal
    num_other_rows: int

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.num_matched} of {self.num_bills} resource periods matched, "
            f"{self.num_corrections} charges corrected. "
            f"Billed: {self.billed}, of that without a charge of ours {self.billed_unmatched}. "
            f"Skipped: {self.num_other_rows} rows that are not usage of a resource"
        )


def import_file(ledger: Ledger, path: Path) -> ImportReport:
    """Import a provider's FOCUS file (CSV or Parquet) in one transaction. Raises `UserError` naming file and line."""
    bills, others = _bills(path)
    matched = corrections = unmatched = 0
    with ledger.database.write() as connection:
        for bill in bills:
            charges = _charges_of(connection, bill)
            if not charges:
                unmatched += bill.costs_pico["billed"]
                continue
            matched += 1
            corrections += _apply(ledger, connection, bill, charges)
    total = sum(bill.costs_pico["billed"] for bill in bills)
    return ImportReport(len(bills), matched, corrections, from_pico(total), from_pico(unmatched), others)


def _charges_of(connection: Connection, bill: _Bill) -> list[Charge]:
    """Our device charges on the bill's resource (or a MIG share of it) that lie inside its period."""
    table = schema.charges
    query = (
        sa.select(*[table.c[name] for name in COLUMNS])
        .where(
            sa.or_(
                table.c.resource_id == bill.resource_id,
                table.c.resource_id.startswith(f"{bill.resource_id}/share-", autoescape=True),
            ),
            table.c.charge_class.is_(None),
            table.c.charge_category == "Usage",
            table.c.meter != "focus_remainder",
            table.c.start_us >= bill.start_us,
            table.c.end_us <= bill.end_us,
            table.c.quantity_micro > 0,
        )
        .order_by(table.c.start_us, table.c.key)
    )
    return [Charge(**row._mapping) for row in connection.execute(query)]


def _apply(ledger: Ledger, connection: Connection, bill: _Bill, charges: list[Charge]) -> int:
    for charge in charges:
        if charge.currency != bill.currency:
            raise UserError(
                f"{bill.where}: billed in {bill.currency}, but run {charge.run_id} was charged in {charge.currency}; "
                "convert the file, or charge in the provider's currency"
            )
    weights = [charge.quantity_micro or 0 for charge in charges]
    rest = max(0, (bill.quantity_micro or 0) - sum(weights))
    parts = {name: split(amount, [*weights, rest]) for name, amount in bill.costs_pico.items()}
    now = ledger.clock()
    # The figures are part of the correction's id: the same file again is the same row, a newer bill another.
    identity = digest_json([bill.resource_id, bill.start_us, bill.end_us, bill.costs_pico, bill.quantity_micro])[:16]
    done = 0
    for index, charge in enumerate(charges):
        wanted: dict[str, Decimal | None] = {name: from_pico(parts[name][index]) for name in _COSTS}
        row = correction(
            connection, charge.key, wanted=wanted, reason=_REASON, correction_id=f"focus:{identity}", now=now
        )
        done += ledger.record_in(connection, row)
    _record_rest(ledger, connection, bill, like=charges[0], rest=rest, costs={name: parts[name][-1] for name in _COSTS})
    return done


def _record_rest(
    ledger: Ledger, connection: Connection, bill: _Bill, *, like: Charge, rest: int, costs: dict[str, int]
) -> None:
    """The provider's cost of time that no run used, as an idle row; a newer bill corrects it."""
    key = charge_key(
        "", bill.resource_id, bill.start_us, bill.end_us, meter="focus_remainder", price_version="provider"
    )
    exists = connection.execute(sa.select(schema.charges.c.key).where(schema.charges.c.key == key)).first()
    if exists is not None:
        wanted: dict[str, Decimal | None] = {name: from_pico(amount) for name, amount in costs.items()}
        identity = digest_json([bill.costs_pico, bill.quantity_micro, rest])[:16]
        row = correction(
            connection, key, wanted=wanted, reason=_REASON, correction_id=f"focus:{identity}", now=ledger.clock()
        )
        ledger.record_in(connection, row)
        return
    if rest == 0:
        return
    start = from_us(bill.start_us)
    usd = round_decimals(from_pico(costs["effective"]) / Decimal(like.fx_rate), 12)
    row = replace(
        like,
        key=key,
        run_id="",
        stage="idle",
        status="idle",
        work="idle",
        meter="focus_remainder",
        resource_id=bill.resource_id,
        mig_profile=None,
        description="billed by the provider, used by no run",
        start_us=bill.start_us,
        end_us=bill.end_us,
        month=month_of(start),
        day=day_of(start),
        created_us=to_us(ledger.clock()),
        price_version="provider",
        charge_category="Adjustment",
        **NO_QUANTITIES,
        list_pico=costs["list"],
        contracted_pico=costs["contracted"],
        billed_pico=costs["billed"],
        effective_pico=costs["effective"],
        effective_usd_pico=to_pico(usd),
        model_id=None,
        input_tokens=None,
        output_tokens=None,
        num_requests=None,
        busy_micro=None,
        hold_id=None,
    )
    ledger.record_in(connection, row)


def _bills(path: Path) -> tuple[list[_Bill], int]:
    bills: dict[tuple[str, int, int], _Bill] = {}
    others = 0
    for where, row in read_rows(path, _NEEDED):
        if not row.get("ResourceId") or row["ChargeCategory"] != "Usage":
            others += 1
            continue
        try:
            span = [to_us(parse_moment(str(row[name]), name)) for name in ("ChargePeriodStart", "ChargePeriodEnd")]
            bill = bills.setdefault(
                (row["ResourceId"], span[0], span[1]),
                _Bill(row["ResourceId"], span[0], span[1], row["BillingCurrency"], where),
            )
            for name, column in _COSTS.items():
                amount = to_decimal(str(row[column]), column)
                bill.costs_pico[name] += to_pico(round_decimals(amount, 12), column)
            if row.get("PricingQuantity") and str(row.get("PricingUnit", "")).endswith("Hours"):
                hours = round_decimals(to_decimal(str(row["PricingQuantity"]), "PricingQuantity"), 6)
                bill.quantity_micro = (bill.quantity_micro or 0) + to_micro(hours, "PricingQuantity")
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if bill.currency != row["BillingCurrency"]:
            raise UserError(f"{where}: BillingCurrency {row['BillingCurrency']}, earlier rows say {bill.currency}")
    return list(bills.values()), others
