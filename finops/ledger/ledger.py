"""The ledger: append-only charges with deterministic keys, in SQLite or PostgreSQL.

    ledger = Ledger()                                   # PARSIMONY_LEDGER_URL, else mlruns/finops.db
    ledger.recover()                                    # charge what a killed run left open
    with Meter(ledger, run_id="r1", stage="quantize", resource=resource, rate=rate, tags=tags) as meter:
        ...                                             # the stage; meter.checkpoint() when its work is safe

Recording is idempotent: the same charge again changes nothing, and other figures under the same key are refused. A
charge, the spend of every budget that it falls under, the draw on the run's reservation and the alerts that it causes
are one transaction.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Unpack

import sqlalchemy as sa
from sqlalchemy.sql.dml import ReturningInsert

from finops.errors import ChargeConflictError, LedgerUnavailableError
from finops.ledger import schema
from finops.ledger.charges import Charge, Rate, Resource, Usage, clean_tags, cut, device_charge
from finops.ledger.corrections import correction
from finops.ledger.database import Database, Row, exact_sum, insert_ignore, join_sum
from finops.ledger.spend import book_spend
from finops.money import from_pico, from_us, to_us

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection


HEARTBEAT_EVERY_S = 10.0
COLUMNS = tuple(field.name for field in dataclasses.fields(Charge))
_FIGURES = ("quantity_micro", "list_pico", "contracted_pico", "billed_pico", "effective_pico", "currency")
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class OpenCharge:
    """A stage that uses a machine now (or died while using it)."""

    id: str
    run_id: str
    stage: str
    resource: Resource
    rate: Rate
    tags: dict[str, str]
    start: datetime
    hold_id: str | None = None


class Ledger:
    """Charges in a database. One per process; not shared across a fork."""

    def __init__(self, url: str | None = None, *, create: bool = True, clock: Clock = utc_now) -> None:
        """Open (and migrate) the ledger at a URL or SQLite path. Raises `LedgerUnavailableError`."""
        self.database = Database(url, create=create)
        self.clock = clock

    def close(self) -> None:
        """Give back the database's connections."""
        self.database.close()

    # Recording -------------------------------------------------------------------------------------------------------

    def record(self, *charges: Charge) -> int:
        """Record charges in one transaction and return how many were new.

        A charge that is there already changes nothing. Raises `ChargeConflictError` where it is there with other
        figures: then nothing of this call is recorded.
        """
        with self.database.write() as connection:
            return sum(self.record_in(connection, charge) for charge in charges)

    def record_in(self, connection: Connection, charge: Charge) -> bool:
        """`record` of one charge inside the caller's write transaction; True where it was new."""
        values = {name: getattr(charge, name) for name in COLUMNS}
        # RETURNING says whether the row is new; with it PostgreSQL's driver reports no row count.
        if connection.execute(_insert_charge(self.database.is_sqlite), values).first() is not None:
            book_spend(connection, self.database, charge, to_us(self.clock()))
            return True
        table = schema.charges
        query = sa.select(*[table.c[name] for name in _FIGURES]).where(table.c.key == charge.key)
        recorded = connection.execute(query).one()
        given = tuple(values[name] for name in _FIGURES)
        if tuple(recorded) != given:
            raise ChargeConflictError(
                f"charge: run {charge.run_id}, {charge.resource_id}, {from_us(charge.start_us).isoformat()}: "
                f"recorded with effective cost {from_pico(recorded.effective_pico)}, "
                f"now given {from_pico(charge.effective_pico)}\n"
                "    -> the ledger is append-only: write the difference with Ledger.correct()"
            )
        return False

    def correct(
        self,
        key: str,
        *,
        reason: str,
        billed: Decimal | None = None,
        effective: Decimal | None = None,
        contracted: Decimal | None = None,
        list_cost: Decimal | None = None,
        correction_id: str | None = None,
    ) -> Charge:
        """Correct a charge: record a Correction row with the difference to the costs that should have stood there.

        Costs are in the charge's billing currency; those not given stay. The difference is to the charge together
        with its earlier corrections, so a repeated call adds nothing. `correction_id` (default: the reason) makes the
        row's key. Raises `UserError` for an unknown key.
        """
        wanted = {"list": list_cost, "contracted": contracted, "billed": billed, "effective": effective}
        with self.database.write() as connection:
            row = correction(
                connection, key, wanted=wanted, reason=reason, correction_id=correction_id or reason, now=self.clock()
            )
            self.record_in(connection, row)
        return row

    # Open charges ----------------------------------------------------------------------------------------------------

    def open_charge(
        self,
        *,
        run_id: str,
        stage: str,
        resource: Resource,
        rate: Rate,
        tags: Mapping[str, str],
        hold_id: str | None = None,
        heartbeat_every_s: float = HEARTBEAT_EVERY_S,
        start: datetime | None = None,
    ) -> OpenCharge:
        """Note that a stage uses a resource from now on. Raises `LedgerUnavailableError`: then do not start it."""
        begun = from_us(to_us(start or self.clock()))
        opened = OpenCharge(uuid.uuid4().hex, run_id, stage, resource, rate, clean_tags(tags), begun, hold_id)
        terms = {
            "resource": dataclasses.asdict(resource),
            "rate": {key: _text(value) for key, value in dataclasses.asdict(rate).items()},
            "tags": opened.tags,
        }
        with self.database.write() as connection:
            connection.execute(
                sa.insert(schema.open_charges),
                {
                    "id": opened.id, "run_id": run_id, "stage": stage, "terms": json.dumps(terms, sort_keys=True),
                    "start_us": to_us(begun), "heartbeat_us": to_us(begun), "hold_id": hold_id,
                    "heartbeat_every_us": int(heartbeat_every_s * 1e6), "checkpoint_us": None,
                    "host": socket.gethostname(), "pid": os.getpid(), "state": "open",
                },
            )  # fmt: skip
        return opened

    def heartbeat(self, open_id: str, *, checkpoint: bool = False) -> None:
        """A sign of life of an open charge; `checkpoint` says that the work so far is safe.

        Raises `LedgerUnavailableError` where the charge was closed meanwhile, by a recovery that took it for dead.
        """
        now_us = to_us(self.clock())
        table = schema.open_charges
        changes = {"heartbeat_us": now_us} | ({"checkpoint_us": now_us} if checkpoint else {})
        with self.database.write() as connection:
            done = connection.execute(
                sa.update(table).where(table.c.id == open_id, table.c.state == "open").values(**changes)
            )
        if done.rowcount == 0:
            raise LedgerUnavailableError(f"open charge {open_id}: it was closed by another process; stop this stage")

    def close_charge(
        self,
        opened: OpenCharge,
        *,
        status: str = "completed",
        end: datetime | None = None,
        safe_until: datetime | None = None,
        **usage: Unpack[Usage],
    ) -> list[Charge]:
        """End an open charge and record it. Closing one that is closed already returns no charge and changes nothing.

        A status other than `completed` cuts the charge at the last checkpoint (or at `safe_until`): what follows is
        lost work, charged and labeled. `usage` is `Charge.with_usage`'s.
        """
        table = schema.open_charges
        with self.database.write() as connection:
            row = connection.execute(
                sa.select(table).where(table.c.id == opened.id, table.c.state == "open").with_for_update()
            ).one_or_none()
            if row is None:
                return []
            safe_us = to_us(safe_until) if safe_until else row.checkpoint_us
            return self._close(connection, opened, end or self.clock(), status=status, safe_us=safe_us, usage=usage)

    def recover(self, *, grace_s: float = 30.0) -> list[Charge]:
        """Find the stages that died (no heartbeat for three intervals and `grace_s`) and charge them as killed.

        They are charged until their last sign of life plus one interval, the latest moment at which they can have
        lived, and labeled lost since their last checkpoint. Call it when a run starts. Several processes may: each
        charge is closed once.
        """
        table = schema.open_charges
        now_us = to_us(self.clock())
        recovered: list[Charge] = []
        with self.database.read() as connection:
            rows = connection.execute(sa.select(table).where(table.c.state == "open")).all()
        for stale in rows:
            if _is_alive(stale, now_us, int(grace_s * 1e6)):
                continue
            with self.database.write() as connection:
                row = connection.execute(
                    sa.select(table).where(table.c.id == stale.id, table.c.state == "open").with_for_update()
                ).one_or_none()
                if row is None or row.heartbeat_us != stale.heartbeat_us:
                    continue
                end_us = min(now_us, row.heartbeat_us + row.heartbeat_every_us)
                recovered += self._close(
                    connection, _opened(row), from_us(end_us), status="killed", safe_us=row.checkpoint_us, usage={}
                )
        return recovered

    def _close(
        self, connection: Connection, opened: OpenCharge, end: datetime, *, status: str, safe_us: int | None,
        usage: Usage,
    ) -> list[Charge]:  # fmt: skip
        table = schema.open_charges
        whole = device_charge(
            run_id=opened.run_id, stage=opened.stage, resource=opened.resource, rate=opened.rate, tags=opened.tags,
            start=opened.start, end=max(end, opened.start), status=status, hold_id=opened.hold_id, created=self.clock(),
        )  # fmt: skip
        parts = [whole]
        if status != "completed":
            parts = cut(whole, safe_us if safe_us is not None else whole.start_us, ("useful", "lost"))
        parts[0] = parts[0].with_usage(**usage)
        for part in parts:
            self.record_in(connection, part)
        connection.execute(sa.update(table).where(table.c.id == opened.id).values(state="closed"))
        return parts

    # Reading ---------------------------------------------------------------------------------------------------------

    def charges(self, *, run_id: str | None = None, key: str | None = None) -> list[Charge]:
        """The charges of a run, or with a key (and its corrections); all of them without either."""
        table = schema.charges
        query = sa.select(*[table.c[name] for name in COLUMNS]).order_by(table.c.id)
        if run_id is not None:
            query = query.where(table.c.run_id == run_id)
        if key is not None:
            query = query.where((table.c.key == key) | (table.c.corrects == key))
        with self.database.read() as connection:
            return [Charge(**row._mapping) for row in connection.execute(query)]

    def total_usd(self, *, run_id: str | None = None, resource_id: str | None = None) -> Decimal:
        """The exact sum of effective cost in USD, corrections included."""
        table = schema.charges
        query = sa.select(*exact_sum(table.c.effective_usd_pico))
        if run_id is not None:
            query = query.where(table.c.run_id == run_id)
        if resource_id is not None:
            query = query.where(table.c.resource_id == resource_id)
        with self.database.read() as connection:
            return from_pico(join_sum(*connection.execute(query).one()))


@functools.cache
def _insert_charge(is_sqlite: bool) -> ReturningInsert[tuple[str]]:
    return insert_ignore(schema.charges, is_sqlite).returning(schema.charges.c.key)


def _text(value: object) -> object:
    return str(value) if isinstance(value, Decimal) else value


def _opened(row: Row) -> OpenCharge:
    terms = json.loads(row.terms)
    rate = terms["rate"]
    for name in ("usd_per_hour", "list_usd_per_hour", "fx_rate"):
        rate[name] = None if rate[name] is None else Decimal(rate[name])
    return OpenCharge(
        row.id, row.run_id, row.stage, Resource(**terms["resource"]), Rate(**rate), terms["tags"],
        from_us(row.start_us), row.hold_id,
    )  # fmt: skip


def _is_alive(row: Row, now_us: int, grace_us: int) -> bool:
    """Whether an open charge's process may still live: a process of this host is asked, others by their heartbeat."""
    if row.host == socket.gethostname() and not _process_exists(row.pid):
        return False
    return bool(now_us - row.heartbeat_us <= 3 * row.heartbeat_every_us + grace_us)


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
