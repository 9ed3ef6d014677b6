"""The ledger's database: SQLite (WAL) by default, PostgreSQL by URL, migrated to this code's schema when opened.

    PARSIMONY_LEDGER_URL=postgresql://user@host/db      a password goes here, never on a command line

Writes are short transactions that serialize: on SQLite by BEGIN IMMEDIATE, on PostgreSQL by row locks that the caller
takes in a fixed order. A database that cannot be reached raises `LedgerUnavailableError`: fail closed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsInt

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from core.command import command
from core.redact import redact_text
from finops.errors import LedgerUnavailableError
from finops.ledger.schema import HEAD, VERSION_TABLE

Row = sa.Row[*tuple[Any, ...]]
"""A row of a query, its columns as attributes."""

DEFAULT_URL = "sqlite:///mlruns/finops.db"
URL_VARIABLE = "PARSIMONY_LEDGER_URL"
BUSY_TIMEOUT_S = 60
_UNUSABLE = (sa.exc.DatabaseError, sa.exc.OperationalError, sa.exc.InternalError)
"""What says that the database cannot be used: down, locked for too long, not a database."""
_ADVISORY_LOCK = 0x7061727369  # "parsi": one migration at a time on PostgreSQL


def ledger_url(given: str | None = None) -> str:
    """The URL given, else the environment's, else the default SQLite file. A bare path means SQLite."""
    url = given or os.environ.get(URL_VARIABLE) or DEFAULT_URL
    if "://" not in url:
        url = f"sqlite:///{url}"
    return url.replace("postgresql://", "postgresql+psycopg://", 1).replace("postgres://", "postgresql+psycopg://", 1)


