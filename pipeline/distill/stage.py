"""The distillation stage: from a base checkpoint to a student, an Artifact like any other.

preflight     the place for checkpoints, the grace period, tokenizers, text: before the teacher is loaded
student       cut from the base, once for all objectives
distill-data  the text, packed, once for all students
teacher-cache what the teacher says of it, once for all students (distill.teacher.mode=cached)
distill       the training: interrupted, the same command goes on from the newest checkpoint
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from core.environments import versions
from core.errors import StoreError
from core.files import digest_json, read_json, write_json
from core.store import StageResult, StageStore
from pipeline.checkpoints.folder import checkpoint_digest, folder_artifact, weight_bytes
from pipeline.config import CalibConfig, DistillConfig
from pipeline.data.calibration import calibration_tokens, end_token
from pipeline.distill.data import training_rows
from pipeline.distill.preflight import TOOLS, needs_calibration, preflight, what_decides
from pipeline.distill.process import run_worker
from pipeline.types import Artifact


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
        The student, and the stage behind it, whose result has the curve, the time of all attempts and what
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


def student_artifact(made: StageResult, base: Artifact) -> Artifact:
    """The artifact of a finished distill stage.

    Raises:
        StoreError: its folder no longer contains the files that were stored.

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
        details["distill_curve"] = training_curve(made.result)
    return Artifact(folder, str(made.result["digest"]), int(made.result["num_bytes"]), method, base.digest, details)
