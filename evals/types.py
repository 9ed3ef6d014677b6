"""The values that the stages of an evaluation hand to one another.

A figure that was not measured is `None` and the reason stands beside it: missing is never zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from evals.config import GateConfig
from finops.pricing.prices import Price

__all__ = [  # Price lives with the catalog, which must not import this room
    "Attribution",
    "CostReport",
    "Decision",
    "DecisionEvidence",
    "Divergence",
    "Estimate",
    "ItemOutcome",
    "LoadConditions",
    "LoadPoint",
    "LoadReport",
    "Money",
    "NoiseReport",
    "Point",
    "Price",
    "PriceRatio",
    "PriceRound",
    "PriceRounds",
    "QualityReport",
    "SamplingOrder",
    "Target",
    "TaskGate",
    "TaskNoise",
    "TaskResult",
    "ThetaSlo",
]


@dataclass(frozen=True)
class Target:
    """A served model: what an evaluation is allowed to know of a candidate."""

    url: str
    """Base URL of an OpenAI-compatible server, without `/v1`: `http://127.0.0.1:8123`."""
    model_name: str
    """The name under which the server knows the model."""
    tokenizer: Path
    """Folder of the model's tokenizer."""
    engine: Mapping[str, object]
    """The engine's settings, as they were given to the server."""
    digest: str
    """SHA-256 of everything that can change an answer: weights, tokenizer, engine settings, engine version, device."""
    speed_digest: str = ""
    """SHA-256 of everything that can change a speed: also batching, caching, speculation; empty: `digest` covers it."""


@dataclass(frozen=True)
class Estimate:
    """A measured figure with its interval.

    `method` labels the interval ("paired bootstrap 95%"). `num_unscored` items had no outcome; they are counted, never
    dropped in silence.
    """

    value: float
    lo: float
    hi: float
    num_samples: int
    num_unscored: int = 0
    method: str = ""

    def __post_init__(self) -> None:
        assert self.lo <= self.value <= self.hi, f"an estimate outside its interval: {self}"


@dataclass(frozen=True)
class ItemOutcome:
    """One item of a task as lm-eval scored it. `score` is None where it could not be scored, with `reason`."""

    item_id: int
    """Index in the task's evaluation split."""
    score: float | None
    loglikelihoods: tuple[float, ...] = ()
    """One per answer choice, in the task's order; empty for generation tasks."""
    target: int | str | None = None
    """The right choice's index, or the reference answer."""
    answer: str = ""
    """What the model chose or wrote."""
    reason: str = ""
    num_tokens: int | None = None
    """Prompt and answer tokens of the item's requests: what it costs to ask; None where they were not counted."""
    question: str = ""
    """The end of the prompt, kept for items on which the candidate differs from its baseline."""
    choices: tuple[str, ...] = ()
    """The answer choices' texts, kept with `question`."""


@dataclass(frozen=True)
class SamplingOrder:
    """The order in which a task's items are asked, drawn before the candidate's first answer."""

    kind: str
    """`uniform` or `guided`."""
    item_ids: tuple[int, ...]
    """All N items, in sampling order; the first ones were asked."""
    weights: tuple[float, ...] = ()
    """With which the items were drawn, in the same order; empty for the uniform order."""
    ranks: tuple[float | None, ...] = ()
    """Of the baseline's margins, in (0, 1) and the same order; None without a margin; empty for the uniform order."""


@dataclass(frozen=True)
class TaskResult:
    """A task's outcomes. `metric` is the lm-eval metric behind `estimate` and behind every item's score."""

    task: str
    metric: str
    estimate: Estimate
    """The mean score over all items of this benchmark."""
    items: tuple[ItemOutcome, ...]
    num_items_total: int
    """Items in the whole evaluation split; more than `items` where a subset was asked."""
    settings_digest: str
    """SHA-256 of everything but the model: equal digests mean that two results may be compared item by item."""
    sampling_order: SamplingOrder | None = None
    """Where a gate could end the evaluation early; None: every item was asked."""
    like_these: Estimate | None = None
    """The mean score of questions like these: an i.i.d. source of which the items are a sample. None where the items
    are no uniform sample of the benchmark: differences to the baseline are then told instead."""

    @property
    def num_items_planned(self) -> int:
        """Items of the suite, of which `len(items)` were asked."""
        return len(self.items) if self.sampling_order is None else len(self.sampling_order.item_ids)

    @property
    def is_complete(self) -> bool:
        """Whether every planned item was asked."""
        return len(self.items) == self.num_items_planned


