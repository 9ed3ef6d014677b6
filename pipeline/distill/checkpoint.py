"""Training checkpoints below any fsspec URL (a folder, s3://, gs://): whole or not there, and never trusted unread.

    URL/step-00000050/model.safetensors       weights
    URL/step-00000050/optimizer.safetensors   moments
    URL/step-00000050/state.json              scheduler, random states, data position, curve
    URL/step-00000050/manifest.json           sizes and SHA-256 of the files, plan hash: written last

Object stores cannot rename, so the manifest is the commit: a folder without one is a write that was cut off. Reading
checks every byte against the manifest, and the manifest against its own digest; a damaged checkpoint is skipped for the
one before, with the reason. Tensors are safetensors, the rest is JSON: no pickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, TypedDict

from core.errors import UserError
from core.files import canonical_json, digest_json

if TYPE_CHECKING:
    from torch import Tensor

    Files: TypeAlias = Mapping[str, Mapping[str, Tensor] | bytes]
    """Name of a file -> its tensors, or its bytes."""

MANIFEST = "manifest.json"
NAME = re.compile(r"step-(\d{8})$")
PIECE_BYTES = 8 * 2**20
MAX_DIFFERENCES = 4
REMOTE_PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class CheckpointError(UserError):
    """A place for checkpoints that cannot be used, or that belongs to another run."""


class PlanMeta(TypedDict):
    """Whose checkpoint it is."""

    plan_hash: str
    plan: Mapping[str, object]
    """What decides the weights, for a message that names what differs."""


class Meta(PlanMeta):
    """What a checkpoint says of its run."""

    useful_s: float
    """Training time behind its state."""
    attempt: int


class FileEntry(TypedDict):
    """One file of a checkpoint."""

    bytes: int
    sha256: str


class Manifest(TypedDict):
    """What a checkpoint consists of."""

    step: int
    files: dict[str, FileEntry]
    meta: Meta


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was checked, as local files."""

    step: int
    folder: Path
    meta: Meta


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that was not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Written:
    """What one write took."""

    step: int
    num_bytes: int
    write_s: float


