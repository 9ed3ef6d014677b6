"""The distillation stages: from a base checkpoint to a student, a checkpoint like any other.

student       cut from the base, once for all objectives
distill       the training: interrupted, the same command goes on from the newest checkpoint

Between them stand the stages of the text and of what the teacher says of it (`pipeline.stages.teacher`).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.environments import versions
from core.errors import StoreError
from core.files import digest_json, plain, read_json, write_json
from core.store import StageResult, StageStore
from pipeline.checkpoints.folder import checkpoint_digest, weight_bytes
from pipeline.config import CalibConfig, DistillConfig, EngineConfig
from pipeline.data.calibration import end_token
from pipeline.distill.preflight import TOOLS, needs_calibration, preflight, what_decides
from pipeline.distill.process import StudentJob, TrainJob, run_worker
from pipeline.distill.results import MachinePrice, distill_metrics, training_curve
from pipeline.stages.base import local_checkpoint
from pipeline.stages.data import Calibration
from pipeline.stages.graph import Effects, Stage, Work
from pipeline.stages.teacher import TeacherCache, TeacherText, TrainingRows
from pipeline.types import Artifact, Machine, Making, ModelFacts

PYTHON = Path(sys.executable)
TRAINING_PASSES = 4.0
"""Of a training step: the teacher forward; the student forward and, at twice that, backward."""


@dataclass(frozen=True)
class Student(Stage[Artifact]):
    """Cut an untrained student from the base."""

    base: Stage[Artifact]
    config: DistillConfig
    calibration: Calibration | None
    """The text that block influence and activations are measured on."""
    num_parameters: int
    label: str = ""
    name = "student"
    fixed_s = 15.0

    @property
    def inputs(self) -> Mapping[str, object]:
        """The base, the cut, the text it is measured on and the tools."""
        return {
            "base": self.base.key,
            "student": self.config.student,
            "calibration": None if self.calibration is None else self.calibration.key,
            "tools": versions(PYTHON, *TOOLS),
        }

    @property
    def work(self) -> Work:
        """The calibration text through the base."""
        calib = None if self.calibration is None else self.calibration.calib
        return Work("cut", self.num_parameters, None if calib is None else calib.num_samples * calib.length)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The base and the text."""
        return (self.base,) if self.calibration is None else (self.base, self.calibration)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Cut it, in a process of its own."""
        job: StudentJob = {
            "teacher": str(effects.result(self.base).path),
            "tokens": None if self.calibration is None else str(effects.result(self.calibration).path),
            "student": plain(self.config.student),
            "output": str(folder / "model"),
        }
        run_worker("student", job, folder, self.config, launcher=effects.launcher)
        model = folder / "model"
        made = {"digest": checkpoint_digest(model), "num_bytes": weight_bytes(model)}
        result = {**read_json(folder / "measured.json"), **made}
        write_json(model / "manifest.json", {"method": "student", **self.inputs, **result})
        return result

    def load(self, found: StageResult) -> Artifact:
        """The student."""
        return _checked_artifact(found, "student")


@dataclass(frozen=True)
class Distill(Stage[Artifact]):
    """Train the student; interrupted, the same command goes on from the newest checkpoint."""

    base: Stage[Artifact]
    student: Stage[Artifact]
    rows: Stage[Path]
    cache: TeacherCache | None
    config: DistillConfig
    calib: CalibConfig
    seed: int
    price: MachinePrice
    """For the books of interruptions; no part of the key."""
    num_parameters: int
    label: str = ""
    name = "distill"
    fixed_s = 30.0
    resumable = True

    @property
    def inputs(self) -> Mapping[str, object]:
        """All that decides the student's weights; its hash names the run's checkpoints too."""
        decides = what_decides(self.base.key, self.config, self.calib, self.seed)
        return {**decides, "student": self.student.key, "rows": self.rows.key}

    @property
    def work(self) -> Work:
        """The training steps' tokens."""
        train = self.config.train
        tokens = train.num_steps * train.batch_size * self.config.data.length
        return Work(self.config.name, self.num_parameters, tokens, TRAINING_PASSES)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The teacher, the student, the text, and what the teacher says of it."""
        stages = (self.base, self.student, self.rows, self.cache)
        return tuple(stage for stage in stages if stage is not None)

    def check(self, effects: Effects) -> None:
        """The place for checkpoints, the grace period, tokenizers and text, before the teacher is loaded.

        Raises:
            PlanError: the place for checkpoints, or the grace period, will not do.
            UserError: the student, its tokenizer or the text will not do.

        """
        plan = dict(self.inputs)
        own_place = effects.store.root / "distill"
        preflight(effects.result(self.base).path, self.config, digest_json(plan), plan, own_place)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Train it, in a process of its own.

        Raises:
            InterruptedTrainingError: SIGTERM; the same command goes on from the checkpoint.
            ToolError: the training failed; the message ends with its log.

        """
        base, plan = effects.result(self.base), dict(self.inputs)
        cut = effects.found(self.student).result if isinstance(self.student, Student) else None
        progress = effects.progress(self)
        job: TrainJob = {
            "teacher": str(base.path),
            "student": str(effects.result(self.student).path),
            "dropped_layers": None if cut is None else cut["dropped_layers"],
            "rows": str(effects.result(self.rows)),
            "cache": None if self.cache is None else str(effects.result(self.cache)),
            "output": str(folder / "model"),
            "work": str(folder),
            "url": self.config.spot.url or str(folder / "checkpoints"),
            "config": plain(self.config),
            "seed": self.seed,
            "end_token": end_token(base.path),
            "plan_hash": digest_json(plan),
            "plan": plain(plan),
            "purchase_option": self.price.purchase_option,
            "usd_per_hour": None if self.price.usd_per_hour is None else str(self.price.usd_per_hour),
        }

        def on_line(line: str) -> None:
            effects.say(line)
            if line.startswith("checkpoint ") and line.endswith("is written"):
                progress(0, 0)  # what a killed run did until then is no lost work

        run_worker("train", job, folder, self.config, on_line, effects.launcher)
        return self._finish(folder, base, effects)

    def _finish(self, folder: Path, base: Artifact, effects: Effects) -> dict[str, object]:
        model = folder / "model"
        measured = read_json(folder / "measured.json")
        cache = None if self.cache is None else effects.found(self.cache)
        text, cut = effects.found(self.rows), effects.found(self.student)
        teacher_wall_s = cache.wall_s if cache is not None else text.wall_s if text.stage == "teacher-text" else None
        making = [measured["train_wall_s"], teacher_wall_s, cut.wall_s if cut.stage == "student" else None]
        kept = ("bytes_per_token", "error", "top_k")
        result = {
            **measured,
            "making_wall_s": sum(seconds for seconds in making if seconds is not None),
            "digest": checkpoint_digest(model),
            "num_bytes": weight_bytes(model),
            "base": base.digest,
            "student": effects.result(self.student).digest,
            "rows": text.result,
            "teacher_cache": None if cache is None else {key: cache.result[key] for key in kept},
            "teacher_wall_s": teacher_wall_s,
            "teacher_usd": self.price.usd(teacher_wall_s),
        }
        short = {key: value for key, value in result.items() if key != "curve"}
        write_json(model / "manifest.json", {"method": "distill", **self.inputs, **short})
        # Moments and all: three times the student's size, and the training is over.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for scratch in folder.glob("resume-*"):
            shutil.rmtree(scratch)
        return result

    def load(self, found: StageResult) -> Artifact:
        """The trained student.

        Raises:
            StoreError: its folder no longer holds the files that were stored.

        """
        return _checked_artifact(found, "distill")


