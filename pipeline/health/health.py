"""Proof of health: is a compressed checkpoint still the base model, before anything expensive is done with it?

First its files (`structure.py`, no torch), then a few hundred tokens of real text through base and candidate in a
process of its own (`worker.py`): how far the next-token distributions are apart, and, layer by layer, how far
the candidate's residual update is from the base's when both are given the base's own hidden states. The second finds a
swapped or zeroed layer by name, whatever smoothing (SmoothQuant, AWQ) moved inside the layer.

    report = run_health(base, candidate, tokens, folder, base_cache=cache / "base.npz")
    require_healthy(report)          # HealthError: what was found, where, and the way out

`python -m pipeline.health.health BASE CANDIDATE TOKENS.npy` prints the figures of one checkpoint.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, UserError
from core.files import read_json, write_json
from core.jobs import LOCAL, Job, Launcher
from pipeline.checkpoints.structure import Finding, check_structure, files_of_layers

WORKER = "pipeline.health.worker:work"
MEASURED, NOT_CHECKED, DAMAGED = "measured", "not checked", "damaged"
WAYS_OUT = {
    "damaged": "remove the damaged folder and compress again; if it comes back, check disk and memory",
    "unloadable": "compress again with the versions that the manifest names; the worker's log has the whole error",
    "quality": "compress again; if the finding stays, take a milder method (more bits, smaller groups, more "
    "calibration text) or raise the limit that it names",
}


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


@dataclass(frozen=True)
class HealthLimits:
    """Beyond these a candidate is broken, not merely worse: quality itself is the gate's to judge.

    The defaults stand between what healthy 4 and 8 bit checkpoints of a 135M model measure and what damaged ones do;
    larger models lose less. Measured there (KL, agreement, perplexity, worst layer): int8 0.026, 0.86, 1.03, 0.08.
    GPTQ with 4 bit in groups of 64: 0.28, 0.78, 1.2, 0.24. Round to nearest with the same bits: 0.49, 0.56, 1.5, 0.31.
    """

    max_mean_kl_nats: float = 2.0
    """Mean Kullback-Leibler divergence of the next-token distributions, base from candidate, in nats per token."""
    min_top1_agreement: float = 0.3
    """Share of positions at which both models put the same token first."""
    near_tie_kl_nats: float = 0.02
    """Up to this mean KL the agreement is not judged: the distributions are at most sqrt(KL / 2) apart (Pinsker), so
    another first token is a tie broken otherwise, as in models with random weights."""
    max_perplexity_ratio: float = 4.0
    """Candidate's perplexity over the base's, on the same tokens."""
    max_local_error: float = 0.7
    """Relative error of one layer's residual update on the base's own hidden states, median over tokens; a zeroed layer
    has 1."""
    max_ends_error: float = 0.5
    """The same of the embeddings, and of the head's logits."""


@dataclass(frozen=True)
class LayerHealth:
    """One decoder layer on the base's own hidden states."""

    name: str
    """As in the weight files: `model.layers.7`."""
    relative_error: float | None
    """Norm of the updates' difference over the norm of the base's update, median over tokens; None where one is NaN."""
    acts_as: str | None = None
    """The base's layer that this one computes instead of its own, where one was found."""
    acts_as_error: float | None = None


@dataclass(frozen=True)
class HealthReport:
    """What was found of one candidate. Figures that were not measured are None."""

    status: str
    """`measured`, `not checked` (with the reason), or `damaged` (stopped at its files or at loading)."""
    reason: str = ""
    """Why nothing was measured."""
    findings: tuple[Finding, ...] = ()
    """What the files and the loading showed; the figures are for `judge`."""
    device: str = ""
    dtype: str = ""
    num_tokens: int = 0
    """Positions that were compared."""
    mean_kl_nats: float | None = None
    top1_agreement: float | None = None
    base_nll_nats: float | None = None
    """Mean negative log-likelihood of the base per token; its perplexity is the exponential."""
    nll_nats: float | None = None
    num_nonfinite_logits: int | None = None
    embedding_error: float | None = None
    head_error: float | None = None
    """Relative error of the candidate's centered logits on the base's last hidden states."""
    layers: tuple[LayerHealth, ...] = ()
    layers_reason: str = ""
    """Why the layers were not compared."""
    layer_files: Mapping[str, str] = field(default_factory=dict)
    base_reused: bool = False
    wall_s: float | None = None

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity of the candidate over the base's; None where either is missing."""
        if self.nll_nats is None or self.base_nll_nats is None:
            return None
        return math.exp(min(self.nll_nats - self.base_nll_nats, 700.0))

    @property
    def worst_layer(self) -> LayerHealth | None:
        """The layer with the largest error; one that is not finite counts as the largest."""
        errors = [math.inf if layer.relative_error is None else layer.relative_error for layer in self.layers]
        return self.layers[errors.index(max(errors))] if errors else None

    def metrics(self) -> dict[str, float]:
        """The figures that were measured, by metric name."""
        worst = self.worst_layer
        values = {
            "health/mean_kl_nats": self.mean_kl_nats,
            "health/top1_agreement": self.top1_agreement,
            "health/perplexity_ratio": self.perplexity_ratio,
            "health/num_nonfinite_logits": self.num_nonfinite_logits,
            "health/worst_local_error": None if worst is None else worst.relative_error,
        }
        return {name: float(value) for name, value in values.items() if value is not None}

    def line(self) -> str:
        """The report on one line, for a console."""
        if self.status != MEASURED:
            return f"{self.status}: {self.reason or '; '.join(map(str, self.findings))}"
        worst = self.worst_layer
        figures = [
            f"KL {shown(self.mean_kl_nats)} nats",
            f"top-1 {shown(self.top1_agreement)}",
            f"perplexity x{shown(self.perplexity_ratio)}",
            f"worst layer {worst.name} {shown(worst.relative_error)}" if worst else f"layers {self.layers_reason}",
        ]
        return f"{', '.join(figures)} over {self.num_tokens} tokens"


