"""What distillation can be told. Pure; what can be wrong with it is in `check`.

    python -m pipeline model=smollm2-135m-q4_1 distill=depth-third quant=int8
    python -m pipeline distill=depth-third distill.student.drop_layers=[14,15,16] distill.train.num_steps=200

Every key has its line below; the choices are the files of conf/distill.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from pipeline.types import ModelFacts

ADAM_BYTES = 12
"""Bytes that a checkpoint keeps of each parameter: the float32 weight and AdamW's two float32 moments."""


@dataclass
class StudentConfig:
    """The model that learns: cut from the base, or a smaller checkpoint with the same tokenizer."""

    path: str | None = None
    """A checkpoint folder in Hugging Face form with the base's tokenizer; null cuts the student from the base."""
    drop_fraction: float | None = None
    """Share of the layers to remove: those with the least block influence on the calibration text (ShortGPT)."""
    drop_layers: list[int] | None = None
    """The layers to remove, counted from 0, instead of `drop_fraction`."""
    intermediate_size: int | None = None
    """Neurons that each MLP keeps, the most active first (Minitron); null keeps all."""
    num_kv_heads: int | None = None
    """Key-value heads that each layer keeps, with their query heads, the most active first; null keeps all."""


@dataclass
class ObjectiveConfig:
    """What the student minimises, per token, in nats."""

    divergence: str = "forward_kl"
    """forward_kl, reverse_kl, jensen_shannon, or none (plain fine-tuning: no teacher is loaded)."""
    divergence_weight: float = 1.0
    """Weight of the divergence from the teacher."""
    temperature: float = 1.0
    """Both distributions are softened by it; the divergence is multiplied by its square."""
    beta: float = 0.5
    """Generalised Jensen-Shannon only: weight of the teacher in the mixture."""
    cross_entropy_weight: float = 0.0
    """Weight of the cross-entropy on the text's own next token."""
    hidden_weight: float = 0.0
    """Weight of the mean squared error between matching hidden states; needs the live teacher."""


@dataclass
class DistillDataConfig:
    """The text that the student learns on, packed into full sequences."""

    mode: str = "text"
    """`text` (as it is), `teacher` (continuations that the teacher writes first, served by vLLM), or `on_policy` (the
    student continues each text's opening, and the teacher scores it)."""
    sources: list[str] = field(default_factory=list)
    """Text files (.txt), tables with a `text` column (.jsonl, .parquet, .arrow), or sets of passages: squad, coqa,
    drop, lambada."""
    length: int = 512
    """Tokens in each sequence; texts are packed together, never padded."""
    max_tokens: int | None = None
    """Most tokens to take from the sources; null takes all. Training goes through them again where it needs more."""
    prompt_tokens: int = 64
    """`teacher` and `on_policy`: tokens of each text's opening; the rest of the sequence is written by the model."""
    sampling_temperature: float = 1.0
    """`teacher` and `on_policy`: temperature of the writing model."""
    on_policy_fraction: float = 1.0
    """`on_policy`: share of the batches that the student writes; the others are the text (GKD's lambda)."""
    seed: int = 0
    """Seed of the order."""


@dataclass
class TeacherConfig:
    """How the base teaches."""

    mode: str = "live"
    """`live` (runs beside the student) or `cached` (runs once; its top log-probabilities are kept on disk)."""
    top_k: int = 128
    """`cached`: log-probabilities kept of each token; the rest is kept as one tail mass."""


@dataclass
class TrainConfig:
    """The training run: transformers' Trainer."""

    num_steps: int = 200
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences in one optimizer step, over all processes."""
    micro_batch_size: int = 4
    """Sequences that one process works on at once; the rest of the batch is accumulated."""
    learning_rate: float = 3e-4
    """Peak learning rate: linear warm-up, then a cosine down to zero."""
    warmup_fraction: float = 0.1
    """Share of the steps that warm up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    bf16: bool | None = None
    """Compute in bfloat16 with float32 weights; null: on a GPU that has it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more work."""
    chunk_tokens: int = 256
    """Tokens whose logits exist at once: bounds the loss's peak memory."""
    log_every_steps: int = 10
    """Steps between two points of the training curve."""
    diverge_factor: float = 3.0
    """A logged loss above this multiple of the lowest so far stops the run."""
    num_processes: int = 1
    """Processes, one per GPU; started by torch's own launcher."""
    fsdp: bool = False
    """Shard the student over the processes (torch's FSDP2, through accelerate); false replicates it."""
    fsdp_config: dict[str, Any] = field(default_factory=dict)
    """Trainer's `fsdp_config`, for example {cpu_offload: true}."""


