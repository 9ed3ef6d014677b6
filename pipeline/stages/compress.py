"""The compress stage: from a base checkpoint and a method to an Artifact with its manifest."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.environments import versions
from core.errors import StoreError
from core.files import read_json, write_atomic, write_json
from core.jobs import LOCAL, Job, Launcher
from core.store import StageResult, StageStore
from evals.quality.embedded import EMBEDDED_TASKS
from pipeline.checkpoints.card import manifest, model_card
from pipeline.checkpoints.folder import checkpoint_digest, folder_artifact, weight_bytes
from pipeline.checkpoints.sizes import size_report_of
from pipeline.compress import registry, worker
from pipeline.config import ModelConfig, RunConfig
from pipeline.data.calibration import calibration_tokens
from pipeline.data.contamination import evaluation_set
from pipeline.data.wheels import unpack_datasets
from pipeline.types import Artifact, Candidate


def compress(
    candidate: Candidate,
    base: Artifact,
    config: RunConfig,
    plan_hash: str,
    store: StageStore,
    shown: Callable[[str], AbstractContextManager[None]],
    elsewhere: Path | None = None,
    launcher: Launcher = LOCAL,
) -> tuple[Artifact, StageResult | None]:
    """Make the candidate's checkpoint; the baseline is the base itself, and one made elsewhere is taken as it is.

    Returns the artifact, and the stage behind it (None where nothing was made). `shown(name)` is entered while the work
    runs.

    Raises:
        ToolError: the method failed; the message ends with its log.

    """
    method = registry.method(candidate.method)
    if elsewhere is not None:
        found_there = folder_artifact(elsewhere.resolve(), store)
        return replace(found_there, method=candidate.method, base_digest=base.digest), None
    if method.compress is None:
        return base, None
    tokens = calibration(config, base, store) if method.needs_calibration else None
    inputs = {
        "base": base.digest,
        "method": candidate.method,
        "args": candidate.method_args,
        "calibration": None if tokens is None else tokens.result["digest"],
        "seed": config.seed,
        "tools": versions(Path(sys.executable), *method.tools),
    }

    def make(folder: Path) -> Mapping[str, Any]:
        job = {
            "method": candidate.method,
            "base": base.path,
            "output": folder / "model",
            "args": candidate.method_args,
            "calibration": None if tokens is None else tokens.folder / "tokens.npy",
            "seed": config.seed,
            "scratch": folder / "scratch" if method.resumable else None,
        }
        shutil.rmtree(folder / "model", ignore_errors=True)
        environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with shown("compress"):
            launcher.run(Job(worker.PROGRAM, job, folder, log="compress.log", environment=environment))
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return finish(folder, inputs, config.model, base, None if tokens is None else dict(tokens.result), plan_hash)

    found = store.run("compress", inputs, make, resumable=method.resumable)
    return artifact_of(found, base), found


def calibration(config: RunConfig, base: Artifact, store: StageStore) -> StageResult:
    """The calibration text. No item of any embedded set is in it, whatever the run's own suite is."""
    if config.suite.source == "embedded":
        evaluation = evaluation_set("embedded", list(EMBEDDED_TASKS), unpack_datasets(store))
    else:
        evaluation = evaluation_set(config.suite.source, config.suite.tasks, None)
    return calibration_tokens(config.calib, base, store, evaluation)


def finish(
    folder: Path,
    inputs: Mapping[str, Any],
    model: ModelConfig,
    base: Artifact,
    calibration: dict[str, Any] | None,
    plan_hash: str,
) -> dict[str, Any]:
    """Write the manifest and the model card beside the weights, and return what the store keeps."""
    size = size_report_of(folder / "model", base.path)
    found = manifest(
        inputs=inputs,
        measured=read_json(folder / "measured.json"),
        model=model,
        base=base,
        digest=checkpoint_digest(folder / "model"),
        size=size,
        config=read_json(folder / "model" / "config.json"),
        calibration=calibration,
        plan_hash=plan_hash,
    )
    write_json(folder / "model" / "manifest.json", found)
    write_atomic(folder / "model" / "README.md", model_card(found))
    return {**found, "size_metrics": size.metrics()}


def artifact_of(found: StageResult, base: Artifact) -> Artifact:
    """The artifact of a finished compress stage.

    Raises:
        StoreError: its folder no longer holds the files that were stored.

    """
    folder = found.folder / "model"
    if not (folder / "config.json").exists() or weight_bytes(folder) != found.result["num_bytes"]:
        raise StoreError(
            f"the stored checkpoint {folder} has been changed: remove the folder {found.folder} and run again"
        )
    details = {
        key: found.result[key]
        for key in ("wall_s", "peak_host_bytes", "peak_device_bytes", "calibration", "size_metrics")
    }
    method = str(found.result.get("method", ""))
    return Artifact(folder, str(found.result["digest"]), int(found.result["num_bytes"]), method, base.digest, details)
