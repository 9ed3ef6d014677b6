"""MLflow as the run's memory: one run per measured candidate, one child run per stage, the evidence as artifacts.

A run is found again by its `run_key` tag, so that the same command writes no second one; what a killed process left
half-written is deleted and written anew.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError
from core.files import plain, read_json, write_atomic, write_json
from evals.decide.evidence import Evidence
from evals.json_form import from_json
from evals.types import CostReport, LoadReport, QualityReport
from pipeline.config import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVIDENCE = "evidence.json"
MAX_RUNS = 5000
MAX_BATCH = 1000
"""Metrics that MLflow takes in one call."""


@dataclass(frozen=True)
class RunRecord:
    """What is written of one measured candidate."""

    run_key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    files: Mapping[str, Path]
    """Artifact path -> file to copy there."""
    texts: Mapping[str, str]
    """Artifact path -> text to write there."""
    stage_wall_s: Mapping[str, float]
    evidence: Evidence
    curves: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """Metrics that have a value at each of several steps: (step, value)."""


class Recorder:
    """Runs in one MLflow experiment."""

    def __init__(self, tracking: TrackingConfig) -> None:
        self._tracking = tracking
        self.client = connect(tracking)
        self.experiment_id = self._experiment()

    def record(self, record: RunRecord) -> tuple[str, bool]:
        """Write a run, or find it written already: its id, and whether it was there."""
        for run in self._by_key(record.run_key):
            if run.info.status == "FINISHED":
                return str(run.info.run_id), True
            self.client.delete_run(run.info.run_id)
        return self._write(record), False

    def _write(self, record: RunRecord) -> str:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.utils.time import get_current_time_millis

        tags = {**record.tags, "run_key": record.run_key}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=record.name)
        run_id = str(run.info.run_id)
        now = get_current_time_millis()
        metrics = [Metric(name, value, now, 0) for name, value in record.metrics.items()]
        params = [Param(name, value[:500]) for name, value in record.params.items()]
        self.client.log_batch(run_id, metrics=metrics, params=params)
        for name, curve in record.curves.items():
            points = [Metric(name, value, now, step) for step, value in curve]
            for start in range(0, len(points), MAX_BATCH):
                self.client.log_batch(run_id, metrics=points[start : start + MAX_BATCH])
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_json(folder / EVIDENCE, record.evidence)
            for name, text in record.texts.items():
                write_atomic(folder / name, text)
            for name, path in record.files.items():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
            self.client.log_artifacts(run_id, str(folder))
        for stage, wall_s in record.stage_wall_s.items():
            child_tags = {**record.tags, "mlflow.parentRunId": run_id, "stage": stage, "role": "stage"}
            child = self.client.create_run(self.experiment_id, tags=child_tags, run_name=f"{record.name}/{stage}")
            self.client.log_batch(
                child.info.run_id, metrics=[Metric("wall_s", wall_s, now, 0)], tags=[RunTag("stage", stage)]
            )
            self.client.set_terminated(child.info.run_id)
        self.client.set_terminated(run_id)
        return run_id

    def annotate(
        self, run_id: str, *, tags: Mapping[str, str], metrics: Mapping[str, float], folder: Path | None = None
    ) -> None:
        """Add a decision's tags, metrics and files to a run."""
        for name, text in tags.items():
            self.client.set_tag(run_id, name, text[:5000])
        for name, value in metrics.items():
            self.client.log_metric(run_id, name, value)
        if folder is not None:
            self.client.log_artifacts(run_id, str(folder))

    def runs(self, model: str) -> list[Run]:
        """The newest finished run of each candidate of a model, newest first."""
        text = f"tags.model = {literal(model)} and attributes.status = 'FINISHED' and tags.role != 'stage'"
        order = ["attributes.start_time DESC"]
        found = self.client.search_runs([self.experiment_id], text, max_results=MAX_RUNS, order_by=order)
        newest: dict[str, Run] = {}
        for run in found:
            newest.setdefault(run.data.tags.get("candidate_key", run.info.run_id), run)
        return list(newest.values())

    def models(self) -> list[str]:
        """Names of the models that have runs here."""
        found = self.client.search_runs([self.experiment_id], "tags.role != 'stage'", max_results=MAX_RUNS)
        return sorted({run.data.tags["model"] for run in found if "model" in run.data.tags})

    def evidence(self, run_id: str) -> Evidence:
        """What a decision looks at, read back from a run's artifact."""
        with tempfile.TemporaryDirectory() as scratch:
            raw = read_json(Path(self.client.download_artifacts(run_id, EVIDENCE, scratch)))
        return Evidence(
            label=raw["label"],
            quality=from_json(QualityReport, raw["quality"]),
            load=from_json(LoadReport, raw["load"]),
            cost=from_json(CostReport, raw["cost"]),
        )

    def _by_key(self, run_key: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment_id], f"tags.run_key = '{run_key}'"))

    def _experiment(self) -> str:
        name = self._tracking.experiment
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = self._tracking.artifacts
        return str(
            self.client.create_experiment(name, artifact_location=None if location is None else Path(location).as_uri())
        )


def connect(tracking: TrackingConfig) -> MlflowClient:
    """A client of the tracking store, which is created if need be.

    Raises:
        ConfigError: the store cannot be reached.

    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if tracking.uri.startswith("sqlite:///"):
        Path(tracking.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    if tracking.uri.startswith("http"):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=tracking.uri, registry_uri=tracking.uri)
        client.search_experiments(max_results=1)
    except (MlflowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"tracking.uri={tracking.uri}: cannot be used: {reason}\n  -> tracking=local") from error
    return client


@contextmanager
def staging_folder() -> Iterator[Path]:
    """A folder for artifacts that are about to be logged."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


def flat_params(config: object) -> dict[str, str]:
    """A configuration as flat MLflow params: `engine.max_model_len` -> `2048`; shapes and empty values are left out."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if f"{prefix}{key}" not in ("model.shape", "tracking", "home", "dry_run", "verbose", "load.points"):
                    walk(f"{prefix}{key}.", item)
        elif value not in (None, "", []):
            flat[prefix.removesuffix(".")] = str(value)

    walk("", plain(config))
    return flat


def literal(text: str) -> str:
    """A text in MLflow's filter language, which knows both quotes and no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"
