"""What the frontier needs of recorded runs, read in three queries: 10,000 runs in about a second.

MLflow's own search builds every run with all its metrics and params, one object each, which takes minutes at that size.
A SQLite store is therefore read directly (tables `runs`, `latest_metrics` and `tags`, read only); any other store goes
through MLflow.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

from pipeline.config import TrackingConfig
from pipeline.record.store import Recorder
from pipeline.record.tags import (
    CANDIDATE_KEY,
    COMPARISON_GROUP,
    FRONTIER_GROUP,
    QUALITY_INVALID_REASON,
    all_names,
    tag_of,
)

SQLITE = "sqlite:///"
TAGS = all_names(
    "decision", "hardware", "label", "model", "purchase_option", "quality_method", "role",
    CANDIDATE_KEY, COMPARISON_GROUP, FRONTIER_GROUP, QUALITY_INVALID_REASON,
)  # fmt: skip
METRICS = (
    "quality/mean%", "quality/num_items", "difference_points%", "price/%", "cost/%", "size/bytes",
    "load/%/output_tok_per_s",
)  # fmt: skip
"""SQL patterns of the metrics that are read."""


@dataclass(frozen=True)
class RunInfo:
    """As `mlflow.entities.RunInfo`, as far as it is needed."""

    run_id: str
    start_time: int
    """Milliseconds since 1970."""


@dataclass(frozen=True)
class RunData:
    """As `mlflow.entities.RunData`, as far as it is needed."""

    metrics: Mapping[str, float]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class RecordedRun:
    """A finished run's figures. MLflow's own `Run` has the same attributes."""

    info: RunInfo
    data: RunData


def frontier_runs(recorder: Recorder, tracking: TrackingConfig, model: str) -> list[RecordedRun]:
    """The newest finished run of each candidate of a model, newest first."""
    if not tracking.uri.startswith(SQLITE):
        return list(recorder.runs(model))
    path = tracking.uri.removeprefix(SQLITE)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return newest_of_each(_read(connection, recorder.experiment_id, model))


def newest_of_each(runs: Iterable[RecordedRun]) -> list[RecordedRun]:
    """One run per candidate; `runs` are newest first."""
    found: dict[str, RecordedRun] = {}
    for run in runs:
        found.setdefault(tag_of(run.data.tags, CANDIDATE_KEY) or run.info.run_id, run)
    return list(found.values())


WANTED = """
    SELECT r.run_uuid FROM runs r
    JOIN tags m ON m.run_uuid = r.run_uuid AND m.key = 'model' AND m.value = :model
    JOIN tags t ON t.run_uuid = r.run_uuid AND t.key = 'role' AND t.value != 'stage'
    WHERE r.experiment_id = :experiment AND r.status = 'FINISHED' AND r.lifecycle_stage = 'active'
"""


def _read(connection: sqlite3.Connection, experiment_id: str, model: str) -> list[RecordedRun]:
    values = {"model": model, "experiment": int(experiment_id)}
    wanted = f"SELECT run_uuid, start_time FROM runs WHERE run_uuid IN ({WANTED})"
    order = f"{wanted} ORDER BY end_time DESC, start_time DESC"
    infos = [RunInfo(run_id, start_time or 0) for run_id, start_time in connection.execute(order, values)]
    tags: dict[str, dict[str, str]] = {info.run_id: {} for info in infos}
    metrics: dict[str, dict[str, float]] = {info.run_id: {} for info in infos}
    names = ",".join(f"'{name}'" for name in TAGS)
    query = f"SELECT run_uuid, key, value FROM tags WHERE key IN ({names}) AND run_uuid IN ({WANTED})"
    for run_id, key, value in connection.execute(query, values):
        tags[run_id][key] = value
    patterns = " OR ".join(f"key LIKE '{pattern}'" for pattern in METRICS)
    query = (
        f"SELECT run_uuid, key, value FROM latest_metrics WHERE ({patterns}) AND NOT is_nan AND run_uuid IN ({WANTED})"
    )
    for run_id, key, value in connection.execute(query, values):
        metrics[run_id][key] = value
    return [RecordedRun(info, RunData(metrics[info.run_id], tags[info.run_id])) for info in infos]
