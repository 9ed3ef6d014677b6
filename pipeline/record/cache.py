"""What of the stage cache may go: stages that are old, and that no registered version and no newer run needs."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.files import canonical_json, folder_bytes, read_json
from pipeline.record.tags import STAGE_KEY, STAGE_KEYS, tag_of

if TYPE_CHECKING:
    from mlflow.entities import Run

MEASURED = ("quality", "load")


@dataclass(frozen=True)
class CachedStage:
    """A folder of the stage cache."""

    stage: str
    key: str
    folder: Path
    made_at: datetime
    names: frozenset[str] = frozenset()
    """What others call it by in their inputs: its key, and the digest of what it made."""
    inputs: str = ""
    """Its own inputs, as text."""

    @property
    def is_partial(self) -> bool:
        """Whether it is what a killed run left."""
        return self.folder.name.endswith(".partial")


@dataclass(frozen=True)
class Needs:
    """What recorded runs and registered versions need of the cache."""

    keys: frozenset[str]
    folders: tuple[Path, ...] = ()
    measured_since: datetime | None = None
    """Runs that do not name their stages need every measurement since this moment."""


def cached_stages(root: Path) -> list[CachedStage]:
    """Every stage below the store's folder, finished or not, oldest first."""
    found = [_finished(path) for path in root.glob("*/*/stage.json")]
    for path in root.glob("*/.*.partial"):
        changed = max(one.stat().st_mtime for one in [path, *path.rglob("*")] if one.exists())
        key = path.name.removeprefix(".").removesuffix(".partial")
        found.append(CachedStage(path.parent.name, key, path, datetime.fromtimestamp(changed, UTC)))
    return sorted(found, key=lambda one: one.made_at)


def _finished(path: Path) -> CachedStage:
    stored: Mapping[str, Any] = read_json(path)
    key, result = str(stored["key"]), stored.get("result") or {}
    digest = str(result.get("digest", ""))
    made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    names = frozenset({key, digest} - {""})
    return CachedStage(path.parent.parent.name, key, path.parent, made, names, canonical_json(stored.get("inputs")))


def needs_of(runs: Iterable[Run]) -> Needs:
    """What these runs need: the stages that they name, and their checkpoints."""
    keys: set[str] = set()
    folders: list[Path] = []
    since: list[datetime] = []
    for run in runs:
        tags = run.data.tags
        keys.add(tag_of(tags, STAGE_KEY))
        if "artifact_path" in tags:
            folders.append(Path(tags["artifact_path"]).resolve())
        if stage_keys := tag_of(tags, STAGE_KEYS):
            keys.update(json.loads(stage_keys).values())
        elif "measured_at" in tags:  # a run of an older version, which does not name them
            since.append(datetime.fromisoformat(tags["measured_at"]).astimezone(UTC))
    return Needs(frozenset(keys - {""}), tuple(folders), min(since, default=None))


def needed(stages: Sequence[CachedStage], needs: Needs) -> set[Path]:
    """Folders that must stay: those named, and what these were made from, to any depth."""

    def is_named(one: CachedStage) -> bool:
        if one.key in needs.keys or any(path.is_relative_to(one.folder.resolve()) for path in needs.folders):
            return True
        since = needs.measured_since
        return since is not None and one.stage in MEASURED and one.made_at >= since

    todo = [one for one in stages if is_named(one)]
    kept = {one.folder for one in todo}
    while todo:
        reader = todo.pop()
        upstream = [
            one for one in stages if one.folder not in kept and any(name in reader.inputs for name in one.names)
        ]
        kept |= {one.folder for one in upstream}
        todo += upstream
    return kept


def prunable(stages: Sequence[CachedStage], needs: Needs, before: datetime) -> list[CachedStage]:
    """The stages made before a moment that nothing needs, oldest first. A younger stage keeps what it was made from."""
    young = frozenset(one.key for one in stages if one.made_at >= before)
    kept = needed(stages, Needs(needs.keys | young, needs.folders, needs.measured_since))
    return [one for one in stages if one.made_at < before and one.folder not in kept]


@contextmanager
def unused(path: Path) -> Iterator[bool]:
    """Hold a lock's file if nobody does; yields whether it is held now. No file is created."""
    if not path.exists():
        yield True
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def stage_lock(one: CachedStage) -> Path:
    """The lock that a process holds while it makes this stage."""
    return one.folder.parent / f".{one.key}.lock"


def is_locked(one: CachedStage) -> bool:
    """Whether a process makes this stage now."""
    with unused(stage_lock(one)) as free:
        return not free


def size_bytes(one: CachedStage) -> int:
    """What a stage takes on the disk."""
    return folder_bytes(one.folder)


def remove(one: CachedStage) -> bool:
    """Remove a stage unless a process makes it now; whether it is gone. Its record goes first: a half-removed folder is
    no result.
    """
    with unused(stage_lock(one)) as free:
        if not free:
            return False
        (one.folder / "stage.json").unlink(missing_ok=True)
        shutil.rmtree(one.folder)
        return True
