"""The distillation stage on a tiny random model, with real processes."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.environments import ROOT
from core.errors import PlanError, UserError
from core.files import digest_file, read_json, write_json
from core.jobs import command_of, error_file
from core.store import StageResult, StageStore
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.checkpoints.folder import weight_bytes
from pipeline.config import CalibConfig, DistillConfig, EngineConfig, StudentConfig
from pipeline.distill.checkpoint import CheckpointStore
from pipeline.distill.process import job_of
from pipeline.distill.results import MachinePrice, distill_metrics, training_curve
from pipeline.stages import distill as stage
from pipeline.stages.base import LocalCheckpoint, local_checkpoint
from pipeline.stages.distill import Distill, distill_stage
from pipeline.stages.graph import Effects
from pipeline.types import Artifact
from tests.unit.pipeline.distill import jobs
from tests.unit.pipeline.distill.tiny_model import WORDS, write_model, write_tokenizer
from tests.unit.pipeline.shapes import MACHINE

pytestmark = [pytest.mark.integration, pytest.mark.slow]
PRICE = MachinePrice("spot", Decimal("3.6"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    return write_model(tmp_path_factory.mktemp("teacher") / "model", num_layers=4)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(WORDS, size=30)) for _ in range(20)))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> StageStore:
    return StageStore(tmp_path_factory.mktemp("home") / "store")


@pytest.fixture
def base(teacher: Path, store: StageStore) -> LocalCheckpoint:
    return local_checkpoint(teacher, store)


def a_config(text: Path, **changes: Any) -> DistillConfig:
    return jobs.a_config(**({"data__sources": [str(text)]} | changes))


def a_calibration(text: Path) -> CalibConfig:
    return CalibConfig(name="tiny", sources=[str(text)], num_samples=4, length=32)


def stage_of(base: LocalCheckpoint, config: DistillConfig, text: Path, store: StageStore) -> Distill:
    python, facts = Path(sys.executable), facts_from_folder("teacher", base.path)
    served = {"engine": EngineConfig(), "machine": MACHINE, "serving_python": python}
    return distill_stage(base, config, a_calibration(text), 0, facts=facts, price=PRICE, store=store, **served)


def distill(
    base: LocalCheckpoint, config: DistillConfig, text: Path, store: StageStore
) -> tuple[Artifact, StageResult]:
    effects = Effects(store, store.root.parent, Path(sys.executable))
    stage = stage_of(base, config, text, store)
    return effects.result(stage), effects.found(stage)


def test_a_student_is_an_artifact_with_its_evidence(base: LocalCheckpoint, text: Path, store: StageStore) -> None:
    config = a_config(text, objective__cross_entropy_weight=0.2)
    artifact, made = distill(base, config, text, store)
    shape = read_json(artifact.path / "config.json")
    assert (shape["num_hidden_layers"], artifact.method, artifact.base_digest) == (2, "distill", base.digest)
    assert (artifact.path / "tokenizer.json").exists()
    assert artifact.num_bytes < weight_bytes(base.path)
    manifest = read_json(artifact.path / "manifest.json")
    assert manifest["digest"] == artifact.digest
    metrics = distill_metrics(made.result)
    assert metrics["distill/tokens_seen"] == 12 * 4 * jobs.LENGTH
    assert metrics["distill/spot_coverage"] == 1
    assert metrics["distill/train_usd"] == pytest.approx(made.result["train_wall_s"] / 1000)
    assert 0 < metrics["distill/mfu"] < 1
    steps, losses = zip(*training_curve(made.result), strict=True)
    assert steps == (3, 6, 9, 12)
    assert losses[-1] < losses[0]
    assert not (made.folder / "checkpoints").exists()
    again, reused = distill(base, config, text, store)
    assert reused.reused
    assert again == artifact


def test_a_cached_teacher_gives_nearly_the_same_student(base: LocalCheckpoint, text: Path, store: StageStore) -> None:
    live = distill(base, a_config(text), text, store)[1].result
    cached = distill(base, a_config(text, teacher__mode="cached", teacher__top_k=127), text, store)[1].result
    for one, other in zip(live["curve"], cached["curve"], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=0.02)
    assert cached["teacher_cache"]["error"]["kl_total"] < 5e-3
    metrics = distill_metrics(cached)
    assert metrics["distill/cache/bytes_per_token"] > 0
    assert metrics["distill/teacher_wall_s"] > 0


def test_a_given_student_and_plain_fine_tuning(
    base: LocalCheckpoint, text: Path, store: StageStore, tmp_path: Path
) -> None:
    student = write_model(tmp_path / "student", num_layers=1, seed=3, hidden_size=32, intermediate_size=64)
    given = {"student__drop_fraction": None, "student__path": str(student)}
    hidden = distill(base, a_config(text, objective__hidden_weight=0.1, **given), text, store)[0]
    assert read_json(hidden.path / "config.json")["hidden_size"] == 32
    plain = a_config(text, objective__divergence="none", objective__cross_entropy_weight=1.0, **given)
    artifact, made = distill(base, plain, text, store)
    assert artifact.digest != hidden.digest
    assert made.result["curve"][-1]["loss"] < made.result["curve"][0]["loss"]


def test_two_processes_learn_as_one(teacher: Path, tmp_path: Path) -> None:
    curves, weights = [], []
    for num_processes in (1, 2):
        config = jobs.a_config(train__num_processes=num_processes, train__micro_batch_size=1)
        curve, found = run_train(tmp_path / f"{num_processes}", teacher, config)
        curves.append(curve)
        weights.append(found)
    np.testing.assert_allclose(*curves, rtol=2e-5)
    for name, one in weights[0].items():
        np.testing.assert_allclose(weights[1][name], one, atol=2e-3)


def test_a_sharded_student_learns_as_a_whole_one_and_goes_on_after_sigterm(teacher: Path, tmp_path: Path) -> None:
    curves = []
    for name, fsdp in (("whole", False), ("sharded", True)):
        config = jobs.a_config(train__num_processes=2, train__micro_batch_size=1, train__fsdp=fsdp, train__num_steps=12)
        curves.append(run_train(tmp_path / name, teacher, config, interrupt=name == "sharded")[0])
    np.testing.assert_allclose(*curves, rtol=2e-4)


def train_command(job: Path, config: DistillConfig) -> list[str | Path]:
    return command_of(job_of("train", {}, job.parent, config), job, job.parent / "measured.json")


def run_train(
    folder: Path, teacher: Path, config: DistillConfig, *, interrupt: bool = False
) -> tuple[list[float], Any]:
    """Train in the processes that the configuration asks for: the curve's losses and the student's weights."""
    from safetensors.numpy import load_file

    student = write_model(folder / "student", num_layers=2, seed=1)
    job = jobs.write_job(folder / "job", teacher, student, config, dropped_layers=None)
    command = train_command(job, config)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("ab") as log:
        while True:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
            while interrupt and process.poll() is None:
                if "step 6/" in (folder / "log").read_text():
                    process.send_signal(signal.SIGTERM)
                    interrupt = False
                time.sleep(0.02)
            if process.wait(240) == 0:
                break
            assert "is written" in (folder / "log").read_text(), (folder / "log").read_text()[-3000:]
    result = read_json(job.parent / "measured.json")
    return [point["loss"] for point in result["curve"]], load_file(job.parent / "model" / "model.safetensors")


PROGRAM = """
import sys
from pathlib import Path
from core.files import read_json
from core.store import StageResult, StageStore
from pipeline.checkpoints.facts import facts_from_folder
from pipeline.cli.app import run_command
from pipeline.config import CalibConfig, EngineConfig
from pipeline.distill.results import MachinePrice
from pipeline.distill.student_size import config_from
from pipeline.stages.base import local_checkpoint
from pipeline.stages.distill import distill_stage
from pipeline.stages.graph import Effects
from tests.unit.pipeline.shapes import MACHINE

