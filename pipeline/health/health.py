"""Proof of health: is a compressed checkpoint still the base model, before anything expensive is done with it?

First its files (`structure.py`, no torch), then a few hundred tokens of real text through base and candidate in a
process of its own (`worker.py`): how far the next-token distributions are apart, and, layer by layer, how far
the candidate's residual update is from the base's when both are given the base's own hidden states. The second finds a
swapped or zeroed layer by name, whatever smoothing (SmoothQuant, AWQ) moved inside the layer.

    report = run_health(base, candidate, tokens, folder, base_cache=cache / "base.npz")
    require_healthy(report)          # HealthError: what was found, where, and the way out
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.files import read_json, write_json
from core.jobs import LOCAL, Job, Launcher
from pipeline.checkpoints.structure import check_structure, files_of_layers
from pipeline.health.report import DAMAGED, HealthLimits, HealthReport, report_from

WORKER = "pipeline.health.worker:work"


class HealthJob(TypedDict):
    """What the measuring process is told."""

    base: str
    candidate: str
    tokens: str
    base_cache: str | None
    num_sequences: int
    length: int
    suspect_above: float
    """Relative error from which a layer is tried in another's place."""


class NotCheckedError(Exception):
    """Nothing could be measured on this machine: says why, and nothing about the candidate."""


def run_health(
    base_folder: Path,
    candidate_folder: Path,
    tokens_path: Path,
    out_folder: Path,
    base_cache: Path | None = None,
    limits: HealthLimits | None = None,
    python: Path | str = sys.executable,
    *,
    num_sequences: int = 2,
    length: int = 192,
    launcher: Launcher = LOCAL,
) -> HealthReport:
    """Check a candidate's files, then measure it against the base; `health.json` in `out_folder` keeps the report.

    Args:
        base_folder: the checkpoint that the candidate was made from.
        candidate_folder: the compressed checkpoint, in Hugging Face form.
        tokens_path: real text as token ids: `.npy`, integers, shape (num_samples, length).
        out_folder: where the job, the log and the report go.
        base_cache: `.npz` of the base's logits and hidden states; made if it is absent or belongs to other tokens or
            another base, so that a sweep runs the base once. None: the base's outputs are not kept.
        limits: what counts as broken.
        python: interpreter with torch and transformers.
        num_sequences: sequences taken from the front of `tokens_path`.
        length: tokens taken from the front of each of them.
        launcher: where the worker runs.

    Raises:
        ToolError: the worker failed for a reason that says nothing about the candidate.
        ConfigError: the tokens or a folder are not what they must be.

    """
    out_folder.mkdir(parents=True, exist_ok=True)
    found = check_structure(candidate_folder, base_folder)
    if found:
        report = HealthReport(DAMAGED, "stopped at its files", tuple(found))
    else:
        limits = limits or HealthLimits()
        read_tokens(tokens_path, base_folder, num_sequences, length)
        job: HealthJob = {
            "base": str(base_folder),
            "candidate": str(candidate_folder),
            "tokens": str(tokens_path),
            "base_cache": None if base_cache is None else str(base_cache),
            "num_sequences": num_sequences,
            "length": length,
            "suspect_above": limits.max_local_error,
        }
        report = measure(job, out_folder, python, launcher)
    write_json(out_folder / "health.json", report)
    return report


def measure(job: HealthJob, out_folder: Path, python: Path | str, launcher: Launcher) -> HealthReport:
    """Run the measuring process on a candidate whose files are sound."""
    environment = {
        # GPTQModel's own default fails on two cores, and loading needs no more.
        "GPTQMODEL_CPU_WORKERS": os.environ.get("GPTQMODEL_CPU_WORKERS", "2"),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    measured = launcher.run(
        Job(
            WORKER,
            job,
            out_folder,
            log="health.log",
            job_file="health-job.json",
            result_file="health-measured.json",
            python=Path(python),
            environment=environment,
            gpus=1,
        )
    )
    return report_from({**measured, "layer_files": files_of_layers(Path(job["candidate"]))})


def read_tokens(path: Path, base: Path, num_sequences: int, length: int) -> NDArray[np.int64]:
    """The first token ids of the first sequences, shape (N, L).

    Raises:
        ConfigError: the file does not contain a matrix of token ids of the base's vocabulary.

    """
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"health tokens {path}: cannot be read as .npy ({error})") from error
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer) or min(tokens.shape) < 1 or tokens.shape[1] < 2:
        found = f"{tokens.dtype} of shape {tokens.shape}"
        raise ConfigError(f"health tokens {path}: {found}; give integers of shape (num_samples, length >= 2)")
    tokens = np.ascontiguousarray(tokens[:num_sequences, :length], dtype=np.int64)
    config = read_json(base / "config.json")
    size = int((config.get("text_config") or config).get("vocab_size") or 2**63 - 1)
    if tokens.min() < 0 or tokens.max() >= size:
        outside = tokens.max() if tokens.max() >= size else tokens.min()
        raise ConfigError(
            f"health tokens {path}: id {outside} is outside the base's vocabulary of {size:,}; make them "
            "with the base's tokenizer"
        )
    return tokens


def why_not_loadable(config: Mapping[str, Any], device: str, installed: Mapping[str, bool]) -> str:
    """Why transformers cannot load a checkpoint of this format here; empty where it can.

    Args:
        config: the checkpoint's config.json.
        device: `cpu` or `cuda`.
        installed: package name -> whether it can be imported.

    """
    quant = config.get("quantization_config") or {}
    method = str(quant.get("quant_method", ""))
    needed = {
        "compressed-tensors": ("compressed_tensors",),
        "gptq": ("gptqmodel", "optimum"),
        "awq": ("gptqmodel", "accelerate"),
        "bitsandbytes": ("bitsandbytes", "accelerate"),
    }.get(method, ())
    if method == "bitsandbytes" and device != "cuda":
        return "bitsandbytes checkpoints are run on CUDA only, and this machine has none"
    absent = [name for name in needed if not installed.get(name, False)]
    return f"loading quant_method={method} needs {' and '.join(absent)}, not installed here" if absent else ""
