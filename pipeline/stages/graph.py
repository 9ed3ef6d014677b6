"""The stages of a run as values: whoever plans, estimates, charges, runs or records a stage walks one list of them.

A stage's key is the SHA-256 of its name and its inputs: settings, versions of tools, and the keys of the stages that
it reads (as derivations have it in Nix). So every key is known before anything runs. A local checkpoint stands in the
list by the digest of its content.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

from core.jobs import LOCAL, Launcher
from core.store import StageRef, StageResult, StageStore, lock, stage_key
from evals.decide.declared import Attempt, level_of_one
from pipeline.config import EngineConfig
from pipeline.serve.server import ServedModel
from pipeline.types import Artifact, Machine

OutT = TypeVar("OutT")
OutT_co = TypeVar("OutT_co", covariant=True)
Progress = Callable[[int, int], None]
"""Told how many of how many parts are done, and safe; (0, 0) where nobody counts."""
StageName = Literal[
    "digest", "download", "fetch", "base", "datasets", "calibration", "student", "distill-data", "teacher-text",
    "teacher-cache", "distill", "compress", "health", "quality", "noise", "load", "price",
]  # fmt: skip
"""Every stage there is."""
WORK_SHARE = "work_share"
"""Key of a result: the share of the stage's work that was done now; the rest had been measured before. Estimates rest
on stages that did all of it."""
MachineUse = Literal["free", "shared", "alone"]
"""What a stage needs of the machine while it runs: nothing, computing beside other runs, or all of it."""


@dataclass(frozen=True)
class Work:
    """How much a stage does: all that an estimate needs. An unknown size is None."""

    method: str = ""
    """What makes two stages of one name comparable: the compression method, the variant's weights."""
    num_parameters: int | None = None
    num_tokens: int | None = None
    """Tokens that go through the model."""
    passes: float = 1.0
    """Forward passes, or what costs as much, over these tokens."""
    num_bytes: int | None = None
    """Bytes that are downloaded, unpacked or hashed."""
    fixed_s: float | None = None
    """Seconds whatever the size, where they depend on the settings; None: the stage's own `fixed_s`."""


class Stage(ABC, Generic[OutT_co]):
    """One stage. Subclasses are frozen dataclasses that hold the settings and the stages that they read."""

    name: ClassVar[StageName]
    resumable: ClassVar[bool] = False
    """Whether a killed attempt's folder is read again."""
    machine_use: ClassVar[MachineUse] = "shared"
    fixed_s: ClassVar[float]
    """Seconds that it takes whatever its size, on two cores: libraries are imported, a server starts. For estimates."""
    is_given: ClassVar[bool] = False
    """Whether it is found outside the store and never made: a local checkpoint."""
    label: str
    """The variant; empty for what all variants share."""

    @property
    @abstractmethod
    def inputs(self) -> Mapping[str, object]:
        """What decides the result: settings, tools' versions, upstream stages' keys."""

    @property
    @abstractmethod
    def work(self) -> Work:
        """How much there is to do."""

    @property
    def needs(self) -> tuple[Stage[object], ...]:
        """The stages whose results this one reads while it runs."""
        return ()

    @abstractmethod
    def run(self, folder: Path, effects: Effects) -> Mapping[str, object]:
        """Do the work in an empty folder; returns what JSON can hold."""

    @abstractmethod
    def load(self, found: StageResult) -> OutT_co:
        """The typed result of the finished stage.

        Raises:
            StoreError: the folder no longer holds what was stored.

        """

    def check(self, effects: Effects) -> None:
        """Look at what can be wrong, before the stages that this one needs are made."""

    def check_access(self) -> None:
        """Look at what the stage needs from outside this machine, before the run spends anything.

        Raises:
            AssetError: it cannot be had; names the way out.

        """

    @cached_property
    def key(self) -> str:
        """The stage's key in the store."""
        return stage_key(self.name, self.inputs)

    @property
    def ref(self) -> StageRef:
        """The stage as the store's hooks know it."""
        return StageRef(self.name, self.key, self.label)

    def find(self, store: StageStore) -> StageResult | None:
        """The finished stage, or None."""
        return store.find(self.name, self.key)


