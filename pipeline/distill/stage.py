"""The distillation stage: from a base checkpoint to a student, an Artifact like any other.

preflight     the place for checkpoints, the grace period, tokenizers, text: before the teacher is loaded
student       cut from the base, once for all objectives
distill-data  the text, packed, once for all students
teacher-cache what the teacher says of it, once for all students (distill.teacher.mode=cached)
distill       the training: interrupted, the same command goes on from the newest checkpoint
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

from common.errors import PlanError, Problem, StoreError, ToolError
from common.files import digest_file, digest_json, plain, read_json, write_json
from common.process import ChildProcess, LogReader
from pipeline.compress.calibration import calibration_tokens, end_token
from pipeline.distill.checkpoint import CheckpointStore
from pipeline.distill.config import DistillConfig, num_dropped, student_parameters
from pipeline.distill.data import check_sources, training_rows
from pipeline.distill.spot import PROBE_BYTES, InterruptedTrainingError, grace_problem
from pipeline.distill.students import check_given_student
from pipeline.environments import ROOT, versions
from pipeline.facts import facts_from_folder
from pipeline.models.resolve import checkpoint_digest, folder_artifact, weight_bytes
from pipeline.models.wheels import CONTEXTS
from pipeline.schema import CalibConfig
from pipeline.stages import StageResult, StageStore
from pipeline.types import Artifact

TOOLS = ("transformers", "torch", "accelerate")
POLL_S = 0.2
PROGRESS = ("step ", "sequence ", "going on ", "checkpoint ")
"""How the lines begin that people see."""
EXIT_MARGIN_S = 5.0
"""Seconds beyond the grace period until a worker that does not end is killed."""


@dataclass(frozen=True)
class Bill:
    """What an hour of this machine costs, for the books of interruptions."""

    purchase_option: str = "on_demand"
    usd_per_hour: Decimal | None = None
    """None: not known; costs are then left out, never zero."""

    def usd(self, seconds: float | None) -> Decimal | None:
        """What this time costs; None where either is not known."""
        if seconds is None or self.usd_per_hour is None:
            return None
        return Decimal(str(seconds)) * self.usd_per_hour / 3600


@dataclass(frozen=True)
class Effects:
    """What the stage is given to work with."""

    store: StageStore
    shown: Callable[[str], AbstractContextManager[None]]
    """Entered with a stage's name while it works."""
    on_line: Callable[[str], None] = lambda line: None
    """Sees the lines of the log that tell of progress."""
    generate: Callable[[DistillConfig, Artifact, StageResult], StageResult] | None = None
    """Lets the served teacher write the sequences (`distill.data.mode=teacher`): `generate.teacher_writes`, with its
    engine, machine and interpreter bound."""


def distill_stage(
    base: Artifact, config: DistillConfig, calib: CalibConfig, seed: int, bill: Bill, effects: Effects
) -> tuple[Artifact, StageResult]:
    """Make the student.

    Args:
        base: the teacher.
        config: what to do; `config.enabled`.
        calib: the text that block influence and activations are measured on.
        seed: of the run.
        bill: the machine's price.
        effects: store and console.

    Returns:
        The student, and the stage behind it, whose result holds the curve, the time of all attempts and what
        interruptions cost.

    Raises:
        PlanError: the place for checkpoints, or the grace period, will not do.
        UserError: the student, its tokenizer or the text will not do.
        InterruptedTrainingError: SIGTERM; the same command goes on from the checkpoint.
        ToolError: the training failed; the message ends with its log.

    """
    plan = what_decides(base, config, calib, seed)
    store = effects.store

    def make(folder: Path) -> Mapping[str, Any]:
        preflight(base, config, digest_json(plan), plan, store.root / "distill")
        student, cut = make_student_stage(base, config, calib, effects)
        rows = training_rows(config.data, base, store)
        if config.data.mode == "teacher":
            assert effects.generate is not None, "distill.data.mode=teacher needs a served teacher"
            rows = effects.generate(config, base, rows)
        cache = teacher_cache_stage(base, config, rows, effects)
        job = {
            "teacher": base.path,
            "student": student.path,
            "dropped_layers": None if cut is None else cut.result["dropped_layers"],
            "rows": rows.folder / "rows.npy",
            "cache": None if cache is None else cache.folder / "cache",
            "output": folder / "model",
            "work": folder,
            "url": config.spot.url or folder / "checkpoints",
            "config": config,
            "seed": seed,
            "end_token": end_token(base.path),
            "plan_hash": digest_json(plan),
            "plan": plan,
            "purchase_option": bill.purchase_option,
            "usd_per_hour": bill.usd_per_hour,
        }
        with effects.shown("distill"):
            run_worker("train", job, folder, config, effects.on_line)
        return _finish(folder, plan, student, cut, rows, cache, bill)

    made = store.run("distill", plan, make, resumable=True)
    return student_artifact(made, base), made