class Database:
    """An engine with the ledger's transaction rules. Not shared across a fork: open one per process."""

    def __init__(self, url: str | None = None, create: bool = True) -> None:
        """Open and migrate. With `create=False` a missing SQLite file is an error (for commands that only read)."""
        self.url = ledger_url(url)
        self.shown_url = redact_text(self.url)
        try:
            parsed = sa.make_url(self.url)
        except SQLAlchemyError:
            raise LedgerUnavailableError(
                f"ledger: '{self.shown_url}' is not a database URL. Write sqlite:///FILE or postgresql://USER@HOST/NAME"
            ) from None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise LedgerUnavailableError(f"ledger: {self.shown_url}: the database must be SQLite or PostgreSQL.")
        path = Path(parsed.database or "") if self.is_sqlite else None
        if path is not None and not create and not path.exists():
            raise LedgerUnavailableError(
                f"ledger: there is no ledger at {path}. Run the pipeline first, or set {URL_VARIABLE} or --ledger."
            )
        with self._errors():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self.engine = _sqlite_engine(parsed) if self.is_sqlite else _postgresql_engine(parsed)
            self._migrate(path)

    def command(self, text: str) -> str:
        """A command of the product that works as typed on this ledger, which is named where it is not the default."""
        if self._place(self.url) == self._place(ledger_url()):
            return command(text)
        return command(f"{text} --ledger {shlex.quote(self.shown_url)}")

    @staticmethod
    def _place(url: str) -> str:
        """A URL for comparison: two spellings of one SQLite file are one place."""
        file = url.removeprefix("sqlite:///")
        return url if file == url else str(Path(file).resolve())

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """One write transaction: committed when the block ends, rolled back when it raises."""
        with self._errors(), self.engine.connect() as connection:
            connection.execution_options(finops_write=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """One read transaction: a consistent snapshot on SQLite."""
        with self._errors(), self.engine.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Give back all connections."""
        self.engine.dispose()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.DatabaseError, sa.exc.InterfaceError, OSError) as error:
            if isinstance(error, sa.exc.DatabaseError) and type(error) not in _UNUSABLE:
                raise  # a constraint or a statement of ours: not the database's state
            cause = error.orig if isinstance(error, DBAPIError) else error
            first = redact_text(str(cause)).strip().splitlines() or [""]
            raise LedgerUnavailableError(
                f"ledger: cannot use {self.shown_url}: {first[0]}\n"
                f"    -> nothing is spent while the ledger cannot be reached; check {URL_VARIABLE} or --ledger"
            ) from None
        except sa.exc.NoSuchModuleError as error:
            raise LedgerUnavailableError(f"ledger: {redact_text(str(error))}") from None

    def _migrate(self, path: Path | None) -> None:
        if self._revision() == HEAD:
            return
        lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if path is not None:
            lock = _file_lock(path.with_name(f"{path.name}.migrate.lock"))
        with lock:
            if path is not None:
                with self.engine.connect() as connection:  # WAL stays switched on in the file
                    connection.connection.driver_connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[union-attr]
            with self.engine.connect() as connection:
                connection.execution_options(finops_write=True)
                with connection.begin():
                    if path is None:
                        connection.execute(sa.text(f"SELECT pg_advisory_xact_lock({_ADVISORY_LOCK})"))
                    _upgrade(connection)
        if (found := self._revision()) != HEAD:
            raise LedgerUnavailableError(
                f"ledger: {self.shown_url} has schema revision {found}, this program knows up to {HEAD}. "
                "Update the program, or use another ledger."
            )

    def _revision(self) -> str | None:
        with self.engine.connect() as connection:
            if not sa.inspect(connection).has_table(VERSION_TABLE):
                return None
            return connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _upgrade(connection: Connection) -> None:
    """Run the missing migrations inside the caller's transaction. An unknown (newer) revision is left alone."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    with contextlib.suppress(CommandError):
        command.upgrade(config, "head")


def _sqlite_engine(url: sa.URL) -> Engine:
    # NORMAL in WAL mode: a killed process loses nothing, a power cut may lose the last commits but never the file's
    # consistency, and a charge costs no fsync (4 ms on a common disk). `?synchronous=full` pays for that as well.
    synchronous = str(url.query.get("synchronous", "normal")).lower()
    if synchronous not in ("normal", "full"):
        raise LedgerUnavailableError(f"ledger: synchronous={synchronous}: it must be normal or full")
    url = url.difference_update_query(["synchronous"])
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S, "isolation_level": None})

    @event.listens_for(engine, "connect")
    def _settings(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.execute("PRAGMA cache_size=-65536")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        is_write = connection.get_execution_options().get("finops_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")

    return engine


def _postgresql_engine(url: sa.URL) -> Engine:
    options = {} if "connect_timeout" in url.query else {"connect_timeout": 10}
    return sa.create_engine(url, pool_pre_ping=True, connect_args=options)


@functools.cache
def insert_ignore(table: sa.Table, is_sqlite: bool) -> sa.Insert:
    """INSERT that leaves an existing row with the same unique key alone."""
    if is_sqlite:
        from sqlalchemy.dialects.sqlite import insert as sqlite_insert

        return sqlite_insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.postgresql import insert as postgresql_insert

    return postgresql_insert(table).on_conflict_do_nothing()


def exact_sum(column: sa.ColumnElement[int]) -> tuple[sa.ColumnElement[int], sa.ColumnElement[int]]:
    """Two SQL sums, whole micro-units and the rest, that together are the exact sum of a 64-bit column.

    One sum of pico-units would pass 64 bits at 9.2 million dollars. Put them together with `join_sum`.
    """
    return (
        sa.func.coalesce(sa.func.sum(column.op("/")(sa.literal_column("1000000"))), 0),
        sa.func.coalesce(sa.func.sum(column.op("%")(sa.literal_column("1000000"))), 0),
    )


def join_sum(whole: SupportsInt, rest: SupportsInt) -> int:
    """The exact integer of `exact_sum`'s two parts. Both databases divide towards zero, so the parts share a sign."""
    return int(whole) * 1_000_000 + int(rest)
