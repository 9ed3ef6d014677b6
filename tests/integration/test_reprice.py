"""Re-priced metrics in a store that MLflow made: written directly, they are read back by MLflow's own client."""

import json
from pathlib import Path

import pytest

from pipeline.config import TrackingConfig
from pipeline.record import cost_rows as amounts
from pipeline.record.cost_rows import cost_runs, write
from pipeline.record.reprice import Pricing, amounts_to_write, reprice_all
from pipeline.record.store import Recorder
from tests.unit.pipeline.test_reprice import NOW, metrics_of

pytestmark = pytest.mark.integration


def a_store(folder: Path) -> tuple[TrackingConfig, Recorder, str]:
    tracking = TrackingConfig(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts")
    recorder = Recorder(tracking)
    tags = {"model": "tiny's", "role": "candidate", "label": "int8", "hardware": "l4-24gb", "candidate_key": "k"}
    run_id = str(recorder.client.create_run(recorder.experiment_id, tags=tags).info.run_id)
    for name, value in metrics_of((10.0, 11.0)).items():
        recorder.client.log_metric(run_id, name, value)
    recorder.client.set_terminated(run_id)
    return tracking, recorder, run_id


@pytest.mark.parametrize("direct", [True, False])
def test_mlflow_reads_what_was_written(tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through both ways: directly, and through MLflow's client where the tables are not as we know them."""
    tracking, recorder, run_id = a_store(tmp_path)
    if not direct:
        monkeypatch.setitem(amounts.COLUMNS, "metrics", {"columns", "of", "another", "version"})
    (run,) = cost_runs(tracking, "tiny's")
    assert run.run_id == run_id
    for option in ("spot", "reserved_1y"):
        write(tracking, amounts_to_write(reprice_all([run], Pricing(option)), "mine", NOW))
    read = recorder.client.get_run(run_id).data
    (expected,) = reprice_all([run], Pricing("reserved_1y"))
    for name, value in expected.metrics.items():
        assert read.metrics[f"reprice/mine/{name}"] == pytest.approx(value, rel=1e-12)
        assert len(recorder.client.get_metric_history(run_id, f"reprice/mine/{name}")) == 2
    assert read.metrics["cost/usd_per_1k_tokens"] == run.metrics["cost/usd_per_1k_tokens"]
    assert json.loads(read.tags["reprice.mine"])["purchase_option"] == "reserved_1y"
    found = recorder.client.search_runs([recorder.experiment_id], "metrics.`reprice/mine/cost/usd_per_1k_tokens` > 0")
    assert [one.info.run_id for one in found] == [run_id]
