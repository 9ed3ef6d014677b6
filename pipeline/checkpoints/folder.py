"""A checkpoint folder as an artifact: its digest and its size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.files import digest_file, digest_json, folder_bytes
from core.store import StageStore
from pipeline.types import Artifact

NOTES = ("manifest.json", "sensitivity.json")


def folder_artifact(folder: Path, store: StageStore) -> Artifact:
    """A local checkpoint with its digest, remembered until a file's size or time changes."""
    stamp = {
        str(path.relative_to(folder)): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    found = store.run("digest", {"folder": folder, "files": stamp}, lambda _: {"digest": checkpoint_digest(folder)})
    return _artifact(folder, str(found.result["digest"]))


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files; notes (*.md and NOTES) are left out."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and is_weighty(path)]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter: shards side by side
        return digest_json(dict(zip((path.name for path in files), pool.map(digest_file, files), strict=True)))


def is_weighty(path: Path) -> bool:
    """Whether a file of a checkpoint can change an answer."""
    return path.suffix != ".md" and path.name not in NOTES and not path.name.startswith(".")


def _artifact(folder: Path, digest: str) -> Artifact:
    return Artifact(folder, digest, weight_bytes(folder), "none", None)


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return total or folder_bytes(folder)
