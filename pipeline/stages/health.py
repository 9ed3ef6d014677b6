"""The health stage: a candidate is compared with its base on a little real text before anything expensive starts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.environments import versions
from core.files import plain
from core.store import StageResult
from pipeline.config import CalibConfig
from pipeline.health.health import run_health
from pipeline.health.report import NOT_CHECKED, HealthLimits, HealthReport, report_from, require_healthy
from pipeline.stages.data import Calibration
from pipeline.stages.graph import Effects, Stage, Work
from pipeline.types import Artifact

TEXT = CalibConfig(name="health", sources=["squad", "coqa", "drop", "lambada"], num_samples=2, length=192, seed=1)
"""A few hundred tokens of the passages that methods calibrate on, drawn with another seed."""


@dataclass(frozen=True)
class Health(Stage[HealthReport]):
    """Measure a candidate's health once, and stop a broken one every time."""

    checkpoint: Stage[Artifact]
    base: Stage[Artifact]
    device: str
    """`cpu` or `cuda`."""
    method: str
    num_parameters: int
    label: str
    name = "health"
    fixed_s = 15.0

    @property
    def text(self) -> Calibration:
        """The text that both models read."""
        return Calibration(TEXT, self.base, source=None)

    @property
    def inputs(self) -> Mapping[str, object]:
        """Both checkpoints, the text, the device and the tools."""
        tools = versions(Path(sys.executable), "transformers", "compressed-tensors", "torch", "gptqmodel")
        keys = {"checkpoint": self.checkpoint.key, "base": self.base.key, "tokens": self.text.key}
        return {**keys, "device": self.device, "tools": tools}

    @property
    def work(self) -> Work:
        """The text through both models."""
        return Work(self.method, self.num_parameters, TEXT.num_samples * TEXT.length, passes=2.0)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """Both checkpoints and the text."""
        return (self.checkpoint, self.base, self.text)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Measure; the base's outputs are kept for the other variants."""
        checkpoint, base = effects.result(self.checkpoint), effects.result(self.base)
        text = effects.result(self.text)
        outputs = effects.home / "health" / f"{base.digest[:24]}-{text.digest[:12]}.npz"
        outputs.parent.mkdir(parents=True, exist_ok=True)
        return dict(
            plain(run_health(base.path, checkpoint.path, text.path, folder, outputs, launcher=effects.launcher))
        )

    def load(self, found: StageResult) -> HealthReport:
        """The report.

        Raises:
            HealthError: the candidate is broken; lists what was found and where.

        """
        report = report_from(found.result)
        if report.status != NOT_CHECKED:
            require_healthy(report, HealthLimits(), found.folder)
        return report