@dataclass(frozen=True)
class TaskNoise:
    """How far a task's answers move when the same checkpoint computes them along another, equivalent path.

    A figure is None where no item has it: no log-likelihoods of choices, or no right choice that is known by index.
    """

    task: str
    num_items: int
    """Items that both paths scored."""
    num_unscored: int
    """Items that one of them could not score; they are in no figure."""
    num_items_total: int
    """Items of the task that a margin is about, of which `num_items` were drawn."""
    flip_rate: float | None
    """Share of the items whose score differs."""
    rms_score: float | None
    """Root mean square of the score's difference; for scores of 0 and 1 the square root of `flip_rate`."""
    rms_nats: float | None
    """Root mean square of the difference of the choices' log-likelihoods, in nats, over all choices of all items."""
    max_nats: float | None
    """The largest of these differences, in nats."""
    rms_probability: float | None
    """Root mean square of the difference of the right choice's probability (softmax over the choices)."""


@dataclass(frozen=True)
class NoiseReport:
    """A checkpoint against itself along two paths."""

    paths: tuple[str, str]
    """What they are, in words: the one that quality is measured by, and the other."""
    tasks: dict[str, TaskNoise]


@dataclass(frozen=True)
class QualityReport:
    """The outcomes of all tasks of a suite for one target."""

    tasks: dict[str, TaskResult]
    quality_invalid_reason: str = ""
    """Why the scores say nothing (random weights); empty where they do."""
    not_evaluated: dict[str, str] = field(default_factory=dict)
    """Tasks of the suite of which no item was asked, each with its reason."""
    noise: NoiseReport | None = None
    """The target's noise floor, where it has been measured (`parsimony noise`)."""


@dataclass(frozen=True)
class LoadPoint:
    """One setting of the load generator, measured `len(repeats)` times."""

    name: str
    concurrency: int | None
    """Most requests in flight; None: as many as arrive."""
    input_tokens: int
    output_tokens: int
    repeats: tuple[dict[str, float | None], ...]
    """Per repeat, by the names of `evals.load.summary.METRICS`."""
    num_errors: int
    """Requests that failed, over all repeats; `num_timeouts` of them because they took too long."""
    num_timeouts: int = 0
    num_requests: int = 0
    """Requests sent in each repeat."""
    request_rate: float | None = None
    """Offered requests per second, Poisson arrivals; None: as fast as `concurrency` allows."""
    prefix_share: float = 0.0
    """Share of each prompt that is common to all requests."""
    trace: str | None = None
    """The recorded traffic that was replayed, by its digest; the lengths above are then its means."""
    counters: tuple[dict[str, float | None], ...] = ()
    """Per repeat: the server's own counters and the machine's use, by the names of `evals.load.counters.COUNTERS`."""
    missing: dict[str, str] = field(default_factory=dict)
    """Why a metric or a counter is None."""

    @property
    def is_open_loop(self) -> bool:
        """Whether requests arrived at times of their own, whatever the server did: its speed is then the load's."""
        return self.request_rate is not None or self.trace is not None


@dataclass(frozen=True)
class ThetaSlo:
    """The largest Poisson request rate at which a latency objective was met.

    The search ends with a bracket: the objective was met at `held_req_per_s` and not at `failed_req_per_s`. A None on
    either side means that no tested rate met it, or that none failed. `reason` says so.
    """

    ttft_p99_s: float | None
    """The limit on the 99th percentile of the time to first token."""
    tpot_p99_s: float | None
    """The limit on the 99th percentile of the time per output token."""
    held_req_per_s: float | None
    failed_req_per_s: float | None
    num_points: int
    """Load points that the search measured."""
    reason: str = ""

    @property
    def req_per_s(self) -> float | None:
        """theta_slo: the largest rate that met the objective."""
        return self.held_req_per_s


