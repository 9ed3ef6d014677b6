"""`manifest.json`, which stands beside an artifact's weights and says all that went into it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from core.files import plain
from core.jobs import Usage
from pipeline.checkpoints.sizes import SizeReport
from pipeline.config import ModelConfig
from pipeline.data.calibration import CalibrationRecord
from pipeline.types import Artifact

MANIFEST_VERSION = 1


class BaseEntry(TypedDict):
    """What an artifact was made from."""

    name: str
    repo: str | None
    """Its repository on the hub; None where it is from another place."""
    revision: str | None
    source: str
    weights: str
    license: str
    family: str
    note: str
    digest: str
    num_bytes: int


class GroupEntry(TypedDict):
    """`checkpoints.sizes.GroupSize` as JSON."""

    name: str
    num_bytes: int
    num_parameters: int | None
    bits_per_weight: float | None


class SizeEntry(TypedDict):
    """`checkpoints.sizes.SizeReport` as JSON."""

    num_bytes: int
    base_bytes: int | None
    quantized_bytes: int
    scale_bytes: int
    bits16_bytes: int
    bits32_bytes: int
    other_bytes: int
    header_bytes: int
    num_parameters: int | None
    bits_per_weight: float | None
    groups: list[GroupEntry]
    kept_16_bit: list[str]
    kept_32_bit: list[str]
    tied_lm_head: bool


class Manifest(TypedDict):
    """`manifest.json`."""

    manifest_version: int
    base: BaseEntry
    method: str
    recipe: dict[str, object]
    """The method's own settings."""
    seed: int
    versions: dict[str, str]
    calibration: CalibrationRecord | None
    """None where the method needs no text."""
    format: str | None
    quant_method: str | None
    architecture: str | None
    digest: str
    num_bytes: int
    size: SizeEntry
    wall_s: float | None
    peak_host_bytes: int | None
    peak_device_bytes: int | None
    stage_key: str | None


@dataclass(frozen=True)
class Recipe:
    """How an artifact was made: the compress stage's settings."""

    method: str
    args: Mapping[str, object]
    seed: int
    tools: Mapping[str, str]
    """Package -> version."""


def manifest(
    *,
    recipe: Recipe,
    measured: Usage,
    model: ModelConfig,
    base: Artifact,
    digest: str,
    size: SizeReport,
    config: Mapping[str, Any],
    calibration: CalibrationRecord | None,
    stage_key: str | None,
) -> Manifest:
    """Everything that an artifact was made from and with, as JSON. It has no path of this machine.

    Args:
        recipe: how it was made.
        measured: time and memory that the making took.
        model: the model that the run started from.
        base: its checkpoint.
        digest: `checkpoint_digest` of the artifact.
        size: the artifact's sizes.
        config: the artifact's config.json.
        calibration: the calibration stage's result; None where the method needs no text.
        stage_key: key of the compress stage, which names all that the artifact was made from.

    """
    quantization = config.get("quantization_config") or {}
    found: Manifest = plain(
        {
            "manifest_version": MANIFEST_VERSION,
            "base": {
                "name": model.name,
                "repo": model.repo if model.source == "hub" and not model.path else None,
                "revision": base_revision(base.path),
                "source": "path" if model.path else model.source,
                "weights": model.weights,
                "license": model.license,
                "family": model.family,
                "note": model.note,
                "digest": base.digest,
                "num_bytes": base.num_bytes,
            },
            "method": recipe.method,
            "recipe": dict(recipe.args),
            "seed": recipe.seed,
            "versions": dict(recipe.tools),
            "calibration": None if calibration is None else dict(calibration),
            "format": quantization.get("format") or quantization.get("quant_method"),
            "quant_method": quantization.get("quant_method"),
            "architecture": (config.get("architectures") or [None])[0],
            "digest": digest,
            "num_bytes": size.num_bytes,
            "size": size,
            "wall_s": measured["wall_s"],
            "peak_host_bytes": measured["peak_host_bytes"],
            "peak_device_bytes": measured["peak_device_bytes"],
            "stage_key": stage_key,
        }
    )
    return found


def base_revision(folder: Path) -> str | None:
    """The commit of a folder in the hub's cache (`.../snapshots/COMMIT`); None for any other folder."""
    is_commit = folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name) is not None
    return folder.name if is_commit else None