class CheckpointStore:
    """The checkpoints of one run below one URL."""

    def __init__(self, url: str, keep: int = 2) -> None:
        """Open the place; nothing is written yet.

        Raises:
            CheckpointError: the URL's kind is not known here; names the package that knows it.

        """
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
        from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

        self.url, self.keep = url, keep
        try:
            self._fs, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            package = REMOTE_PACKAGES.get(url.split("://", maxsplit=1)[0])
            way = f"install {package} into the pipeline environment" if package else "give a folder, s3:// or gs://"
            raise CheckpointError(f"distill.spot.url={url}: {error}\n  -> {way}") from error
        self._is_local = isinstance(self._fs, LocalFileSystem)

    def write(self, step: int, files: Files, meta: Meta) -> Written:
        """Write one checkpoint, then remove those that are older than the last `keep`.

        Args:
            step: optimizer steps done.
            files: name -> tensors (a safetensors file) or bytes.
            meta: kept in the manifest; must contain `plan_hash`.

        """
        started = time.monotonic()
        folder = self._path(f"step-{step:08d}")
        # What a killed attempt left of this very step.
        if self._fs.exists(folder):
            self._fs.rm(folder, recursive=True)
        self._fs.makedirs(folder, exist_ok=True)
        listed: dict[str, FileEntry] = {}
        for name, content in files.items():
            pieces = safetensors_pieces(content) if isinstance(content, Mapping) else iter([content])
            listed[name] = self._put(f"{folder}/{name}", pieces)
        body = {"step": step, "files": listed, "meta": dict(meta)}
        self._put_small(f"{folder}/{MANIFEST}", json.dumps(body | {"digest": digest_json(body)}, indent=1).encode())
        self._prune()
        num_bytes = sum(int(entry["bytes"]) for entry in listed.values())
        return Written(step, num_bytes, time.monotonic() - started)

    def newest(self, scratch: Path) -> tuple[Checkpoint | None, list[Skipped]]:
        """The newest checkpoint that is whole, and those that were skipped on the way to it.

        Args:
            scratch: a local folder that receives the files of a remote URL.

        """
        skipped: list[Skipped] = []
        for name in reversed(self.names()):
            try:
                return self._read(name, scratch), skipped
            except (OSError, ValueError, KeyError, TypeError) as error:
                skipped.append(Skipped(name, str(error)))
        return None, skipped

    def names(self) -> list[str]:
        """The folders of checkpoints, whole or not, oldest first."""
        if not self._fs.exists(self._root):
            return []
        # fsspec keeps listings, and another process may have written since.
        self._fs.invalidate_cache()
        found = (str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False))
        return sorted(name for name in found if NAME.match(name))

    def remove_after(self, step: int) -> None:
        """Remove what lies beyond a step: the damaged checkpoints that were skipped."""
        for name in self.names():
            if _step(name) > step:
                self._fs.rm(self._path(name), recursive=True)

    def check_plan(self, plan_hash: str, plan: Mapping[str, object]) -> None:
        """Check that the checkpoints found here belong to this plan.

        Raises:
            CheckpointError: they belong to another one; names the settings that differ.

        """
        for name in reversed(self.names()):
            try:
                meta = self._manifest(name)["meta"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if meta["plan_hash"] == plan_hash:
                return
            raise CheckpointError(
                f"distill.spot.url={self.url}: its checkpoints belong to another run (plan {meta['plan_hash'][:12]}, "
                f"this one is {plan_hash[:12]}){differences(meta.get('plan', {}), plan)}\n"
                "  -> another distill.spot.url for this run\n  -> the settings of that run, to go on with it\n"
                "  -> remove the old checkpoints"
            )

    def probe(self, num_bytes: int) -> float:
        """Write, read back and remove a file; returns bytes per second of the write.

        Raises:
            CheckpointError: the place cannot be written.

        """
        path = self._path(f".probe-{os.getpid()}")
        data = os.urandom(num_bytes)
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            started = time.monotonic()
            self._put(path, iter([data]))
            seconds = time.monotonic() - started
            with self._fs.open(path, "rb") as file:
                same = file.read() == data
            self._fs.rm(path)
        except Exception as error:  # each remote file system raises errors of its own
            raise CheckpointError(
                f"distill.spot.url={self.url}: cannot be written ({type(error).__name__}: {error})\n"
                "  -> a folder or bucket that you may write to\n  -> null keeps checkpoints in the cache folder"
            ) from error
        if not same:
            raise CheckpointError(f"distill.spot.url={self.url}: gives back other bytes than were written")
        return num_bytes / max(seconds, 1e-9)

    def put_json(self, name: str, value: object) -> None:
        """Write a small file beside the checkpoints, whole or not at all."""
        self._fs.makedirs(self._root, exist_ok=True)
        self._put_small(self._path(name), canonical_json(value).encode())

    def get_json(self, name: str) -> Any:  # whatever JSON holds
        """A small file's value; None where there is none, or where it cannot be read."""
        try:
            with self._fs.open(self._path(name), "rb") as file:
                return json.loads(file.read())
        except (OSError, ValueError):
            return None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _put(self, path: str, pieces: Iterable[bytes | memoryview]) -> FileEntry:
        digest, num_bytes = hashlib.sha256(), 0
        with self._open(path) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                num_bytes += len(piece)
            if self._is_local:
                file.flush()
                os.fsync(file.fileno())
        return {"bytes": num_bytes, "sha256": digest.hexdigest()}

    def _put_small(self, path: str, data: bytes) -> None:
        if not self._is_local:
            self._fs.pipe_file(path, data)
            return
        temporary = f"{path}.{os.getpid()}.{threading.get_ident()}.tmp"
        self._put(temporary, iter([data]))
        Path(temporary).replace(path)

    def _open(self, path: str) -> IO[bytes]:
        if self._is_local:
            return Path(path).open("wb")
        remote: IO[bytes] = self._fs.open(path, "wb")
        return remote

    def _manifest(self, name: str) -> Manifest:
        path = self._path(f"{name}/{MANIFEST}")
        if not self._fs.exists(path):
            raise ValueError("no manifest: its write was cut off")
        with self._fs.open(path, "rb") as file:
            body = json.loads(file.read())
        digest = body.pop("digest")
        if digest_json(body) != digest or body["step"] != _step(name):
            raise ValueError("the manifest does not match its digest")
        manifest: Manifest = body
        return manifest

    def _read(self, name: str, scratch: Path) -> Checkpoint:
        body = self._manifest(name)
        folder = Path(self._path(name)) if self._is_local else scratch / name
        folder.mkdir(parents=True, exist_ok=True)
        for file_name, entry in body["files"].items():
            digest, num_bytes = hashlib.sha256(), 0
            copy = None if self._is_local else (folder / file_name).open("wb")
            try:
                for piece in self._pieces(f"{name}/{file_name}"):
                    digest.update(piece)
                    num_bytes += len(piece)
                    if copy is not None:
                        copy.write(piece)
            finally:
                if copy is not None:
                    copy.close()
            if num_bytes != entry["bytes"]:
                raise ValueError(f"{file_name} has {num_bytes} bytes instead of {entry['bytes']}")
            if digest.hexdigest() != entry["sha256"]:
                raise ValueError(f"{file_name} does not match its SHA-256")
        return Checkpoint(int(body["step"]), folder, body["meta"])

    def _pieces(self, name: str) -> Iterator[bytes]:
        with self._fs.open(self._path(name), "rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def _prune(self) -> None:
        for name in self.names()[: -self.keep]:
            folder = self._path(name)
            if self._fs.exists(f"{folder}/{MANIFEST}"):  # first, so that a cut-off removal leaves no false checkpoint
                self._fs.rm(f"{folder}/{MANIFEST}")
            self._fs.rm(folder, recursive=True)


def safetensors_pieces(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """A safetensors file (huggingface.co/docs/safetensors, "Format") piece by piece, without a copy in memory.

    Args:
        tensors: on the CPU; their memory must not change while the pieces are read.

    """
    import torch

    kinds = {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": kinds[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for tensor in tensors.values():
        if tensor.numel():
            data = memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
            for start in range(0, len(data), PIECE_BYTES):
                yield data[start : start + PIECE_BYTES]


def differences(theirs: Mapping[str, object], ours: Mapping[str, object]) -> str:
    """The settings in which two plans differ, in words."""
    flat_theirs, flat_ours = dict(_flat(theirs)), dict(_flat(ours))
    keys = [key for key in flat_theirs | flat_ours if flat_theirs.get(key) != flat_ours.get(key)]
    keys.sort(key=lambda key: (key not in flat_theirs or key not in flat_ours, key))
    shown = [f"{key}: {flat_theirs.get(key)} there, {flat_ours.get(key)} here" for key in keys[:MAX_DIFFERENCES]]
    if len(keys) > MAX_DIFFERENCES:
        shown.append(f"and {len(keys) - MAX_DIFFERENCES} more")
    return "".join(f"\n  {line}" for line in shown)


def _flat(value: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _step(name: str) -> int:
    match = NAME.match(name)
    assert match is not None
    return int(match.group(1))
