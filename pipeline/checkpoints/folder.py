"""A checkpoint folder as an artifact: its digest and its size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.files import digest_file, digest_json, folder_bytes

NOTES = ("manifest.json", "sensitivity.json")


def folder_stamp(folder: Path) -> dict[str, list[int]]:
    """Size and time of change of each file: while they stay, a digest that was computed stands."""
    return {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(folder.iterdir()) if path.is_file()
    }


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of a checkpoint's files; notes (*.md and NOTES) are left out."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and is_weighty(path)]
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter: shards side by side
        return digest_json(dict(zip((path.name for path in files), pool.map(digest_file, files), strict=True)))


def is_weighty(path: Path) -> bool:
    """Whether a file of a checkpoint can change an answer."""
    return path.suffix != ".md" and path.name not in NOTES and not path.name.startswith(".")


def weight_bytes(folder: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return total or folder_bytes(folder)