@dataclass
class Effects:
    """The effects that a run's stages have. One run's; not shared with another process."""

    store: StageStore
    home: Path
    """The cache folder: the store, answers, load points, logs."""
    serving_python: Path
    """Interpreter of the serving environment."""
    launcher: Launcher = LOCAL
    """Where processes of heavy work run."""
    say: Callable[[str], None] = lambda text: None
    """Told what a person wants to know while a stage runs."""
    level: Callable[[Attempt], float] = level_of_one
    """Counts a candidate before its first answer, and says at which error level it is tested."""
    serve: Callable[..., ServedModel] = ServedModel
    """Serves a checkpoint; replaced in tests of the main path."""
    _found: dict[str, StageResult] = field(default_factory=dict)
    _server: tuple[object, ServedModel] | None = None
    _servers: ExitStack | None = None

    def result(self, stage: Stage[OutT]) -> OutT:
        """A stage's result; what is not in the store is made first, with all that it needs."""
        return stage.load(self.found(stage))

    def found(self, stage: Stage[object]) -> StageResult:
        """The finished stage behind `result`."""
        known = self._found.get(stage.key)
        if known is not None:
            return known
        # Before the machine's lock is taken: what is needed takes it too, and would wait for the one held here.
        if stage.find(self.store) is None:
            stage.check(self)
            for needed in stage.needs:
                self.found(needed)
        with self.machine(stage.machine_use):
            found = self._given(stage) or self.store.run(
                stage.name,
                stage.inputs,
                lambda folder: stage.run(folder, self),
                label=stage.label,
                resumable=stage.resumable,
            )
        self._found[stage.key] = found
        return found

    def _given(self, stage: Stage[object]) -> StageResult | None:
        """A stage that is found outside the store; what is stored of one whose files are gone is forgotten."""
        found = stage.find(self.store)
        if found is None:
            self.store.discard_if(stage.name, stage.key, lambda: stage.find(self.store) is None)
        return found if stage.is_given else None

    def progress(self, stage: Stage[object]) -> Progress:
        """Tells the store's hooks how far a running stage is."""
        return lambda done, total: self.store.progressed(stage.ref, done, total)

    def machine(self, use: MachineUse) -> AbstractContextManager[None]:
        """Held by everything that computes: shared, or alone while speed is measured. Waiting is not charged."""
        return nullcontext() if use == "free" else machine_lock(self.home, self.say, shared=use == "shared")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Servers started inside the block end with it."""
        # Blocks nest: a teacher is served while its student's block is open.
        outer = self._server, self._servers
        with ExitStack() as servers:
            self._server, self._servers = None, servers
            try:
                yield
            finally:
                self._server, self._servers = outer

    def served(self, artifact: Artifact, engine: EngineConfig, machine: Machine, label: str) -> ServedModel:
        """A checkpoint's server, which starts on first use and stays until another one is asked for."""
        assert self._servers is not None, "servers start inside `serving()`"
        wanted = (artifact.digest, artifact.path, engine, machine)
        if self._server is not None and self._server[0] == wanted:
            return self._server[1]
        self.end_server()  # the one before: two models would share the memory

        def on_start() -> None:
            self.say(f"{label}: starting vLLM's server")

        served = self.new_server(artifact, engine, machine, on_start)
        self._server = (wanted, self._servers.enter_context(served))
        return self._server[1]

    def end_server(self) -> None:
        """End the server that `served` keeps, if there is one."""
        if self._servers is not None:
            self._servers.close()
        self._server = None

    def new_server(
        self,
        artifact: Artifact,
        engine: EngineConfig,
        machine: Machine,
        on_start: Callable[[], None] = lambda: None,
    ) -> ServedModel:
        """A server that nobody shares. It is not started; its context ends it."""
        log = self.home / "logs" / f"vllm-{datetime.now(UTC):%Y%m%dT%H%M%S%f}.log"
        return self.serve(artifact, engine, machine, self.serving_python, log, on_start)


def machine_lock(home: Path, say: Callable[[str], None], *, shared: bool) -> AbstractContextManager[None]:
    """The lock of this machine among runs with one cache folder."""
    return lock(home / "machine.lock", shared=shared, on_wait=lambda: say("waiting for another run on this machine"))


def with_needs(targets: Iterable[Stage[object]]) -> tuple[Stage[object], ...]:
    """The stages and all that they need, each once and after what it needs."""
    ordered: dict[str, Stage[object]] = {}

    def visit(stage: Stage[object]) -> None:
        if stage.key not in ordered:
            for needed in stage.needs:
                visit(needed)
            ordered.setdefault(stage.key, stage)

    for target in targets:
        visit(target)
    return tuple(ordered.values())


def pending(targets: Iterable[Stage[object]], store: StageStore) -> tuple[Stage[object], ...]:
    """The stages that must run for the targets' results, in order: what is in the store needs nothing any more."""

    def missing(stages: Iterable[Stage[object]], seen: set[str]) -> Iterator[Stage[object]]:
        for stage in stages:
            if stage.key in seen:
                continue
            seen.add(stage.key)
            if stage.find(store) is None:
                yield from missing(stage.needs, seen)
                yield stage

    return tuple(missing(targets, set()))
