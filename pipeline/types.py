"""The values that the stages of a run hand to one another. Frozen: a stage never changes what another one made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypedDict

from evals.decide.declared import Attempt
from evals.types import CostReport, LoadReport, Price, PriceRounds, QualityReport

FP8_CAPABILITY = 8.9

AUTO = "auto"
GIB = 2**30


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without loading its weights."""

    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    tie_word_embeddings: bool
    num_parameters: int
    dtype_bytes: int = 2
    """Bytes of one weight in the checkpoint."""
    quant_format: str | None = None
    """The checkpoint's own quantization format, None for a plain one."""
    quant_bits: int | None = None
    """Bits of its smallest weights; None where the checkpoint is a plain one or does not say."""
    has_chat_template: bool | None = None
    """Whether its tokenizer knows how a conversation is written; None where its folder is not here yet."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return self.num_parameters * self.dtype_bytes


class MachineFingerprint(TypedDict):
    """What a measured speed depends on."""

    device: str
    device_name: str
    num_devices: int
    num_cpus: int


@dataclass(frozen=True)
class Machine:
    """What this run has under it."""

    device: str
    """`cpu` or `cuda`."""
    device_name: str
    """As the processor or the driver calls it."""
    num_devices: int
    """GPUs; 1 on a machine without."""
    num_cpus: int
    host_memory_bytes: int | None
    """None where a plan is made for another machine."""
    device_memory_bytes: int | None
    """Memory of one GPU; None on a CPU, which uses the host's."""
    compute_capability: float | None
    """CUDA compute capability of the GPUs; None on a CPU."""
    has_bf16: bool = True
    """Whether the device computes bfloat16 itself; a CPU without it emulates it, several times slower than float32."""
    has_int4: bool = True
    """Whether vLLM multiplies grouped INT4 weights there; on a CPU it needs AVX-512."""
    has_fp8_cache: bool = True
    """Whether vLLM keeps keys and values in FP8 there; on a CPU it needs AVX-512 or AMX."""
    has_int8: bool = True
    """Whether INT8 products come out right there; x86 processors without VNNI cut their sums off."""

    @property
    def has_avx512(self) -> bool:
        """Whether a CPU has AVX-512: what vLLM's INT4 kernel needs."""
        return self.has_int4

    @property
    def fingerprint(self) -> MachineFingerprint:
        """What a measured speed depends on."""
        return {
            "device": self.device,
            "device_name": self.device_name,
            "num_devices": self.num_devices,
            "num_cpus": self.num_cpus,
        }


@dataclass(frozen=True)
class Candidate:
    """One thing to measure: a checkpoint's recipe and the engine that serves it."""

    role: str
    """`baseline` or `candidate`."""
    method: str
    method_args: dict[str, Any]
    label: str
    """Short name in tables: the quant choice."""


@dataclass(frozen=True)
class Plan:
    """What a run will do. Made by `pipeline.plan.plan` from configuration and facts, without an effect."""

    facts: ModelFacts
    machine: Machine
    price: Price
    baseline: Candidate
    candidate: Candidate | None
    """None where the baseline itself was asked for."""
    quality_invalid_reason: str
    """Why quality says nothing; empty where it does."""
    notes: tuple[str, ...]
    """What the user should know, short of a problem."""


@dataclass(frozen=True)
class Making:
    """What the making of a checkpoint took, and what was found about it on the way. Unknown is None, or left out."""

    wall_s: float | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    """GPU memory; None on a CPU."""
    size_metrics: Mapping[str, float] = field(default_factory=dict)
    """`size/...` by metric name."""
    health_metrics: Mapping[str, float] = field(default_factory=dict)
    """`health/...`."""
    distill_metrics: Mapping[str, float] = field(default_factory=dict)
    """`distill/...` of the student behind it."""
    distill_curve: Sequence[tuple[int, float]] = ()
    """(step, loss) of the student's training."""

    @property
    def metrics(self) -> dict[str, float]:
        """All of it by metric name."""
        used = {name: getattr(self, name) for name in ("wall_s", "peak_host_bytes", "peak_device_bytes")}
        measured = {f"compress/{name}": float(value) for name, value in used.items() if value is not None}
        return {**self.size_metrics, **self.health_metrics, **self.distill_metrics, **measured}


NOT_MADE = Making()
"""Of a checkpoint that was given."""


@dataclass(frozen=True)
class Artifact:
    """A checkpoint folder in Hugging Face form."""

    path: Path
    digest: str
    """SHA-256 over the names and contents of its files."""
    num_bytes: int
    """Bytes of its weight files."""
    method: str
    base_digest: str | None
    """Digest of the checkpoint it was made from; None for a base model."""
    making: Making = NOT_MADE


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of one candidate."""

    candidate: Candidate
    artifact: Artifact
    quality: QualityReport
    load: LoadReport
    cost: CostReport
    server_log: Path
    stage_keys: dict[str, str]
    stage_wall_s: dict[str, float]
    stage_started_at: dict[str, str]
    """When the making of each stage began (ISO 8601), however often it was reused since."""
    made_now: tuple[str, ...]
    """The stages that this run made."""
    reused: tuple[str, ...]
    measured_at: str
    """When the oldest of its measurements was made (ISO 8601), however often it was reused since."""
    attempt: Attempt | None = None
    """The candidate as it is counted; None for a baseline."""
    price_rounds: PriceRounds | None = None
    """Its speed beside its baseline's, measured in turn; None for the baseline, and where no rounds are measured."""


@dataclass(frozen=True)
class Spend:
    """What one variant's record says of the ledger."""

    run_id: str
    """The ledger's run."""
    tags: Mapping[str, str]
    """Cost tags: the same ones go to MLflow and to every charge."""
    outcomes: Sequence[StageOutcome]
    """The variant's stages that ran."""


@dataclass(frozen=True)
class StageOutcome:
    """A stage that really ran: estimate against actual. The estimate is None for a stage that no plan foresees."""

    label: str
    stage: str
    expected_s: float | None
    actual_s: float
    expected_usd: Decimal | None
    charged_usd: Decimal

    @property
    def relative_error(self) -> float | None:
        """(actual - expected) / actual duration, as `finops.reports.estimates` has it; None without an estimate."""
        return (self.actual_s - self.expected_s) / self.actual_s if self.expected_s and self.actual_s else None