@dataclass(frozen=True)
class LoadConditions:
    """What a load was measured on, with what, and when. A fact that was not recorded is None."""

    device: str | None = None
    """`cpu` or `cuda`."""
    device_name: str | None = None
    num_devices: int | None = None
    num_cpus: int | None = None
    engine: Mapping[str, object] = field(default_factory=dict)
    """The engine's settings, as they were given to the server."""
    startup_s: float | None = None
    """Seconds from the server's start to its first answer."""
    oldest_result_at: str | None = None
    """When the oldest of its repeats ended (ISO 8601)."""
    trace_file: str | None = None
    """The recorded traffic that was replayed."""
    trace_requests_passed_over: int | None = None
    """Requests of it that were too long."""


@dataclass(frozen=True)
class LoadReport:
    """All points of a load scenario for one target."""

    scenario: str
    points: tuple[LoadPoint, ...]
    machine: LoadConditions = field(default_factory=LoadConditions)
    mix: tuple[int, int] | None = None
    """Input and output tokens of the mix that headline prices speak of; None: the first point's."""
    theta_slo: ThetaSlo | None = None
    """Where the scenario looked for it."""


@dataclass(frozen=True)
class Money:
    """An amount in USD with the interval that load repeats and the price's range give it."""

    value: Decimal
    lo: Decimal
    hi: Decimal

    def __post_init__(self) -> None:
        assert self.lo <= self.value <= self.hi, f"an amount outside its interval: {self}"


@dataclass(frozen=True)
class Attribution:
    """Machine seconds of a request = a x input tokens + b x output tokens + c, fitted at the saturating concurrency.

    The intervals are None where there are no more observations than coefficients.
    """

    s_per_input_token: float
    s_per_output_token: float
    s_per_request: float
    s_per_input_token_interval: tuple[float, float] | None
    s_per_output_token_interval: tuple[float, float] | None
    s_per_request_interval: tuple[float, float] | None
    relative_residual: float
    """Root mean square of (fitted - measured) / measured seconds."""
    num_observations: int
    num_mixes: int
    concurrency: int | None


@dataclass(frozen=True)
class CostReport:
    """What tokens cost on one machine. A figure is None where its measurement is missing; `missing` says why."""

    price: Price
    utilisation: Decimal
    """The declared share of time at which the machine is busy; headline figures are divided by it."""
    usd_per_1k_tokens: Money | None
    """Blended over the measured mix of input and output tokens, at the declared utilization."""
    usd_per_1k_input_tokens: Money | None
    usd_per_1k_output_tokens: Money | None
    usd_per_1k_requests: Money | None
    peak_usd_per_1k_tokens: Money | None
    """At saturation: not a promise."""
    missing: dict[str, str] = field(default_factory=dict)
    basis: str = ""
    """Which load point the headline stands on, and how."""
    attribution: Attribution | None = None
    """The fit behind the prices of input and output tokens."""


@dataclass(frozen=True)
class PriceRound:
    """One round of an interleaved comparison: baseline and candidate, each freshly started, measured in turn.

    A start is the unit of replication: a round's repeats share one start of each server, and are averaged.
    """

    baseline_tok_per_s: tuple[float | None, ...]
    """Input and output tokens per second, one per repeat; None where no request was completed."""
    candidate_tok_per_s: tuple[float | None, ...]
    first: str
    """`baseline` or `candidate`: who was measured first."""
    ended_at: str
    """When it ended (ISO 8601, UTC)."""
    num_failed: int = 0
    """Requests that failed, on both sides and over all repeats."""
    counters: Mapping[str, float | None] = field(default_factory=dict)
    """The machine's use while it was measured, by the names of `evals.load.counters.MACHINE_USE`."""


@dataclass(frozen=True)
class PriceRounds:
    """A candidate's speed beside its baseline's, interleaved: each at the load point that its headline price rests on.

    `missing` says why there is no round.
    """

    baseline_point: str = ""
    """Name of the load point."""
    candidate_point: str = ""
    is_together: bool = False
    """Whether both servers were up at once; else one was started after the other."""
    rounds: tuple[PriceRound, ...] = ()
    earlier_looks: int = 0
    """How often a price was told from other numbers of these rounds before: each look costs some of the error."""
    missing: str = ""


