"""The health stage: a candidate is compared with its base on a little real text before anything expensive starts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from core.environments import versions
from core.files import plain
from core.store import StageResult, StageStore
from pipeline.config import CalibConfig
from pipeline.data.calibration import calibration_tokens
from pipeline.health.health import NOT_CHECKED, HealthLimits, HealthReport, report_from, require_healthy, run_health
from pipeline.types import Artifact, Machine

TEXT = CalibConfig(name="health", sources=["squad", "coqa", "drop", "lambada"], num_samples=2, length=192, seed=1)
"""A few hundred tokens of the passages that methods calibrate on, drawn with another seed."""


def check_health(
    artifact: Artifact,
    base: Artifact,
    machine: Machine,
    store: StageStore,
    home: Path,
    shown: Callable[[str], AbstractContextManager[None]],
    say: Callable[[str], None],
) -> tuple[HealthReport, StageResult]:
    """Measure a candidate's health once, and stop a broken one every time.

    Raises:
        HealthError: it is broken; lists what was found and where.

    """
    text = calibration_tokens(TEXT, base, store)
    inputs = {
        "artifact": artifact.digest,
        "base": base.digest,
        "tokens": text.result["digest"],
        "device": machine.device,
        "tools": versions(Path(sys.executable), "transformers", "compressed-tensors", "torch", "gptqmodel"),
    }
    outputs = home / "health" / f"{base.digest[:24]}-{text.result['digest'][:12]}.npz"

    def make(folder: Path) -> Mapping[str, Any]:
        outputs.parent.mkdir(parents=True, exist_ok=True)
        with shown("health"):
            report = run_health(base.path, artifact.path, text.folder / "tokens.npy", folder, outputs)
        return dict(plain(report))

    found = store.run("health", inputs, make)
    report = report_from(found.result)
    say(f"health: {report.line()}")
    if report.status != NOT_CHECKED:
        require_healthy(report, HealthLimits(), artifact.path)
    return report, found
