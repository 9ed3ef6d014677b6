"""Training that is killed at random moments ends with the same weights, bit for bit, as training left alone."""

import multiprocessing
import os
import random
import signal
import time
from decimal import Decimal
from pathlib import Path

import pytest

from core.files import digest_file, read_json
from pipeline.config import StudentConfig
from tests.unit.pipeline.distill import jobs
from tests.unit.pipeline.distill.tiny_model import write_model

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NUM_INTERRUPTIONS = 24
MAX_ATTEMPTS = 120
PRELOAD = [
    "pipeline.distill.train",
    "pipeline.distill.module",
    "transformers.trainer",
    "tests.unit.pipeline.distill.jobs",
]
RUNS = {
    "forward KL": {},
    "on-policy": {"data__mode": "on_policy", "data__prompt_tokens": 8, "data__on_policy_fraction": 0.7},
    "hidden states": {"objective__hidden_weight": 0.5, "objective__cross_entropy_weight": 0.3},
}


@pytest.fixture(scope="module")
def processes():
    """Processes that start with torch and transformers loaded: an attempt takes a second, not ten."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from pipeline.distill.students import make_student

    folder = tmp_path_factory.mktemp("models")
    teacher = write_model(folder / "teacher", num_layers=4)
    make_student(teacher, None, StudentConfig(drop_layers=[1, 2]), folder / "student")
    return teacher, folder / "student"


def attempt(processes, job: Path, kill: tuple[int, float] | None = None) -> int | None:
    """One attempt; `kill` is a signal and after how many seconds. Returns the exit code."""
    process = processes.Process(target=jobs.run_job, args=(job,))
    process.start()
    if kill is not None:
        process.join(kill[1])
        if process.is_alive():
            os.kill(process.pid, kill[0])
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def outcome(folder: Path) -> tuple[str, list[tuple[int, float]]]:
    result = read_json(folder / "measured.json")
    curve = [(point["step"], point["loss"]) for point in result["curve"]]
    return digest_file(folder / "model" / "model.safetensors"), curve


@pytest.mark.parametrize("name", RUNS)
def test_interrupted_training_ends_with_the_same_bits(processes, models, tmp_path: Path, name: str) -> None:
    config = jobs.a_config(train__num_steps=24, spot__every_steps=3, train__log_every_steps=5, **RUNS[name])
    whole = jobs.write_job(tmp_path / "whole", *models, config)
    started = time.monotonic()
    assert attempt(processes, whole) == 0, (tmp_path / "whole" / "worker.log").read_text()
    whole_s = time.monotonic() - started
    expected = outcome(tmp_path / "whole")
    rng = random.Random(name)
    interrupted, codes, run = 0, [], 0
    while interrupted < NUM_INTERRUPTIONS // len(RUNS):
        run += 1
        folder = tmp_path / f"run-{run}"
        job = jobs.write_job(folder, *models, config)
        for _ in range(MAX_ATTEMPTS):
            kill = (rng.choice([signal.SIGKILL, signal.SIGTERM]), rng.uniform(0.1, 1.1) * whole_s)
            code = attempt(processes, job, kill if interrupted < 3 * NUM_INTERRUPTIONS else None)
            codes.append(code)
            if code == 0:
                break
            assert code in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM), (folder / "worker.log").read_text()
            interrupted += 1
        assert outcome(folder) == expected, f"run {run}, exit codes {codes}"
        result = read_json(folder / "measured.json")
        in_training = [one for one in result["interruptions"] if one["ended"] in ("killed", "sigterm")]
        assert len(in_training) == result["num_attempts"] - 1
        assert Decimal(result["lost_usd"]) == pytest.approx(Decimal(str(result["lost_s"] / 1000)), abs=Decimal("1e-9"))
        assert result["lost_s"] < result["train_wall_s"]
    assert {-signal.SIGKILL, 128 + signal.SIGTERM} & set(codes)


def test_sigterm_in_a_step_loses_no_step(processes, models, tmp_path: Path) -> None:
    config = jobs.a_config(train__num_steps=400, spot__every_steps=1000)
    job = jobs.write_job(tmp_path, *models, config)
    process = processes.Process(target=jobs.run_job, args=(job,))
    process.start()
    attempts = tmp_path / "checkpoints" / "attempts.json"
    while not attempts.exists() or read_json(attempts)[-1]["step"] < 5:
        process.join(0.05)
        assert process.is_alive(), (tmp_path / "worker.log").read_text()
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM
    (last,) = read_json(attempts)
    (kept,) = (tmp_path / "checkpoints").glob("step-*")
    assert last["ended"] == "sigterm"
    assert kept.name == f"step-{last['step']:08d}"
    assert f"checkpoint of step {last['step']} is written" in (tmp_path / "worker.log").read_text()