@dataclass(frozen=True)
class PriceRatio:
    """The candidate's price of a token over its baseline's. The interval is None, with the reason in `method`, where
    fewer than two rounds tell how much starts differ.
    """

    ratio: float
    lo: float | None
    hi: float | None
    num_rounds: int
    method: str
    confidence: float = 0.95
    """Of the interval, two-sided."""


@dataclass(frozen=True)
class Point:
    """One candidate by cost and quality."""

    name: str
    quality: Estimate | None
    usd_per_1k_tokens: Money | None
    is_baseline: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Divergence:
    """Over the items that both models have choice log-likelihoods for."""

    kl_nats: float
    """Mean Kullback-Leibler divergence of the candidate's choice probabilities from the baseline's, in nats."""
    answer_perplexity_ratio: float | None
    """exp(mean drop of the right choice's log-likelihood): above 1 the candidate finds the right text less likely; None
    where the right choices are not known by index."""
    num_items: int


@dataclass(frozen=True)
class GuardGate:
    """The gate of the accuracy beside one of another score: a looser margin on the same items."""

    decision: str
    reason: str
    delta_points: float
    """The margin that it must keep."""
    reject_points: float
    """The margin by which it must not be shown to be worse before all items are asked."""
    difference: Estimate | None
    log_e_pass: float | None


@dataclass(frozen=True)
class TaskGate:
    """One task's gate after all recorded answers, its guard included."""

    task: str
    decision: str
    """pass, fail, futile or undecided."""
    reason: str
    """e-value, certain, exact, budget, or empty."""
    delta_points: float
    """The declared margin, in points."""
    order: str
    num_items: int
    num_items_total: int
    decided_at: int | None
    """The item at which the decision fell."""
    difference: Estimate | None
    """Candidate minus baseline in the deciding score over all items of this benchmark, as a share; None before the
    first item."""
    log_e_pass: float | None
    """Log e-value against "worse by the margin or more"; None where the answer is certain."""
    log_e_fail: float | None
    flip_rate: float | None
    gained: tuple[int, ...]
    """Ids of the items that the candidate got right and the baseline wrong, among those asked."""
    lost: tuple[int, ...]
    divergence: Divergence | None
    """Information; no gate decides by it."""
    score: str = "accuracy"
    """What decides: `accuracy`, or the `probability` of the right choice."""
    margin_points: float | None = None
    """The margin in points of that score; None: `delta_points`."""
    guard: GuardGate | None = None
    """The accuracy's own gate, where the probability decides."""
    max_log_e_pass: float = 0.0
    """The largest log e-value so far, and the item (from 1) at which it was reached; 0: none was above 1."""
    max_at: int = 0
    smallest_margin_points: float | None = None
    """The smallest margin in points of the score that the answers so far show at the candidate's level."""
    items_to_decide: int | None = None
    """An estimate of the items that the declared margin still takes; None where it is decided."""
    like_these: Estimate | None = None
    """The same difference for questions like these: an i.i.d. source of which the benchmark is a sample."""


@dataclass(frozen=True)
class DecisionEvidence:
    """The figures behind a decision's reasons; empty for a baseline, which is compared with nothing."""

    tasks: Mapping[str, TaskGate] = field(default_factory=dict)
    recovery: Estimate | None = None
    """Candidate's score over its baseline's; None where it could not be told."""
    usd_per_1k_tokens: Money | None = None
    baseline_usd_per_1k_tokens: Money | None = None
    price_ratio: PriceRatio | None = None
    """The candidate's price over its baseline's, measured in turn; None where it was not."""
    passed: bool = False
    """Whether it met every requirement; a cheaper candidate may still have been promoted instead."""
    beaten_by: tuple[str, ...] = ()
    """Who or what was better, each with figures."""
    level: float | None = None
    """The error level at which the candidate was tested; None for a baseline."""


@dataclass(frozen=True)
class Decision:
    """The answer of a run, with its reasons."""

    action: str
    """`promote`; `reject`: a requirement is not met; `undecided`: none is failed, but one is not shown yet; `hold`: not
    promoted for another reason (a baseline, a cheaper candidate, a refused promotion)."""
    variant: str
    reasons: tuple[str, ...]
    rule: GateConfig | None = None
    """The gate's settings, as they were applied; None for a baseline."""
    evidence: DecisionEvidence = field(default_factory=DecisionEvidence)
    """The figures behind the reasons."""
