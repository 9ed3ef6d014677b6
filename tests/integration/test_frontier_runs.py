"""Reading 10,000 recorded runs from MLflow's SQLite store and finding their frontier."""

import random
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from evals.decide.frontier import Resamples
from pipeline.config import TrackingConfig
from pipeline.record.frontier_runs import frontier_runs
from pipeline.record.store import Recorder
from pipeline.report.frontier import shown_points

pytestmark = pytest.mark.integration
NUM_RUNS = 10_000


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("runs")
    return TrackingConfig(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts")


@pytest.fixture(scope="module")
def recorder(tracking: TrackingConfig) -> Recorder:
    return Recorder(tracking)


def test_it_reads_what_mlflow_reads(recorder: Recorder, tracking: TrackingConfig) -> None:
    client = recorder.client
    for number, (label, role, status) in enumerate(
        [("none", "baseline", "FINISHED"), ("int8", "candidate", "FINISHED"), ("int8", "candidate", "FINISHED"),
         ("awq", "candidate", "RUNNING"), ("int8/load", "stage", "FINISHED")]
    ):  # fmt: skip
        tags = {"model": "tiny's", "label": label, "role": role, "candidate_key": label}
        run = client.create_run(recorder.experiment_id, start_time=1000 * (number + 1), tags=tags)
        client.log_metric(run.info.run_id, "quality/mean", 0.5 + number / 100)
        client.log_metric(run.info.run_id, "other/metric", 1.0)
        if status == "FINISHED":
            client.set_terminated(run.info.run_id)
    gone = client.create_run(recorder.experiment_id, tags={"model": "tiny's", "role": "candidate", "label": "gone"})
    client.set_terminated(gone.info.run_id)
    client.delete_run(gone.info.run_id)
    ours, theirs = frontier_runs(recorder, tracking, "tiny's"), recorder.runs("tiny's")
    assert [run.info.run_id for run in ours] == [run.info.run_id for run in theirs]
    assert [run.data.tags["label"] for run in ours] == ["int8", "none"]
    assert ours[0].data.metrics == {"quality/mean": 0.52}
    assert frontier_runs(recorder, tracking, "nobody") == []


def fill(path: Path, experiment_id: int) -> None:
    """Runs as MLflow's tables hold them."""
    rng = random.Random(0)
    with closing(sqlite3.connect(path)) as connection, connection:
        runs, tags, metrics = [], [], []
        for number in range(NUM_RUNS):
            run_id = f"{number:032x}"
            runs.append((run_id, run_id[-6:], experiment_id, "FINISHED", number, "active"))
            role = "baseline" if number == 0 else "candidate"
            named = {
                "model": "many",
                "label": f"v{number}",
                "role": role,
                "hardware": "l4-24gb",
                "candidate_key": run_id,
            }
            tags += [(key, value, run_id) for key, value in named.items()]
            quality, usd = rng.gauss(0.6, 0.03), rng.lognormvariate(-7, 0.4)
            values = {"quality/mean": quality, "quality/mean.lo": quality - 0.02, "quality/mean.hi": quality + 0.02}
            values |= {f"cost/usd_per_1k_tokens{end}": usd * f for end, f in (("", 1), (".lo", 0.9), (".hi", 1.1))}
            values |= {"size/bytes": 1e9, "load/quick/output_tok_per_s": 100.0, "load/quick/ttft_p50_s": 0.1}
            metrics += [(key, value, 0, 0, 0, run_id) for key, value in values.items()]
        columns = "run_uuid, name, experiment_id, status, start_time, lifecycle_stage"
        connection.executemany(f"INSERT INTO runs ({columns}) VALUES (?,?,?,?,?,?)", runs)
        connection.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?,?,?)", tags)
        connection.executemany(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?,?,?,?,?,?)", metrics
        )


@pytest.mark.slow
def test_ten_thousand_runs_take_two_seconds(recorder: Recorder, tracking: TrackingConfig) -> None:
    """Processor time, so that a busy machine does not decide; `analyze` and the reading have one thread."""
    fill(Path(tracking.uri.removeprefix("sqlite:///")), int(recorder.experiment_id))
    began = time.process_time()
    runs = frontier_runs(recorder, tracking, "many")
    read_s = time.process_time() - began
    shown = shown_points(runs, Resamples())
    took_s = time.process_time() - began
    assert len(shown) == NUM_RUNS
    assert any(one.on_frontier for one in shown)
    assert took_s < 2.0, f"{took_s:.2f} s, of which {read_s:.2f} s reading"