@dataclass
class SpotConfig:
    """Checkpoints, for machines that may be taken away."""

    url: str | None = None
    """Where checkpoints go: a folder, or any fsspec URL (s3://, gs://); null: the stage's own folder."""
    every_steps: int = 50
    """Steps between two checkpoints."""
    keep: int = 2
    """Checkpoints kept."""
    grace_s: float = 25.0
    """Seconds between SIGTERM and the end of the machine."""
    save_on_sigterm: bool = True
    """Write a checkpoint within the grace period; false relies on the periodic ones."""
    heartbeat_s: float = 10.0
    """Seconds between two notes of how far the run is: what was lost is known to this precision."""


@dataclass
class DistillConfig:
    """Distillation of the base into a student; `name` none skips it."""

    name: str = "none"
    """Name of this choice."""
    student: StudentConfig = field(default_factory=StudentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DistillDataConfig = field(default_factory=DistillDataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    spot: SpotConfig = field(default_factory=SpotConfig)

    @property
    def enabled(self) -> bool:
        """Whether there is anything to do."""
        return self.name != "none"

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective looks at the teacher's output."""
        return self.objective.divergence != "none" or self.objective.hidden_weight > 0


def config_from(values: Mapping[str, Any]) -> DistillConfig:
    """The configuration that `core.files.plain` made JSON of."""
    parts = {item.name: item.default_factory for item in fields(DistillConfig) if item.default_factory is not MISSING}
    return DistillConfig(
        name=values["name"],
        **{name: part(**values[name]) for name, part in parts.items()},  # type: ignore[arg-type]
    )


def student_parameters(config: StudentConfig, facts: ModelFacts) -> int:
    """Parameters of a student that is cut from the base; the base's own number for a given checkpoint (a bound)."""
    if config.path is not None:
        return facts.num_parameters
    kept_layers = facts.num_layers - num_dropped(config, facts.num_layers)
    kv_heads = config.num_kv_heads or facts.num_kv_heads
    queries = facts.num_heads // facts.num_kv_heads
    neurons = config.intermediate_size or facts.intermediate_size
    layer_before = _layer_parameters(facts, facts.num_kv_heads, queries, facts.intermediate_size)
    layer_after = _layer_parameters(facts, kv_heads, queries, neurons)
    return facts.num_parameters - facts.num_layers * layer_before + kept_layers * layer_after


def student_facts(config: StudentConfig, facts: ModelFacts) -> ModelFacts:
    """Facts of a student that is cut from the base: what the next stages plan with. A given checkpoint has its own."""
    kv_heads = config.num_kv_heads or facts.num_kv_heads
    return replace(
        facts,
        num_layers=facts.num_layers - num_dropped(config, facts.num_layers),
        intermediate_size=config.intermediate_size or facts.intermediate_size,
        num_kv_heads=kv_heads,
        num_heads=kv_heads * (facts.num_heads // facts.num_kv_heads),
        num_parameters=student_parameters(config, facts),
    )


def num_dropped(config: StudentConfig, num_layers: int) -> int:
    """How many layers go."""
    if config.drop_layers is not None:
        return len(config.drop_layers)
    return round(num_layers * (config.drop_fraction or 0.0))


def _layer_parameters(facts: ModelFacts, kv_heads: int, queries_per_kv: int, neurons: int) -> int:
    attention = 2 * facts.hidden_size * facts.head_dim * kv_heads * (queries_per_kv + 1)
    return attention + 3 * facts.hidden_size * neurons + 2 * facts.hidden_size
