"""What a checkpoint's measurement says, and whether that is healthy. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.errors import UserError
from pipeline.checkpoints.structure import Finding

MEASURED, NOT_CHECKED, DAMAGED = "measured", "not checked", "damaged"
WAYS_OUT = {
    "damaged": "remove the damaged folder and compress again; if it comes back, check disk and memory",
    "unloadable": "compress again with the versions that the manifest names; the worker's log has the whole error",
    "quality": "compress again; if the finding stays, take a milder method (more bits, smaller groups, more "
    "calibration text) or raise the limit that it names",
}


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


def report_from(raw: Mapping[str, Any]) -> HealthReport:
    """A report from its JSON form."""
    findings = tuple(Finding(**item) for item in raw.get("findings", ()))
    layers = tuple(LayerHealth(**item) for item in raw.get("layers", ()))
    return HealthReport(**{**raw, "findings": findings, "layers": layers})


def shown(value: float | None) -> str:
    """A figure with three significant digits."""
    return "not finite" if value is None else f"{value:.3g}"