def what_decides(base: Artifact, config: DistillConfig, calib: CalibConfig, seed: int) -> dict[str, Any]:
    """All that decides the student's weights; its hash names the run and its checkpoints."""
    settings = {key: value for key, value in plain(config).items() if key not in ("name", "spot")}
    given = config.student.path
    settings["data"]["sources"] = [
        source if source in CONTEXTS or not Path(source).is_file() else digest_file(Path(source))
        for source in config.data.sources
    ]
    if given is not None:
        folder = Path(given)
        settings["student"]["path"] = checkpoint_digest(folder) if folder.is_dir() else given
    return {
        "base": base.digest,
        "distill": settings,
        "calib": plain(calib) if needs_calibration(config) else None,
        "seed": seed,
        "tools": versions(Path(sys.executable), *TOOLS),
    }


def needs_calibration(config: DistillConfig) -> bool:
    """Whether the cut is measured on text."""
    student = config.student
    measured_depth = student.drop_layers is None and student.drop_fraction is not None
    return student.path is None and (
        measured_depth or student.intermediate_size is not None or student.num_kv_heads is not None
    )


def preflight(base: Artifact, config: DistillConfig, plan_hash: str, plan: Mapping[str, Any], own_place: Path) -> None:
    """Look at everything that can be wrong outside the configuration itself, before the teacher is loaded.

    `own_place` is where checkpoints go without a URL.

    Raises:
        PlanError: a problem with the grace period.
        UserError: the text, the student or the place for checkpoints will not do.

    """
    check_sources(config.data.sources)
    facts = facts_from_folder("teacher", base.path)
    problems = _check_cut(config, facts.num_layers)
    if problems:
        raise PlanError(problems)
    if config.student.path is not None:
        folder = Path(config.student.path)
        check_given_student(base.path, folder)
        num_parameters = facts_from_folder("student", folder).num_parameters
    else:
        num_parameters = student_parameters(config.student, facts)
    places = CheckpointStore(config.spot.url or str(own_place), config.spot.keep)
    speed = places.probe(PROBE_BYTES)
    if config.spot.url is not None:
        places.check_plan(plan_hash, plan)
    problem = grace_problem(config.spot, num_parameters, speed)
    if problem is not None:
        raise PlanError([problem])


def _check_cut(config: DistillConfig, num_layers: int) -> list[Problem]:
    """The layers, against the checkpoint itself: the plan may have known only the configured shape."""
    student = config.student
    outside = [layer for layer in student.drop_layers or [] if not 0 <= layer < num_layers]
    if outside or num_dropped(student, num_layers) >= num_layers:
        message = f"{outside or student.drop_layers} of a model with layers 0 to {num_layers - 1}"
        return [Problem("distill.student.drop_layers", message)]
    return []


def make_student_stage(
    base: Artifact, config: DistillConfig, calib: CalibConfig, effects: Effects
) -> tuple[Artifact, StageResult | None]:
    """The untrained student: cut from the base (and the stage that cut it), or the given checkpoint."""
    if config.student.path is not None:
        return folder_artifact(Path(config.student.path).resolve(), effects.store), None
    tokens = calibration_tokens(calib, base, effects.store) if needs_calibration(config) else None
    inputs = {
        "base": base.digest,
        "student": config.student,
        "calibration": None if tokens is None else tokens.result["digest"],
        "tools": versions(Path(sys.executable), *TOOLS),
    }

    def make(folder: Path) -> Mapping[str, Any]:
        job = {
            "teacher": base.path,
            "tokens": None if tokens is None else tokens.folder / "tokens.npy",
            "student": config.student,
            "output": folder / "model",
        }
        with effects.shown("student"):
            run_worker("student", job, folder, config)
        return _finish_student(folder, inputs)

    made = effects.store.run("student", inputs, make)
    return _checked_artifact(made, base, "student"), made


def teacher_cache_stage(
    base: Artifact, config: DistillConfig, rows: StageResult, effects: Effects
) -> StageResult | None:
    """What the teacher says of the text; None where it teaches live, or not at all."""
    if config.teacher.mode != "cached" or not config.needs_teacher:
        return None
    inputs = {
        "base": base.digest,
        "rows": rows.result["digest"],
        "top_k": config.teacher.top_k,
        "temperature": config.objective.temperature,
        "tools": versions(Path(sys.executable), *TOOLS),
    }

    def make(folder: Path) -> Mapping[str, Any]:
        job = {
            "teacher": base.path,
            "rows": rows.folder / "rows.npy",
            "output": folder / "cache",
            "top_k": config.teacher.top_k,
            "temperature": config.objective.temperature,
        }
        with effects.shown("teacher-cache"):
            run_worker("cache", job, folder, config, effects.on_line)
        return dict(read_json(folder / "measured.json"))

    return effects.store.run("teacher-cache", inputs, make, resumable=True)


