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
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import StoreError
from core.files import digest_json, plain, read_json, write_json

KEY_DIGITS = 24


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


@dataclass(frozen=True)
class StageStore:
    """Finished stages below one folder. Safe for any number of processes on one machine."""

    root: Path
    on_event: Callable[[str, str], None] = field(default=lambda stage, event: None)
    """Called with the stage's name and one of `waiting`, `started`, `finished`, `reused`."""

    def run(
        self,
        stage: str,
        inputs: Mapping[str, object],
        make: Callable[[Path], Mapping[str, object]],
        *,
        resumable: bool = False,
    ) -> StageResult:
        """Return the finished stage, making it first if need be.

        `make` gets an empty folder for its files (or, when `resumable`, the folder of the attempt that was cut off) and
        returns what JSON can hold. When it raises, nothing is stored.
        """
        key = self.key(stage, inputs)
        found = self.find(stage, key)
        if found is None:
            with self._locked(stage, key):
                found = self.find(stage, key)
                if found is None:
                    return self._make(stage, key, inputs, make, resumable)
        self.on_event(stage, "reused")
        return found

    def key(self, stage: str, inputs: Mapping[str, object]) -> str:
        """The stage's key for these inputs."""
        return digest_json({"stage": stage, "inputs": inputs})[:KEY_DIGITS]

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

    def typical_wall_s(self, stage: str) -> float | None:
        """The median wall time of the finished stages of this name, in seconds; None before there is one."""
        times = sorted(read_json(path)["wall_s"] for path in (self.root / stage).glob("*/stage.json"))
        return times[len(times) // 2] if times else None

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
        self.on_event(stage, "started")
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
        self.on_event(stage, "finished")
        return StageResult(stage, key, folder, result, wall_s, reused=False, started_at=started_at)

    @contextmanager
    def _locked(self, stage: str, key: str) -> Iterator[None]:
        (self.root / stage).mkdir(parents=True, exist_ok=True)
        with lock(self.root / stage / f".{key}.lock", on_wait=lambda: self.on_event(stage, "waiting")):
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
