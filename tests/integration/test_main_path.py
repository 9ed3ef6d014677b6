"""The whole path with real tools: llm-compressor, vLLM, lm-eval, MLflow; killed half-way, resumed, repeated."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.config import TrackingConfig
from pipeline.record.metric_names import row_of
from pipeline.record.store import Recorder
from pipeline.record.tags import ARTIFACT_DIGEST
from tests.integration.conftest import ROOT, Workplace

pytestmark = pytest.mark.integration
MODEL = "smollm2-135m-q4_1"
LABEL = "rtn-int8"
QUANT = f"quant={LABEL}"
"""Made in seconds; the methods that take minutes are tried in the slow tests."""


def processes_of(place: Workplace) -> list[str]:
    """Command lines of living processes that mention this workplace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(place.home) in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


def wait_for(condition, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


def kill_when(place: Workplace, condition, *arguments: str) -> None:
    """Start a run, kill it with SIGKILL as soon as the condition holds, and check that nothing is left of it."""
    process = subprocess.Popen(
        place.command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        assert wait_for(lambda: condition() or process.poll() is not None, 400)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_for(lambda: not processes_of(place), 20), f"left behind: {processes_of(place)}"


def stages(place: Workplace, name: str) -> set[str]:
    return {path.parent.name for path in (place.home / "store" / name).glob("*/stage.json")}


def partial(place: Workplace, name: str, file: str) -> bool:
    return any((place.home / "store" / name).glob(f".*.partial/{file}"))


@pytest.fixture(scope="module")
def finished(workplace: Workplace) -> subprocess.CompletedProcess[str]:
    """A run that was killed while it was measured, with a server running, and then went on to its end."""
    kill_when(workplace, lambda: partial(workplace, "quality", "lm_eval.log"), QUANT)
    assert stages(workplace, "quality") == set()
    return workplace.run(QUANT)


def recorder(place: Workplace) -> Recorder:
    return Recorder(TrackingConfig(f"sqlite:///{place.tracking}/mlflow.db", f"{place.tracking}/artifacts"))


def test_the_killed_run_goes_on_to_a_decision(finished: subprocess.CompletedProcess[str], workplace: Workplace) -> None:
    assert finished.returncode == 0, finished.stderr
    assert f"Decision on {LABEL}: " in finished.stdout
    assert not processes_of(workplace)


def test_baseline_and_variant_are_recorded_with_cost_beside_quality(finished, workplace: Workplace) -> None:
    runs = {run.data.tags["label"]: run for run in recorder(workplace).runs(MODEL)}
    assert set(runs) == {"none", LABEL}
    for run in runs.values():
        metrics = run.data.metrics
        for name in (
            "quality/arc_easy/acc",
            "quality/piqa/acc",
            "load/quick/output_tok_per_s",
            "load/quick/ttft_p50_s",
        ):
            assert name in metrics, f"{run.data.tags['label']} has no {name}"
        assert 0 < metrics["cost/usd_per_1k_tokens.lo"] <= metrics["cost/usd_per_1k_tokens"]
        assert metrics["cost/peak/usd_per_1k_tokens"] < metrics["cost/usd_per_1k_tokens"]
    assert runs[LABEL].data.metrics["size/ratio"] > 1.4
    assert runs[LABEL].data.metrics["price/num_rounds"] == 2
    assert runs[LABEL].data.metrics["price/ratio.lo"] < runs[LABEL].data.metrics["price/ratio.hi"]
    assert runs[LABEL].data.tags["decision"] in ("promote", "reject", "undecided")
    assert "quality/piqa/flip_rate" in runs[LABEL].data.metrics
    assert [name for run in runs.values() for name in run.data.metrics if row_of(name) is None] == []


def test_the_evidence_is_attached(finished, workplace: Workplace, tmp_path: Path) -> None:
    book = recorder(workplace)
    run = next(run for run in book.runs(MODEL) if run.data.tags["label"] == LABEL)
    names = {item.path for item in book.client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "plan.yaml", "outcomes", "server", "frontier.png", "frontier.html", "decision.json"} <= names
    outcomes = Path(book.client.download_artifacts(run.info.run_id, "outcomes/piqa.csv", str(tmp_path)))
    rows = list(csv.DictReader(outcomes.read_text().splitlines()))
    assert len(rows) == 6
    assert all(row["acc"] in ("0", "1") and len(row["loglikelihoods"].split()) == 2 for row in rows)
    manifest = json.loads(
        Path(book.client.download_artifacts(run.info.run_id, "artifact/manifest.json", str(tmp_path))).read_text()
    )
    assert manifest["method"] == LABEL


def test_the_same_command_again_does_nothing_again(finished, workplace: Workplace) -> None:
    before = {name: stages(workplace, name) for name in ("compress", "quality", "load")}
    started = time.monotonic()
    again = workplace.run(QUANT)
    assert again.returncode == 0, again.stderr
    reused = ", ".join(
        ["none/load", "none/quality", *(f"{LABEL}/{one}" for one in ("compress", "health", "load", "price", "quality"))]
    )
    assert reused in again.stdout
    assert {name: stages(workplace, name) for name in before} == before
    assert time.monotonic() - started < 60
    assert len(recorder(workplace).runs(MODEL)) == 2


@pytest.mark.slow  # test_quality.py holds the same for every kind of task
def test_scores_agree_with_a_plain_lm_eval_run(finished, workplace: Workplace, tmp_path: Path) -> None:
    """The same items, asked by lm-eval's own command from our task file, against a server of the same checkpoint."""
    from core.environments import serving_python
    from pipeline.config import EngineConfig
    from pipeline.plan.machine import find_machine
    from pipeline.plan.resolve import planned_engine
    from pipeline.serve.server import ServedModel
    from pipeline.types import Artifact

    book = recorder(workplace)
    run = next(run for run in book.runs(MODEL) if run.data.tags["label"] == "none")
    recorded = book.evidence(run.info.run_id).quality.tasks["arc_easy"]
    folder = next(path for path in (workplace.home / "store" / "quality").glob("*/tasks/arc_easy.yaml"))
    machine = find_machine()
    engine = planned_engine(EngineConfig(startup_timeout_s=900), machine)
    artifact = Artifact(Path(run.data.tags["artifact_path"]), run.data.tags[ARTIFACT_DIGEST], 0, "none", None)
    with ServedModel(artifact, engine, machine, serving_python(), tmp_path / "vllm.log") as served:
        target = served.target()
        arguments = f"model={target.model_name},base_url={target.url}/v1/completions,tokenizer={target.tokenizer}"
        arguments += ",tokenizer_backend=huggingface,tokenized_requests=False,num_concurrent=8,max_length=2048"
        samples = json.dumps({"arc_easy": sorted(item.item_id for item in recorded.items)})
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args", arguments]
        command += [
            "--tasks",
            str(folder),
            "--samples",
            samples,
            "--output_path",
            str(tmp_path / "plain"),
            "--log_samples",
        ]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
        ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=400)
    assert ended.returncode == 0, ended.stderr[-3000:]
    result = json.loads(next((tmp_path / "plain").rglob("results_*.json")).read_text())
    assert result["results"]["arc_easy"]["acc,none"] == pytest.approx(recorded.estimate.value, abs=1e-12)
    rows = [json.loads(line) for line in next((tmp_path / "plain").rglob("samples_*.jsonl")).read_text().splitlines()]
    plain = {row["doc_id"]: row["acc"] for row in rows}
    assert plain == {item.item_id: item.score for item in recorded.items}


def test_deciding_again_under_another_gate_changes_the_registry_only_by_a_promotion(
    finished, workplace: Workplace
) -> None:
    ended = workplace.run("gate.delta_points=99", verb="promote")
    assert ended.returncode == 0, ended.stderr
    versions = recorder(workplace).client.search_model_versions(f"name = '{MODEL}'")
    if f"{LABEL}: promote" in ended.stdout:
        assert "is now 'champion'" in ended.stdout
        assert len(versions) == 1
    else:
        assert "not decided: " in ended.stdout
        assert not versions


def test_the_frontier_is_printed_and_drawn(finished, workplace: Workplace, tmp_path: Path) -> None:
    ended = workplace.run("--out", str(tmp_path), verb="frontier")
    assert ended.returncode == 0, ended.stderr
    assert LABEL in ended.stdout
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "frontier.html").read_text()