def run_worker(
    task: str,
    job: Mapping[str, Any],
    folder: Path,
    config: DistillConfig,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a task in a process of its own. SIGTERM reaches it, and it has its grace period to write a checkpoint.

    Raises:
        InterruptedTrainingError: SIGTERM ended it.
        ToolError: it failed; the message ends with its log.

    """
    write_json(folder / "job.json", job)
    error_file = folder / "measured.error.json"
    error_file.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / f"{task}.log"
    log.touch()
    reader = LogReader(log)
    command = worker_command(task, folder, config.train.num_processes)
    grace_s = config.spot.grace_s + EXIT_MARGIN_S
    with (
        _sigterm_raises(),
        ChildProcess(command, log=log, env=environment, cwd=folder, grace_s=grace_s) as child,
    ):
        while (code := child.poll()) is None:
            tell(reader, on_line)
            time.sleep(POLL_S)
    tell(reader, on_line)
    if code == 0:
        return
    error = read_json(error_file) if error_file.exists() else None
    if error is not None and error["kind"] == InterruptedTrainingError.__name__:
        raise InterruptedTrainingError(f"{error['message']}; the same command goes on from there")
    if error is not None:
        raise ToolError(f"distillation stopped: {error['message']}")
    hint = " (out of memory?)" if code == 128 + signal.SIGKILL else ""
    raise ToolError(f"pipeline.distill.worker {task} failed with exit code {code}{hint}", log)


def tell(reader: LogReader, on_line: Callable[[str], None]) -> None:
    """Pass on the new lines of progress; the libraries' own lines stay in the log."""
    for line in reader.new_lines():
        if line.startswith(PROGRESS):
            on_line(line)


def worker_command(task: str, folder: Path, num_processes: int) -> list[str | Path]:
    """The worker's command line; several processes run below torch's launcher."""
    program: list[str | Path] = ["-m", "pipeline.distill.worker", task, folder / "job.json", folder / "measured.json"]
    if task != "train" or num_processes == 1:
        return [sys.executable, *program]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return [sys.executable, *launcher, *program]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds this process, so that it waits until the worker has written its checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise InterruptedTrainingError(
            "SIGTERM: the training had its grace period for a checkpoint; the same command goes on from there"
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def student_artifact(made: StageResult, base: Artifact) -> Artifact:
    """The artifact of a finished distill stage.

    Raises:
        StoreError: its folder no longer holds the files that were stored.

    """
    return _checked_artifact(made, base, "distill")


def distill_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """MLflow metrics of a finished stage's result; what was not measured has none."""
    metrics = {
        f"distill/{name}": float(result[name])
        for name in (
            "final_loss",
            "tokens_seen",
            "num_steps",
            "tokens_per_s",
            "mfu",
            "train_wall_s",
            "train_usd",
            "num_attempts",
            "lost_s",
            "lost_steps",
            "lost_usd",
            "spot_coverage",
            "making_wall_s",
            "teacher_wall_s",
            "teacher_usd",
        )
        if result.get(name) is not None
    }
    cache = result.get("teacher_cache")
    if cache is not None:
        metrics["distill/cache/bytes_per_token"] = float(cache["bytes_per_token"])
        metrics |= {f"distill/cache/{key}": float(value) for key, value in cache["error"].items()}
    return metrics


def training_curve(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    """(step, loss) of every logged point, for a metric with steps: `distill/loss`."""
    return [(int(point["step"]), float(point["loss"])) for point in result["curve"]]


def _finish_student(folder: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    model = folder / "model"
    result = {
        **read_json(folder / "measured.json"),
        "digest": checkpoint_digest(model),
        "num_bytes": weight_bytes(model),
    }
    write_json(model / "manifest.json", {"method": "student", **inputs, **result})
    return result


def _finish(
    folder: Path,
    plan: Mapping[str, Any],
    student: Artifact,
    cut: StageResult | None,
    rows: StageResult,
    cache: StageResult | None,
    bill: Bill,
) -> dict[str, Any]:
    model = folder / "model"
    measured = read_json(folder / "measured.json")
    teacher_wall_s = cache.wall_s if cache is not None else rows.wall_s if rows.stage == "teacher-text" else None
    making = [measured["train_wall_s"], teacher_wall_s, None if cut is None else cut.wall_s]
    result = {
        **measured,
        "making_wall_s": sum(seconds for seconds in making if seconds is not None),
        "digest": checkpoint_digest(model),
        "num_bytes": weight_bytes(model),
        "student": student.digest,
        "rows": rows.result,
        "teacher_cache": None if cache is None else {k: cache.result[k] for k in ("bytes_per_token", "error", "top_k")},
        "teacher_wall_s": teacher_wall_s,
        "teacher_usd": bill.usd(teacher_wall_s),
    }
    short = {key: value for key, value in result.items() if key != "curve"}
    write_json(model / "manifest.json", {"method": "distill", **plan, **short})
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    for scratch in folder.glob("resume-*"):
        shutil.rmtree(scratch)
    return result


def _checked_artifact(made: StageResult, base: Artifact, method: str) -> Artifact:
    folder = made.folder / "model"
    if not (folder / "config.json").exists() or weight_bytes(folder) != made.result["num_bytes"]:
        raise StoreError(f"the stored checkpoint {folder} has been changed: remove {made.folder} and run again")
    details = {key: made.result[key] for key in ("wall_s", "peak_host_bytes", "peak_device_bytes")}
    if method == "distill":
        details["wall_s"] = made.result["making_wall_s"]
        details["distill"] = distill_metrics(made.result)
    return Artifact(folder, str(made.result["digest"]), int(made.result["num_bytes"]), method, base.digest, details)
