"""The stage store: a stage's result is found by what went into it, and is there whole or not at all.

    store/<stage>/<key>/stage.json      inputs, result, wall time: written last, before the folder gets its name
    store/<stage>/<key>/...             the files that the stage made
    store/<stage>/.<key>.partial/       work under way, or what a killed run left; only a resumable stage reads it again
    store/<stage>/.<key>.lock           held while a process makes this stage; freed by the kernel when it ends

The key is the SHA-256 of the stage's name and its inputs: resolved settings, digests of what it reads, versions of its
tools. Two runs that need the same stage at once do it once: the second waits and then reads.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import StoreError
from core.files import digest_json, plain, read_json, write_json

KEY_DIGITS = 24


@dataclass(frozen=True)
class StageRef:
    """A stage about to run: its name, its key and the variant that it is made for (empty: for all of them)."""

    stage: str
    key: str
    label: str = ""


@dataclass(frozen=True)
class StageResult:
    """A finished stage."""

    stage: str
    key: str
    folder: Path
    result: dict[str, Any]
    wall_s: float
    """How long the making took, also when it is reused now."""
    reused: bool
    started_at: str
    """When the making began (ISO 8601, UTC)."""


class StageHook:
    """What listens to the store: consoles, meters. Each method does nothing until it is overridden.

    After `started` exactly one of `finished` and `failed` follows. An error raised by `started` or `progressed` stops
    the stage; when `finished` is called the result is stored already, whatever the hook does.
    """

    def started(self, ref: StageRef) -> None:
        """The stage is about to be made."""

    def progressed(self, ref: StageRef, done: int, total: int) -> None:
        """The work so far is safe: `done` of `total` parts; a total of 0 says that nobody counts."""

    def finished(self, ref: StageRef, found: StageResult) -> None:
        """The stage was made and is stored."""

    def failed(self, ref: StageRef, error: BaseException) -> None:
        """The making ended with an error: nothing is stored."""

    def reused(self, ref: StageRef, found: StageResult) -> None:
        """The stage was found."""

    def waiting(self, ref: StageRef) -> None:
        """Another process makes the stage: this one waits for it."""


def stage_key(stage: str, inputs: Mapping[str, object]) -> str:
    """The key of the stage of this name with these inputs."""
    return digest_json({"stage": stage, "inputs": inputs})[:KEY_DIGITS]


@dataclass(frozen=True)
class StageStore:
    """Finished stages below one folder. Safe for any number of processes on one machine."""

    root: Path
    hooks: tuple[StageHook, ...] = ()

    def run(
        self,
        stage: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], Mapping[str, object]],
        *,
        label: str = "",
        resumable: bool = False,
    ) -> StageResult:
        """Return the finished stage, making it first if need be.

        `make` gets an empty folder for its files (or, when `resumable`, the folder of the attempt that was cut off) and
        returns what JSON can hold. When it raises, nothing is stored.
        """
        ref = StageRef(stage, stage_key(stage, inputs), label)
        found = self.find(stage, ref.key)
        if found is None:
            with self._locked(ref):
                found = self.find(stage, ref.key)
                if found is None:
                    return self._listened(ref, inputs, make, resumable)
        for hook in self.hooks:
            hook.reused(ref, found)
        return found

    def progressed(self, ref: StageRef, done: int = 0, total: int = 0) -> None:
        """Tell the hooks that a stage's work so far is safe."""
        for hook in self.hooks:
            hook.progressed(ref, done, total)

    def _listened(
        self, ref: StageRef, inputs: Mapping[str, object], make: Callable[[Path], Mapping[str, object]], resumable: bool
    ) -> StageResult:
        """Make a stage between the hooks' `started` and `finished` or `failed`; those that started hear the end."""
        heard: list[StageHook] = []
        try:
            for hook in self.hooks:
                hook.started(ref)
                heard.append(hook)
            found = self._make(ref.stage, ref.key, inputs, make, resumable)
        except BaseException as error:
            for hook in heard:
                hook.failed(ref, error)
            raise
        with ExitStack() as end:  # every hook hears it, also where another one fails
            for hook in reversed(heard):
                end.callback(hook.finished, ref, found)
        return found

    def find(self, stage: str, key: str) -> StageResult | None:
        """The finished stage of this key, or None."""
        folder = self.root / stage / key
        record = folder / "stage.json"
        if not record.exists():
            return None
        stored = read_json(record)
        if stored["key"] != key:
            raise StoreError(f"{record} belongs to stage {stored['key']}: remove the folder {folder} and run again")
        return StageResult(stage, key, folder, stored["result"], stored["wall_s"], True, stored["started_at"])

    def discard_if(self, stage: str, key: str, is_broken: Callable[[], bool]) -> None:
        """Forget a finished stage whose result is no longer whole; `is_broken` is asked while nobody else makes it."""
        folder = self.root / stage / key
        if folder.exists():
            with self._locked(StageRef(stage, key)):
                if is_broken():
                    shutil.rmtree(folder, ignore_errors=True)

    def _make(
        self,
        stage: str,
        key: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], Mapping[str, object]],
        resumable: bool,
    ) -> StageResult:
        folder = self.root / stage / key
        partial = self.root / stage / f".{key}.partial"
        if partial.exists() and not resumable:
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        started = time.monotonic()
        result = plain(make(partial))
        wall_s = time.monotonic() - started
        write_json(
            partial / "stage.json",
            {
                "stage": stage,
                "key": key,
                "inputs": inputs,
                "result": result,
                "wall_s": wall_s,
                "started_at": started_at,
            },
        )
        if folder.exists():  # a folder without stage.json: not ours to read, never a result
            shutil.rmtree(folder)
        partial.rename(folder)
        return StageResult(stage, key, folder, result, wall_s, reused=False, started_at=started_at)

    @contextmanager
    def _locked(self, ref: StageRef) -> Iterator[None]:
        (self.root / ref.stage).mkdir(parents=True, exist_ok=True)
        path = self.root / ref.stage / f".{ref.key}.lock"

        def wait() -> None:
            for hook in self.hooks:
                hook.waiting(ref)

        with lock(path, on_wait=wait):
            yield


@contextmanager
def lock(path: Path, *, shared: bool = False, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold an advisory lock (flock) on a file; the kernel frees it when this process ends, however it ends."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(descriptor, kind)
        yield
    finally:
        os.close(descriptor)
