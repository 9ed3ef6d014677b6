"""MLflow as the run's memory: one run per measured candidate, one child run per stage, the evidence as artifacts.

A run is found again by its tag `parsimony.run_key`, so that the same command writes no second one; what a killed
process left half-written is deleted and written anew.

A run lasts as long as its measuring did (`run_span_ms`), and its child runs as long as their stages. Runs are therefore
ordered by their end, which is when they were recorded or shortly before.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError
from core.files import plain, read_json, write_atomic, write_json
from evals.decide.evidence import Evidence
from evals.json_form import from_json
from evals.types import CostReport, LoadReport, PriceRounds, QualityReport
from pipeline.config import TrackingConfig
from pipeline.record.metrics import short_metrics
from pipeline.record.source import source_tags
from pipeline.record.tags import CANDIDATE_KEY, RUN_KEY, all_names, short_tags, tag_of
from pipeline.record.view import EXPERIMENT_TAGS, view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EVIDENCE = "evidence.json"
MAX_RUNS = 5000
NEWEST_FIRST = ("attributes.end_time DESC", "attributes.start_time DESC")
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
    stage_started_at: Mapping[str, str] = field(default_factory=dict)
    """When the making of each stage began (ISO 8601 with an offset), however often it was reused since."""
    made_now: Sequence[str] = ()
    """The stages that were made for this record; the others were reused."""


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
        run_id = self._write(record)
        if "model" in record.tags:
            self.share_view(record.tags["model"])
        return run_id, False

    def share_view(self, model: str) -> None:
        """Save how MLflow's pages show the model's runs: `pipeline.record.view` has the link."""
        experiment = self.client.get_experiment(self.experiment_id)
        name, text = view_tag(model, runs_of(model), experiment.creation_time or 0)
        if experiment.tags.get(name) != text:
            self.client.set_experiment_tag(self.experiment_id, name, text)

    def complete_columns(self, model: str) -> None:
        """Give runs of an older version the short names that the view lists."""
        from mlflow.entities import Metric, RunTag
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        text = f"tags.variant IS NULL and {runs_of(model)}"
        for run in self.client.search_runs([self.experiment_id], text, max_results=MAX_RUNS):
            metrics = [Metric(name, value, now, 0) for name, value in short_metrics(run.data.metrics).items()]
            tags = [RunTag(name, text) for name, text in short_tags(run.data.tags).items()]
            self.client.log_batch(run.info.run_id, metrics=metrics, tags=tags)

    def _write(self, record: RunRecord) -> str:
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        began, ended = run_span_ms(record, now)
        tags = {**record.tags, **source_tags(), RUN_KEY: record.run_key}
        run = self.client.create_run(self.experiment_id, start_time=began, tags=tags, run_name=record.name)
        run_id = str(run.info.run_id)
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
            began_at = record.stage_started_at.get(stage)
            stage_began = now if began_at is None else _epoch_ms(began_at)
            child = self.client.create_run(
                self.experiment_id, start_time=stage_began, tags=child_tags, run_name=f"{record.name}/{stage}"
            )
            self.client.log_batch(
                child.info.run_id, metrics=[Metric("wall_s", wall_s, now, 0)], tags=[RunTag("stage", stage)]
            )
            self.client.set_terminated(child.info.run_id, end_time=stage_began + round(1000 * wall_s))
        self.client.set_terminated(run_id, end_time=ended)
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
        text = f"{runs_of(model)} and attributes.status = 'FINISHED'"
        found = self.client.search_runs([self.experiment_id], text, max_results=MAX_RUNS, order_by=NEWEST_FIRST)
        newest: dict[str, Run] = {}
        for run in found:
            newest.setdefault(tag_of(run.data.tags, CANDIDATE_KEY) or run.info.run_id, run)
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
            price_rounds=None if raw.get("price_rounds") is None else from_json(PriceRounds, raw["price_rounds"]),
        )

    def _by_key(self, run_key: str) -> list[Run]:
        texts = [f"tags.`{name}` = '{run_key}'" for name in all_names(RUN_KEY)]
        return [run for text in texts for run in self.client.search_runs([self.experiment_id], text)]

    def _experiment(self) -> str:
        name = self._tracking.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self._tracking.artifacts is None else Path(self._tracking.artifacts).as_uri()
            return str(self.client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS))
        for tag, text in EXPERIMENT_TAGS.items():
            if tag not in found.tags:  # what somebody chose or wrote stays
                self.client.set_experiment_tag(found.experiment_id, tag, text)
        return str(found.experiment_id)


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


def run_span_ms(record: RunRecord, now_ms: int) -> tuple[int, int]:
    """When a run began and ended, in milliseconds since 1970: from the first to the last stage that was made for it.

    Where every stage was reused, it ends now and lasts as long as their making took.
    """
    made = [(_epoch_ms(record.stage_started_at[stage]), record.stage_wall_s[stage]) for stage in record.made_now]
    if not made:
        return now_ms - round(1000 * sum(record.stage_wall_s.values())), now_ms
    ended = max(began + round(1000 * wall_s) for began, wall_s in made)
    return min(began for began, _ in made), min(ended, now_ms)


def _epoch_ms(moment: str) -> int:
    return round(1000 * datetime.fromisoformat(moment).timestamp())


@contextmanager
def staging_folder() -> Iterator[Path]:
    """A folder for artifacts that are about to be logged."""
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


NO_PARAMS = ("model.shape", "tracking", "home", "dry_run", "fail_on_hold", "verbose", "load.points")
"""Keys that say nothing of what was measured, or too much for a parameter."""


def flat_params(config: object) -> dict[str, str]:
    """A configuration as flat MLflow params: `engine.max_model_len` -> `2048`; shapes and empty values are left out."""
    flat: dict[str, str] = {}

    def walk(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                if f"{prefix}{key}" not in NO_PARAMS:
                    walk(f"{prefix}{key}.", item)
        elif value not in (None, "", []):
            flat[prefix.removesuffix(".")] = str(value)

    walk("", plain(config))
    return flat


def runs_of(model: str) -> str:
    """A model's runs, without those of their stages, in MLflow's filter language."""
    return f"tags.model = {literal(model)} and tags.role != 'stage'"


def literal(text: str) -> str:
    """A text in MLflow's filter language, which knows both quotes and no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"
