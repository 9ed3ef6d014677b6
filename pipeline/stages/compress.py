"""The compress stage: from a base checkpoint and a method to a checkpoint with its manifest and model card."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.environments import versions
from core.errors import StoreError
from core.files import read_json, write_atomic, write_json
from core.jobs import Job
from core.store import StageResult
from pipeline.checkpoints.card import model_card
from pipeline.checkpoints.folder import checkpoint_digest, weight_bytes
from pipeline.checkpoints.manifest import Recipe, manifest
from pipeline.checkpoints.sizes import size_report_of
from pipeline.compress import registry, worker
from pipeline.config import ModelConfig
from pipeline.data.calibration import CalibrationRecord
from pipeline.stages.data import Calibration
from pipeline.stages.graph import Effects, Stage, Work
from pipeline.types import Artifact, Making

PYTHON = Path(sys.executable)
CALIBRATED_PASSES = 3.0
"""A method that looks at text runs it through the model about so often: Hessians or scales, and what follows."""


@dataclass(frozen=True)
class Compress(Stage[Artifact]):
    """Make a cheaper checkpoint by one method, in a process of its own."""

    method: registry.Method
    args: Mapping[str, object]
    base: Stage[Artifact]
    calibration: Calibration | None
    seed: int
    model: ModelConfig
    """What the manifest says of the base; no part of the key."""
    num_parameters: int
    label: str
    name = "compress"
    fixed_s = 15.0

    @property
    def inputs(self) -> Mapping[str, object]:
        """The base, the recipe and the tools."""
        return {
            "base": self.base.key,
            "method": self.method.name,
            "args": self.args,
            "calibration": None if self.calibration is None else self.calibration.key,
            "seed": self.seed,
            "tools": self.tools,
        }

    @property
    def tools(self) -> dict[str, str]:
        """Versions of the packages that the method uses."""
        return versions(PYTHON, *self.method.tools)

    @property
    def work(self) -> Work:
        """The calibration text through the model; without one, the weights."""
        calib = None if self.calibration is None else self.calibration.calib
        tokens = None if calib is None else calib.num_samples * calib.length
        return Work(self.method.name, self.num_parameters, tokens, CALIBRATED_PASSES)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The base and the text."""
        return (self.base,) if self.calibration is None else (self.base, self.calibration)

    @property
    def resumable(self) -> bool:  # type: ignore[override]
        """Whether the method's library goes on from what a killed attempt left."""
        return self.method.resumable

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Compress, then write the manifest and the card.

        Raises:
            ToolError: the method failed; the message ends with its log.

        """
        base = effects.result(self.base)
        tokens = None if self.calibration is None else effects.result(self.calibration)
        job: worker.Payload = {
            "method": self.method.name,
            "base": str(base.path),
            "output": str(folder / "model"),
            "args": self.args,
            "calibration": None if tokens is None else str(tokens.path),
            "seed": self.seed,
            "scratch": str(folder / "scratch") if self.method.resumable else None,
        }
        # What a killed attempt wrote of it; only its scratch folder is gone on from.
        shutil.rmtree(folder / "model", ignore_errors=True)
        environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        effects.launcher.run(Job(worker.PROGRAM, job, folder, log="compress.log", environment=environment))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        calibration = None if tokens is None else tokens.record
        recipe = Recipe(self.method.name, self.args, self.seed, self.tools)
        return finish(folder, recipe, self.model, base, calibration, self.key)

    def load(self, found: StageResult) -> Artifact:
        """The checkpoint.

        Raises:
            StoreError: its folder no longer holds the files that were stored.

        """
        folder = found.folder / "model"
        if not (folder / "config.json").exists() or weight_bytes(folder) != found.result["num_bytes"]:
            raise StoreError(
                f"the stored checkpoint {folder} has been changed: remove the folder {found.folder} and run again"
            )
        result = found.result
        making = Making(
            result["wall_s"],
            result["peak_host_bytes"],
            result["peak_device_bytes"],
            size_metrics=result["size_metrics"],
        )
        base_digest = str(result["base"]["digest"])
        return Artifact(folder, str(result["digest"]), int(result["num_bytes"]), self.method.name, base_digest, making)


def finish(
    folder: Path,
    recipe: Recipe,
    model: ModelConfig,
    base: Artifact,
    calibration: CalibrationRecord | None,
    stage_key: str,
) -> dict[str, object]:
    """Write the manifest and the model card beside the weights, and return what the store keeps."""
    size = size_report_of(folder / "model", base.path)
    found = manifest(
        recipe=recipe,
        measured=read_json(folder / "measured.json"),
        model=model,
        base=base,
        digest=checkpoint_digest(folder / "model"),
        size=size,
        config=read_json(folder / "model" / "config.json"),
        calibration=calibration,
        stage_key=stage_key,
    )
    write_json(folder / "model" / "manifest.json", found)
    write_atomic(folder / "model" / "README.md", model_card(found))
    return {**found, "size_metrics": size.metrics()}