class HealthError(UserError):
    """A compressed checkpoint that must not go on: what was found and where, and the ways out."""

    def __init__(self, folder: Path | str, findings: Sequence[Finding]) -> None:
        self.findings = tuple(findings)
        lines = [f"  - {finding}" for finding in findings]
        ways = [f"    -> {WAYS_OUT[kind]}" for kind in WAYS_OUT if any(item.kind == kind for item in findings)]
        super().__init__("\n".join([f"the compressed checkpoint {folder} is not healthy:", *lines, *ways]))


class NotCheckedError(Exception):
    """Nothing could be measured on this machine: says why, and nothing about the candidate."""


def judge(report: HealthReport, limits: HealthLimits) -> list[Finding]:
    """All reasons to stop a candidate, the nearest to the cause first: files, values, layers, then the whole model.

    A report that is `not checked` has none: who calls must show its reason.
    """
    if report.status != MEASURED:
        return list(report.findings)
    found = [*report.findings, *judge_layers(report, limits)]
    if report.num_nonfinite_logits:
        message = f"{report.num_nonfinite_logits:,} logits are NaN or infinite over {report.num_tokens} tokens"
        found.append(Finding("damaged", "logits", message))
        return found
    near_ties = report.mean_kl_nats is not None and report.mean_kl_nats <= limits.near_tie_kl_nats
    checks = (
        ("mean KL from the base, nats per token", report.mean_kl_nats, "max_mean_kl_nats", 1),
        ("top-1 agreement with the base", report.top1_agreement, "min_top1_agreement", -1),
        ("perplexity over the base's", report.perplexity_ratio, "max_perplexity_ratio", 1),
    )
    for what, value, name, sign in checks:
        limit = getattr(limits, name)
        if name == "min_top1_agreement" and near_ties:
            continue
        if value is None:
            found.append(Finding("quality", "whole model", f"{what} could not be measured"))
        elif not sign * value <= sign * limit:
            found.append(Finding("quality", "whole model", f"{what} is {shown(value)} (limit {name}={limit})"))
    return found


def judge_layers(report: HealthReport, limits: HealthLimits) -> list[Finding]:
    """Layers, embeddings and head that compute something else than the base's.

    A residual stream in another basis (rotations as in QuaRot, arXiv 2404.00456, or SpinQuant, arXiv 2405.16406) moves
    the embeddings and every layer, and leaves the whole model's outputs: then layers cannot be compared and the whole
    model decides.
    """
    if rotated(report, limits):
        return []
    found = []
    for name, error in (("embeddings", report.embedding_error), ("head", report.head_error)):
        if error is not None and not error <= limits.max_ends_error:
            text = f"relative error {shown(error)} against the base (limit max_ends_error={limits.max_ends_error})"
            found.append(Finding("quality", name, text))
    for layer in report.layers:
        where = f"{layer.name} in {report.layer_files.get(layer.name, 'an unknown file')}"
        if layer.relative_error is None:
            found.append(Finding("damaged", where, "its output is not finite (NaN or infinity)"))
        elif layer.relative_error > limits.max_local_error:
            text = f"its update differs from the base's by {shown(layer.relative_error)} of the base's size"
            if layer.acts_as is not None:
                text += (
                    f"; it computes what the base's {layer.acts_as} does (error {shown(layer.acts_as_error)}): swapped"
                )
            kind = "quality" if layer.acts_as is None else "damaged"
            found.append(Finding(kind, where, f"{text} (limit max_local_error={limits.max_local_error})"))
    return found


def rotated(report: HealthReport, limits: HealthLimits) -> bool:
    """Whether embeddings and every layer differ although the outputs agree: another basis, not damage."""
    if report.embedding_error is None or report.mean_kl_nats is None or not report.layers:
        return False
    errors = [layer.relative_error for layer in report.layers]
    return (
        report.embedding_error > limits.max_ends_error
        and all(error is not None and error > limits.max_local_error for error in errors)
        and report.mean_kl_nats <= limits.max_mean_kl_nats
    )


def require_healthy(report: HealthReport, limits: HealthLimits | None = None, folder: Path | str = "just made") -> None:
    """Stop a candidate that is not healthy.

    Raises:
        HealthError: it is not; lists every finding and the ways out.

    """
    if found := judge(report, limits or HealthLimits()):
        raise HealthError(folder, found)


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
        report = measure(
            base_folder,
            candidate_folder,
            tokens_path,
            out_folder,
            base_cache,
            limits,
            python,
            num_sequences=num_sequences,
            length=length,
            launcher=launcher,
        )
    write_json(out_folder / "health.json", report)
    return report


def measure(
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
    """`run_health` without the check of the files."""
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
    return report_from({**measured, "layer_files": files_of_layers(candidate_folder)})


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


def report_from(raw: Mapping[str, Any]) -> HealthReport:
    """A report from its JSON form."""
    findings = tuple(Finding(**item) for item in raw.get("findings", ()))
    layers = tuple(LayerHealth(**item) for item in raw.get("layers", ()))
    return HealthReport(**{**raw, "findings": findings, "layers": layers})


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


def shown(value: float | None) -> str:
    """A figure with three significant digits."""
    return "not finite" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    base, candidate, tokens = map(Path, sys.argv[1:4])
    with tempfile.TemporaryDirectory() as scratch:
        outcome = run_health(base, candidate, tokens, Path(scratch))
    print(outcome.line(), *map(str, judge(outcome, HealthLimits())), sep="\n")
    raise SystemExit(2 if judge(outcome, HealthLimits()) else 0)