@pytest.mark.slow
def test_a_run_killed_while_it_quantizes_reuses_the_baseline(finished, workplace: Workplace, tmp_path: Path) -> None:
    before = {name: stages(workplace, name) for name in ("compress", "quality", "load")}
    kill_when(workplace, lambda: partial(workplace, "compress", "compress.log"), "quant=int8")
    assert {name: stages(workplace, name) for name in before} == before
    ended = workplace.run("quant=int8")
    assert ended.returncode == 0, ended.stderr
    assert "none: quality: reused" in ended.stdout
    assert "none: load: reused" in ended.stdout
    assert {name: len(stages(workplace, name) - before[name]) for name in before} == dict.fromkeys(before, 1)
    book = recorder(workplace)
    run = next(run for run in book.runs(MODEL) if run.data.tags["label"] == "int8")
    manifest = json.loads(
        Path(book.client.download_artifacts(run.info.run_id, "artifact/manifest.json", str(tmp_path))).read_text()
    )
    assert manifest["calibration"]["licenses"]["squad"] == "CC-BY-SA-4.0"


def test_a_server_that_dies_shows_its_last_lines(workplace: Workplace) -> None:
    ended = workplace.run("quant=none", "engine.extra_args=[--no-such-option]")
    assert ended.returncode == 1
    assert "vLLM's server ended with exit code 2" in ended.stderr
    assert "no-such-option" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_the_hub_the_message_names_the_offline_default(workplace: Workplace) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = workplace.command("model=smollm2-135m", "quant=none")
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment, timeout=100)
    assert ended.returncode == 2
    assert "model=smollm2-135m-q4_1 suite=small need no hub" in ended.stderr
