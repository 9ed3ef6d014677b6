"""The compress stage: from a base checkpoint and a method to an Artifact with its manifest."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import StoreError
from common.files import read_json, write_json
from common.process import run_logged
from pipeline import registry
from pipeline.compress.calibration import calibration_tokens
from pipeline.environments import ROOT, versions
from pipeline.models.resolve import checkpoint_digest, folder_artifact, weight_bytes
from pipeline.schema import CalibConfig
from pipeline.stages import StageResult, StageStore
from pipeline.types import Artifact, Candidate


def compress(
    candidate: Candidate,
    base: Artifact,
    calib: CalibConfig,
    seed: int,
    store: StageStore,
    shown: Callable[[str], AbstractContextManager[None]],
    elsewhere: Path | None = None,
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
    tokens = calibration_tokens(calib, base, store) if method.needs_calibration else None
    inputs = {
        "base": base.digest,
        "method": candidate.method,
        "args": candidate.method_args,
        "calibration": None if tokens is None else tokens.result["digest"],
        "seed": seed,
        "tools": versions(Path(sys.executable), *method.tools),
    }

    def make(folder: Path) -> Mapping[str, Any]:
        job = {
            "method": candidate.method,
            "base": base.path,
            "output": folder / "model",
            "args": candidate.method_args,
            "calibration": None if tokens is None else tokens.folder / "tokens.npy",
            "seed": seed,
            "scratch": folder / "scratch" if method.resumable else None,
        }
        shutil.rmtree(folder / "model", ignore_errors=True)
        write_json(folder / "job.json", job)
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "pipeline.compress.worker",
            folder / "job.json",
            folder / "measured.json",
        ]
        with shown("compress"):
            run_logged(command, log=folder / "compress.log", env=environment, cwd=folder)
        shutil.rmtree(folder / "scratch", ignore_errors=True)
        return finish(folder, inputs, None if tokens is None else dict(tokens.result))

    found = store.run("compress", inputs, make, resumable=method.resumable)
    return artifact_of(found, base), found


def finish(folder: Path, inputs: Mapping[str, Any], calibration: dict[str, Any] | None) -> dict[str, Any]:
    """Write the manifest beside the weights and return what the store keeps."""
    result = {
        **read_json(folder / "measured.json"),
        "digest": checkpoint_digest(folder / "model"),
        "num_bytes": weight_bytes(folder / "model"),
        "calibration": calibration,
    }
    write_json(folder / "model" / "manifest.json", {**inputs, **result})
    return result


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
    details = {key: found.result[key] for key in ("wall_s", "peak_host_bytes", "peak_device_bytes", "calibration")}
    method = str(found.result.get("method", ""))
    return Artifact(folder, str(found.result["digest"]), int(found.result["num_bytes"]), method, base.digest, details)
