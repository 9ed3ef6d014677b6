"""`status`, `verify`, `rollback` and `prune` over a real MLflow store with promoted versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import console
from evals.types import Decision
from pipeline.checkpoints.folder import checkpoint_digest
from pipeline.cli import promote as promote_verb
from pipeline.cli import status, verify
from pipeline.cli.prune import cache_needs
from pipeline.config import PromoteConfig, RunConfig, TrackingConfig
from pipeline.promote import promote
from pipeline.record.store import Recorder
from tests.unit.pipeline.test_cache import NOW

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
MODEL = "smollm2-135m-q4_1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which two variants of a model were promoted, one after the other."""
    folder = tmp_path_factory.mktemp("place")
    recorder = Recorder(TrackingConfig(f"sqlite:///{folder}/mlflow.db", f"{folder}/artifacts"))
    for variant in ("int8", "gptq"):
        checkpoint = folder / variant
        checkpoint.mkdir()
        (checkpoint / "config.json").write_text(json.dumps({"variant": variant}))
        tags = {"model": MODEL, "label": variant, "role": "candidate", "decision": "promote"}
        tags |= {"artifact_path": str(checkpoint), "stage_keys": json.dumps({"load": f"key-of-{variant}"})}
        run_id = recorder.client.create_run(recorder.experiment_id, tags=tags).info.run_id
        recorder.client.set_terminated(run_id)
        decision = Decision("promote", variant, ("passed: quality",))
        promote(recorder, run_id, decision, MODEL, checkpoint, checkpoint_digest(checkpoint), PromoteConfig())
    return folder


def arguments(place: Path, *more: str) -> list[str]:
    return [f"tracking.uri=sqlite:///{place}/mlflow.db", f"tracking.artifacts={place}/artifacts", *more]


def test_status_names_champion_and_newest_decision(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.main(arguments(place)) == 0
    said = capsys.readouterr().out
    line = next(one for one in said.splitlines() if MODEL in one)
    assert line.split()[:5] == [MODEL, "version", "2", "gptq", "promoted"]
    assert f"Ledger sqlite:///{place}/finops.db: nothing is recorded yet" in said


def test_what_registered_versions_need_is_never_prunable(place: Path) -> None:
    tracking = TrackingConfig(f"sqlite:///{place}/mlflow.db", f"{place}/artifacts")
    far_in_the_future = NOW.replace(year=2100)
    needs = cache_needs(RunConfig(tracking=tracking), far_in_the_future)
    assert needs.keys == {"key-of-int8", "key-of-gptq"}
    assert set(needs.folders) == {place / "int8", place / "gptq"}


def test_verify_finds_weights_that_differ_and_rollback_prints_json(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(arguments(place)) == 0
    said = capsys.readouterr().out
    assert said.count(" same") == 2
    try:
        assert promote_verb.back(arguments(place, "--json")) == 0
    finally:
        console.to_stderr(False)
    assert json.loads(capsys.readouterr().out)["registry"] == (
        f"registry: {MODEL} version 1 is 'champion' again; version 2 keeps 'previous'"
    )
    stored = next(path for path in (place / "artifacts").rglob("config.json") if "gptq" in path.read_text())
    stored.write_text("{}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "verify", *arguments(place)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if MODEL in line]
    assert ["same" in line for line in lines] == [True, False]
    assert "different" in lines[1]
    stored.unlink()
    stored.parent.rmdir()
    assert verify.main(arguments(place, f"model={MODEL}")) == 1
    assert "the weights are gone" in capsys.readouterr().out
