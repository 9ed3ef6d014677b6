"""What promotions saved, and what reserving devices would have saved.

record_promotion(ledger, run_id="r9", model_name="chat", model_id="chat:v7", replaced_model_id="chat:v6",
                 usd_per_1k_tokens=Decimal("0.0021"), replaced_usd_per_1k_tokens=Decimal("0.0034"),
                 decision_usd=Decimal("0.82"), team="research")
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

import sqlalchemy as sa

from finops.ledger import schema
from finops.ledger.database import Row, insert_ignore
from finops.ledger.ledger import Ledger
from finops.money import from_pico, from_us, round_decimals, to_pico, to_us

MAX_RESERVED = 64


@dataclass(frozen=True)
class Saving:
    """What one promotion saved until it was itself replaced. `usd` is None where nothing says what was served."""

    model_name: str
    model_id: str
    replaced_model_id: str | None
    time: datetime
    num_tokens: int
    usd: Decimal | None
    reason: str = ""


@dataclass(frozen=True)
class Reservation:
    """Right-sizing of one accelerator over the recorded period.

    `best_num` devices would have saved `best_saving_usd` against on-demand prices; `break_even` is the utilization
    above which one reserved device pays; `saving_by_num[n - 1]` is what n devices would have saved (negative: lost).
    """

    accelerator: str
    on_demand_usd_per_hour: Decimal
    reserved_usd_per_hour: Decimal
    period_hours: Decimal
    best_num: int
    best_saving_usd: Decimal
    saving_by_num: tuple[Decimal, ...]

    @property
    def break_even(self) -> float:
        """Reserved price over on-demand price."""
        return float(self.reserved_usd_per_hour / self.on_demand_usd_per_hour)


def record_promotion(
    ledger: Ledger, *, run_id: str, model_name: str, model_id: str, team: str, usd_per_1k_tokens: Decimal,
    decision_usd: Decimal, replaced_model_id: str | None = None, replaced_usd_per_1k_tokens: Decimal | None = None,
) -> None:  # fmt: skip
    """Record a promotion with both models' unit costs, and what its evidence cost. Repeating changes nothing."""

    def nano(price: Decimal | None) -> int | None:
        return None if price is None else int(round_decimals(price, 9).scaleb(9))

    with ledger.database.write() as connection:
        connection.execute(
            insert_ignore(schema.promotions, ledger.database.is_sqlite),
            {
                "run_id": run_id, "model_name": model_name, "model_id": model_id, "team": team,
                "replaced_model_id": replaced_model_id, "price_per_1k_nano": nano(usd_per_1k_tokens),
                "replaced_price_per_1k_nano": nano(replaced_usd_per_1k_tokens),
                "decision_pico": to_pico(round_decimals(decision_usd, 12)), "time_us": to_us(ledger.clock()),
            },
        )  # fmt: skip


def savings(ledger: Ledger) -> list[Saving]:
    """Each promotion's saving: tokens served by the model since, times the fall of the price, oldest first."""
    table, charge = schema.promotions, schema.charges
    found = []
    with ledger.database.read() as connection:
        rows = connection.execute(sa.select(table).order_by(table.c.time_us)).all()
        for index, row in enumerate(rows):
            later = [other.time_us for other in rows[index + 1 :] if other.model_name == row.model_name]
            served = sa.func.coalesce(charge.c.input_tokens, 0) + sa.func.coalesce(charge.c.output_tokens, 0)
            query = sa.select(sa.func.coalesce(sa.func.sum(served), 0)).where(
                charge.c.model_id == row.model_id, charge.c.workload_type == "inference",
                charge.c.start_us >= row.time_us,
            )  # fmt: skip
            if later:
                query = query.where(charge.c.start_us < later[0])
            found.append(_saving(row, int(connection.execute(query).scalar_one())))
    return found


def _saving(row: Row, num_tokens: int) -> Saving:
    usd, reason = None, ""
    if row.replaced_price_per_1k_nano is None:
        reason = "it replaced no model with a known price"
    elif not num_tokens:
        reason = "no serving of it was ingested"
    else:
        fall = Decimal(row.replaced_price_per_1k_nano - row.price_per_1k_nano).scaleb(-9)
        usd = fall * num_tokens / 1000
    return Saving(row.model_name, row.model_id, row.replaced_model_id, from_us(row.time_us), num_tokens, usd, reason)


def right_size(
    ledger: Ledger, reserved_usd_per_hour: Mapping[str, Decimal], *, start: datetime | None = None,
    end: datetime | None = None,
) -> list[Reservation]:  # fmt: skip
    """For each accelerator with a reserved price: how many reserved devices would have saved how much.

    Takes the on-demand usage recorded (MIG shares by their slices) and how many devices were in use at every moment; n
    reserved devices take the first n of them. An accelerator without on-demand usage is left out.
    """
    table = schema.charges
    found = []
    for accelerator, reserved in sorted(reserved_usd_per_hour.items()):
        query = sa.select(table.c.start_us, table.c.end_us, table.c.quantity_micro, table.c.effective_usd_pico).where(
            table.c.accelerator == accelerator, table.c.purchase_option == "on_demand", table.c.quantity_micro > 0,
            table.c.end_us > table.c.start_us, table.c.charge_category == "Usage",
        )  # fmt: skip
        if start is not None:
            query = query.where(table.c.start_us >= to_us(start))
        if end is not None:
            query = query.where(table.c.start_us < to_us(end))
        with ledger.database.read() as connection:
            rows = connection.execute(query).all()
        if rows:
            found.append(_right_size(accelerator, reserved, rows))
    return found


def _right_size(accelerator: str, reserved: Decimal, rows: Sequence[Row]) -> Reservation:
    hours_at, period_us = _hours_by_level(rows)
    quantity = sum(row.quantity_micro for row in rows)
    on_demand = from_pico(sum(row.effective_usd_pico for row in rows)) * 1_000_000 / quantity
    period = Decimal(period_us) / 3_600_000_000
    num_levels = min(MAX_RESERVED, math.ceil(max(hours_at)))
    saved = []
    for number in range(1, num_levels + 1):
        covered = sum((Decimal(repr(min(level, number))) * hours for level, hours in hours_at.items()), Decimal(0))
        saved.append(round_decimals(covered * on_demand - number * period * reserved, 2))
    best = max(range(len(saved)), key=lambda index: saved[index])
    if saved[best] <= 0:
        return Reservation(accelerator, on_demand, reserved, period, 0, Decimal(0), tuple(saved))
    return Reservation(accelerator, on_demand, reserved, period, best + 1, saved[best], tuple(saved))


def _hours_by_level(rows: Sequence[Row]) -> tuple[dict[float, Decimal], int]:
    """Hours for which each number of devices was in use at once, and the length of the whole period (us)."""
    changes: dict[int, float] = defaultdict(float)
    for row in rows:
        devices = row.quantity_micro * 3600 / (row.end_us - row.start_us)
        changes[row.start_us] += devices
        changes[row.end_us] -= devices
    moments = sorted(changes)
    hours: dict[float, Decimal] = defaultdict(Decimal)
    level = 0.0
    for moment, following in itertools.pairwise(moments):
        level = round(level + changes[moment], 6)
        hours[max(level, 0.0)] += Decimal(following - moment) / 3_600_000_000
    return hours, moments[-1] - moments[0]