def distill_stage(
    base: Stage[Artifact],
    config: DistillConfig,
    calib: CalibConfig,
    seed: int,
    *,
    facts: ModelFacts,
    price: MachinePrice,
    engine: EngineConfig,
    machine: Machine,
    serving_python: Path,
    store: StageStore,
) -> Distill:
    """The distill stage with all that it needs.

    Args:
        base: the teacher.
        config: the `distill=` group.
        calib: the text that block influence and activations are measured on.
        seed: of the run.
        facts: the teacher's shape.
        price: what the machine costs.
        engine: serves the teacher where it writes the text (`distill.data.mode=teacher`).
        machine: where.
        serving_python: interpreter of the serving environment.
        store: remembers the digests of local folders.

    """
    size = facts.num_parameters
    student: Stage[Artifact]
    if config.student.path is not None:
        student = local_checkpoint(Path(config.student.path), store)
    else:
        text = Calibration(calib, base, source=None) if needs_calibration(config) else None
        student = Student(base, config, text, size)
    packed = TrainingRows(base, config)
    rows: Stage[Path] = packed
    if config.data.mode == "teacher":
        rows = TeacherText(packed, config, engine, machine, serving_python, size)
    cached = config.teacher.mode == "cached" and config.needs_teacher
    cache = TeacherCache(base, rows, config, size) if cached else None
    return Distill(base, student, rows, cache, config, calib, seed, price, size)


def _checked_artifact(made: StageResult, method: str) -> Artifact:
    folder, result = made.folder / "model", made.result
    if not (folder / "config.json").exists() or weight_bytes(folder) != result["num_bytes"]:
        raise StoreError(f"the stored checkpoint {folder} has been changed: remove {made.folder} and run again")
    making = Making(result["wall_s"], result["peak_host_bytes"], result["peak_device_bytes"])
    base_digest = None
    if method == "distill":
        making = replace(
            making,
            wall_s=result["making_wall_s"],  # with the cut and the teacher's part: what the student took altogether
            distill_metrics=distill_metrics(result),
            distill_curve=training_curve(result),
        )
        base_digest = str(result["base"])
    return Artifact(folder, str(result["digest"]), int(result["num_bytes"]), method, base_digest, making)