def main(arguments):
    given = read_json(Path(arguments[0]))
    store, python = StageStore(Path(given["store"])), Path(sys.executable)
    base = local_checkpoint(Path(given["base"]), store)
    effects = Effects(store, store.root.parent, python, say=lambda line: print(line, flush=True))
    config, calib = config_from(given["config"]), CalibConfig(**given["calib"])
    served = {"engine": EngineConfig(), "machine": MACHINE, "serving_python": python}
    facts = facts_from_folder("teacher", base.path)
    stage = distill_stage(base, config, calib, 0, facts=facts, price=MachinePrice("spot"), store=store, **served)
    print("digest", effects.result(stage).digest, flush=True)
    return 0

sys.exit(run_command(main, sys.argv[1:]))
"""


def test_sigterm_to_the_pipeline_saves_and_the_same_command_goes_on(
    base: LocalCheckpoint, text: Path, store: StageStore, tmp_path: Path
) -> None:
    config = a_config(text, train__num_steps=60, train__log_every_steps=5, spot__every_steps=1000)
    config.spot.url = str(tmp_path / "checkpoints")
    calib = vars(a_calibration(text))
    given = {"store": store.root, "base": base.path, "config": config, "calib": calib}
    write_json(tmp_path / "given.json", given)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "given.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 10/"):
            process.send_signal(signal.SIGTERM)
            break
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 143, rest
    assert "the same command goes on" in rest
    assert "Traceback" not in rest
    assert len(CheckpointStore(str(tmp_path / "checkpoints")).names()) == 1
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=True, timeout=240)
    assert "going on from step" in done.stdout
    whole = replace(config, spot=replace(config.spot, url=None))
    other = StageStore(tmp_path / "other")
    artifact, _ = distill(local_checkpoint(base.path, other), whole, text, other)
    assert f"digest {artifact.digest}" in done.stdout


def test_bad_inputs_are_refused_before_the_teacher_loads(
    base: LocalCheckpoint, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        pytest.fail("the teacher was loaded")

    monkeypatch.setattr(stage, "run_worker", load)
    store = StageStore(tmp_path / "store")

    def refused(words: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=words) as raised:
            distill(base, a_config(text, **changes), text, store)
        assert raised.value.exit_code == 2

    refused("layers 0 to 3", student__drop_fraction=None, student__drop_layers=[4])
    other = write_model(tmp_path / "other", num_layers=1)
    write_tokenizer(other, ["zebra", *WORDS[1:]])
    refused("tokenizer differs", student__drop_fraction=None, student__path=str(other))
    refused("shorter than a checkpoint takes", spot__grace_s=1e-6, spot__url=str(tmp_path / "slow"))
    (tmp_path / "file").write_text("")
    refused("cannot be written", spot__url=str(tmp_path / "file" / "below"))
    refused("no such file", data__sources=["/nowhere.txt"])
    place = tmp_path / "taken"
    taken = CheckpointStore(str(place))
    taken.write(5, {"state.json": b"{}"}, {"plan_hash": "0" * 64, "plan": {"seed": 7}})
    refused(r"(?s)belong to another run.*seed: 7 there, 0 here", spot__url=str(place))
    assert digest_file(place / "step-00000005" / "state.json")


def test_a_diverging_run_stops_and_names_the_last_good_checkpoint(teacher: Path, tmp_path: Path) -> None:
    config = jobs.a_config(
        train__learning_rate=30.0, train__diverge_factor=1.5, train__log_every_steps=1, spot__every_steps=1
    )
    student = write_model(tmp_path / "student", num_layers=2, seed=1)
    job = jobs.write_job(tmp_path / "job", teacher, student, config)
    command = train_command(job, config)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 1
    error = read_json(error_file(job.parent / "measured.json"))
    assert error["kinds"][0] == ["pipeline.distill.train", "DivergedError"]
    assert "last good checkpoint: step" in error["message"]


def test_a_worker_that_crashes_shows_its_log(
    base: LocalCheckpoint, text: Path, store: StageStore, tmp_path: Path
) -> None:
    from core.errors import ToolError

    broken = write_model(tmp_path / "broken", num_layers=1)
    weights = broken / "model.safetensors"
    config = a_config(text, student__drop_fraction=None, student__path=str(broken), train__num_steps=2)
    data = bytearray(weights.read_bytes())
    weights.write_bytes(data[:-1000])
    with pytest.raises((ToolError, PlanError, UserError), match="exit code 1"):
        distill(base, config, text, store)


def test_the_student_stage_is_shared_by_objectives(base: LocalCheckpoint, text: Path, store: StageStore) -> None:
    one = stage_of(base, a_config(text), text, store)
    other = stage_of(base, a_config(text, objective__divergence="reverse_kl"), text, store)
    assert one.student.key == other.student.key
    assert one.key != other.key
    assert one.key == other.key
    assert len(one.result["block_influence"]) == 4
    assert StudentConfig(**read_json(one.folder / "job.json")["student"]) == a_config(text).student
