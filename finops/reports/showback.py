"""Who spent what: one pass over the ledger's covering index, then exact sums in Python. A million charges in 2 s.

shares = showback(ledger, start=date(2026, 1, 1), end=date(2027, 1, 1))
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TypeVar

import sqlalchemy as sa

from core.errors import UserError, closest
from finops.ledger import schema
from finops.ledger.database import exact_sum, join_sum
from finops.ledger.ledger import Ledger
from finops.money import day_of, from_micro, from_pico

NUM_DRIVERS = 3
_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Cell:
    """The charges of one combination of owner, month, hardware and kind of work, added up."""

    team: str
    month: int
    environment: str
    model_family: str
    workload_type: str
    accelerator: str
    purchase_option: str
    work: str
    usd_pico: int
    device_micro: int
    num_charges: int

    @property
    def driver(self) -> str:
        """What was paid for, in one line."""
        return f"{self.workload_type or 'untagged'} of {self.model_family or 'untagged'} on {self.accelerator}"


@dataclass(frozen=True)
class Share:
    """A team's part. `by_month` is yyyymm -> USD; `drivers` are the largest (what, USD), the largest first."""

    team: str
    usd: Decimal
    device_hours: Decimal
    lost_usd: Decimal
    by_month: dict[int, Decimal]
    drivers: tuple[tuple[str, Decimal], ...]
    num_charges: int

    @property
    def trend(self) -> float | None:
        """Last month against the one before, as a fraction; None with fewer than two months or none before."""
        months = sorted(self.by_month)
        if len(months) < 2 or not self.by_month[months[-2]]:
            return None
        return float(self.by_month[months[-1]] / self.by_month[months[-2]] - 1)


def cube(
    ledger: Ledger, *, start: datetime | None = None, end: datetime | None = None, team: str | None = None
) -> list[Cell]:
    """The ledger added up by owner, month, hardware and work. Days are UTC; `end` is exclusive.

    Raises `UserError` for an empty period, and for a team that has no charge at all, with the known ones.
    """
    if start is not None and end is not None and end <= start:
        raise UserError(f"--to: {end.date()} must lie after --from {start.date()}")
    table = schema.charges
    keys = [table.c[name] for name in schema.CUBE]
    query = sa.select(
        *keys, *exact_sum(table.c.effective_usd_pico), sa.func.sum(table.c.device_micro), sa.func.count()
    ).group_by(*keys)
    if start is not None:
        query = query.where(table.c.day >= day_of(start))
    if end is not None:
        query = query.where(table.c.day < day_of(end))
    if team is not None:
        query = query.where(table.c.team == team)
    with ledger.database.read() as connection:
        if team is not None:
            _check_team(connection, team)
        rows = connection.execute(query).all()
    return [Cell(*row[:8], join_sum(row[8], row[9]), int(row[10]), int(row[11])) for row in rows]


def _check_team(connection: sa.Connection, team: str) -> None:
    column = schema.charges.c.team
    if connection.execute(sa.select(column).where(column == team).limit(1)).first() is not None:
        return
    known = sorted(connection.execute(sa.select(column).distinct()).scalars())
    raise UserError(
        f"--team: '{team}' has no charge{closest(team, known)}. Teams: {', '.join(name or '(none)' for name in known)}"
    )


def showback(
    ledger: Ledger, *, start: datetime | None = None, end: datetime | None = None, team: str | None = None
) -> list[Share]:
    """Each team's share, the dearest first. Shares add up to the ledger's total exactly."""
    return shares(cube(ledger, start=start, end=end, team=team))


def shares(cells: Iterable[Cell]) -> list[Share]:
    """`showback` of cells that are read already."""
    by_team: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_team[cell.team].append(cell)
    found = [_share(team, group) for team, group in by_team.items()]
    return sorted(found, key=lambda share: (-share.usd, share.team))


def _share(team: str, cells: Sequence[Cell]) -> Share:
    return Share(
        team=team,
        usd=from_pico(sum(cell.usd_pico for cell in cells)),
        device_hours=from_micro(sum(cell.device_micro for cell in cells)),
        lost_usd=from_pico(sum(cell.usd_pico for cell in cells if cell.work == "lost")),
        by_month=dict(sorted(_sum_by(cells, lambda cell: cell.month).items())),
        drivers=top_drivers(cells),
        num_charges=sum(cell.num_charges for cell in cells),
    )


def top_drivers(cells: Iterable[Cell], num: int = NUM_DRIVERS) -> tuple[tuple[str, Decimal], ...]:
    """The largest cost drivers: kind of work, model family and hardware."""
    ranked = sorted(_sum_by(cells, lambda cell: cell.driver).items(), key=lambda item: (-item[1], item[0]))
    return tuple(ranked[:num])


def _sum_by(cells: Iterable[Cell], key: Callable[[Cell], _Key]) -> dict[_Key, Decimal]:
    totals: dict[_Key, int] = defaultdict(int)
    for cell in cells:
        totals[key(cell)] += cell.usd_pico
    return {name: from_pico(total) for name, total in totals.items()}
