from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from finops.ledger.charges import Rate, Resource
from finops.ledger.ledger import Ledger

TAGS = {"team": "research", "environment": "dev", "model_family": "smollm2", "workload_type": "evaluation"}


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite ledger to copy: migrating one per example would take longer than the tests."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    ledger = Ledger(str(path))
    with ledger.database.engine.connect() as connection:
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    ledger.close()
    return path


@pytest.fixture
def fast_folder():
    """A folder in memory where there is one: hundreds of small databases wait for no disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(fast_folder, empty_ledger, clock):
    path = fast_folder / "ledger.db"
    shutil.copy(empty_ledger, path)
    opened = Ledger(str(path), clock=clock)
    yield opened
    opened.close()


@pytest.fixture
def make_ledger(fast_folder, empty_ledger):
    """A function that makes fresh ledgers, for property tests."""
    opened: list[Ledger] = []

    def make(clock=None) -> Ledger:
        path = fast_folder / f"{len(opened)}.db"
        shutil.copy(empty_ledger, path)
        opened.append(Ledger(str(path), clock=clock or Clock()))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture
def gpu() -> Resource:
    return Resource("node-1/gpu-0", "NVIDIA L4", "GPU", "europe-west4", "gcp")


@pytest.fixture
def rate() -> Rate:
    return Rate(Decimal("0.825"), "catalog@2026-10-01", list_usd_per_hour=Decimal("0.95"))


@pytest.fixture
def tags() -> dict[str, str]:
    return dict(TAGS)
