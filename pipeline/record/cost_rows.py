"""The prices of a model's recorded runs: read in three queries, and written back in one transaction.

MLflow's client writes one run at a time, tens of milliseconds each: minutes for 10,000 runs. A SQLite store whose
tables are those of the MLflow that is locked here is therefore written directly, all runs or none; any other store goes
through the client.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import TrackingConfig
from pipeline.record.store import NEWEST_FIRST, Recorder, connect, literal
from pipeline.record.tags import CANDIDATE_KEY, FRONTIER_GROUP, all_names

SQLITE = "sqlite:///"
TAGS = all_names("hardware", "label", "purchase_option", "role", CANDIDATE_KEY, FRONTIER_GROUP)
COLUMNS = {
    "metrics": {"key", "value", "timestamp", "run_uuid", "step", "is_nan"},
    "latest_metrics": {"key", "value", "timestamp", "step", "is_nan", "run_uuid"},
    "tags": {"key", "value", "run_uuid"},
}
"""The tables that are written, as MLflow 3 makes them; with other columns the client is used."""
WANTED = """
    SELECT r.run_uuid FROM runs r
    JOIN experiments e ON e.experiment_id = r.experiment_id AND e.name = :experiment
    JOIN tags m ON m.run_uuid = r.run_uuid AND m.key = 'model' AND m.value = :model
    JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'role' AND t.value != 'stage'
    WHERE r.status = 'FINISHED' AND r.lifecycle_stage = 'active'
"""


@dataclass(frozen=True)
class CostRun:
    """What re-pricing needs of a recorded run."""

    run_id: str
    tags: Mapping[str, str]
    metrics: Mapping[str, float]
    """Those below `cost/`."""


@dataclass(frozen=True)
class Annotation:
    """What is added to a run: metrics, and the tag that says where they come from."""

    run_id: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str]


def cost_runs(tracking: TrackingConfig, model: str) -> list[CostRun]:
    """Every finished run of a model, newest first."""
    with _direct(tracking, "ro") as connection:
        return _from_client(tracking, model) if connection is None else _read(connection, tracking.experiment, model)


def write(tracking: TrackingConfig, annotations: Sequence[Annotation]) -> None:
    """Add metrics and tags to runs; an older value of the same name stays in MLflow's history of the metric."""
    with _direct(tracking, "rw") as connection:
        if connection is None:
            _through_client(tracking, annotations)
        else:
            _insert(connection, annotations)


@contextmanager
def _direct(tracking: TrackingConfig, mode: str) -> Iterator[sqlite3.Connection | None]:
    """A connection to a SQLite store that is as we know it; None for any other store."""
    path = Path(tracking.uri.removeprefix(SQLITE))
    if not tracking.uri.startswith(SQLITE) or not path.exists():
        yield None
        return
    with closing(sqlite3.connect(f"file:{path}?mode={mode}", uri=True, timeout=60, isolation_level=None)) as connection:
        known = all(
            {row[1] for row in connection.execute(f"PRAGMA table_info({table})")} == columns
            for table, columns in COLUMNS.items()
        )
        yield connection if known else None


def _read(connection: sqlite3.Connection, experiment: str, model: str) -> list[CostRun]:
    values = {"model": model, "experiment": experiment}
    order = f"SELECT run_uuid FROM runs WHERE run_uuid IN ({WANTED}) ORDER BY end_time DESC, start_time DESC"
    run_ids = [run_id for (run_id,) in connection.execute(order, values)]
    tags: dict[str, dict[str, str]] = {run_id: {} for run_id in run_ids}
    metrics: dict[str, dict[str, float]] = {run_id: {} for run_id in run_ids}
    names = ",".join(f"'{name}'" for name in TAGS)
    query = f"SELECT run_uuid, key, value FROM tags WHERE key IN ({names}) AND run_uuid IN ({WANTED})"
    for run_id, key, text in connection.execute(query, values):
        tags[run_id][key] = text
    query = (
        f"SELECT run_uuid, key, value FROM latest_metrics WHERE key >= 'cost/' AND key < 'cost0' "
        f"AND NOT is_nan AND run_uuid IN ({WANTED})"
    )
    for run_id, key, value in connection.execute(query, values):
        metrics[run_id][key] = value
    return [CostRun(run_id, tags[run_id], metrics[run_id]) for run_id in run_ids]


def _insert(connection: sqlite3.Connection, annotations: Sequence[Annotation]) -> None:
    now = time.time_ns() // 1_000_000
    in_order = sorted(annotations, key=lambda one: one.run_id)  # the indexes grow at one end: half the time
    rows = [(key, one.metrics[key], now, one.run_id) for one in in_order for key in sorted(one.metrics)]
    tags = [(key, value, one.run_id) for one in in_order for key, value in one.tags.items()]
    columns = "key, value, timestamp, run_uuid, step, is_nan"
    connection.execute("PRAGMA cache_size = -200000")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table, rule in (("metrics", "IGNORE"), ("latest_metrics", "REPLACE")):
            connection.executemany(f"INSERT OR {rule} INTO {table} ({columns}) VALUES (?, ?, ?, ?, 0, 0)", rows)
        connection.executemany("INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", tags)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _from_client(tracking: TrackingConfig, model: str) -> list[CostRun]:
    recorder = Recorder(tracking)
    text = f"tags.model = {literal(model)} and attributes.status = 'FINISHED'"
    found, token = [], None
    while True:
        page = recorder.client.search_runs(
            [recorder.experiment_id],
            f"{text} and tags.role != 'stage'",
            max_results=1000,
            order_by=NEWEST_FIRST,
            page_token=token,
        )
        found += list(page)
        token = page.token
        if not token:
            break
    return [
        CostRun(
            str(run.info.run_id),
            {key: value for key, value in run.data.tags.items() if key in TAGS},
            {key: value for key, value in run.data.metrics.items() if key.startswith("cost/")},
        )
        for run in found
    ]


def _through_client(tracking: TrackingConfig, annotations: Sequence[Annotation]) -> None:
    from mlflow.entities import Metric, RunTag

    client = connect(tracking)
    now = time.time_ns() // 1_000_000
    for one in annotations:
        metrics = [Metric(key, value, now, 0) for key, value in one.metrics.items()]
        client.log_batch(one.run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in one.tags.items()])
