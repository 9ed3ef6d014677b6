"""What the evaluation's process is told and what it answers, as JSON has it, and what we use of lm-eval's objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict

Answer = str | Sequence[float]
"""A generated text, or a log-likelihood and whether the choice is the greedy one."""
Sample = Mapping[str, Any]
"""An item as lm-eval logs it; each metric has a key of its own."""


class TaskSpec(TypedDict):
    """A task to load: by its file, else by its stock name."""

    name: str
    path: NotRequired[str]


class TargetJson(TypedDict):
    """`evals.types.Target`."""

    url: str
    model_name: str
    tokenizer: str
    engine: Mapping[str, Any]
    digest: str


class GateJson(TypedDict):
    """A rule, each task's order, and the baseline's scores (accuracy, probability) by item id."""

    rule: Mapping[str, Any]
    orders: Mapping[str, Mapping[str, Any]]
    baseline: Mapping[str, Mapping[str, Sequence[float | None]]]


class QualityJob(TypedDict):
    """What is asked of whom."""

    target: TargetJson
    tasks: Sequence[TaskSpec]
    num_fewshot: int | None
    num_concurrent: int
    apply_chat_template: bool
    answers: str
    """The answer cache's file."""
    budgets: Mapping[str, int]
    """Most items of a task, the first of its uniform order; a task that is not named is asked in full."""
    uniform_identity: str
    """What the uniform orders are drawn from."""
    gate: NotRequired[GateJson]


class Texts(TypedDict, total=False):
    """What a person needs to judge an item on which two models differ."""

    question: str
    choices: Sequence[str]


class ScoredItem(Texts):
    """What is kept of an item."""

    score: float | None
    loglikelihoods: Sequence[float]
    target: int | str
    answer: str
    reason: str
    num_tokens: int | None
    all_metrics: Mapping[str, float]


class RawItem(ScoredItem):
    """`evals.types.ItemOutcome`."""

    item_id: int


class RawTask(TypedDict):
    """One task's items and settings."""

    metric: str
    filter: str
    items: Sequence[RawItem]
    sampling_order: Mapping[str, Any] | None
    num_items_total: int
    lm_eval: Mapping[str, Mapping[str, float]]
    """lm-eval's own figures, where every item was asked."""
    prompts_digest: str
    chat_template: str | None
    """SHA-256 of the chat template that the prompts went through; None without one."""
    num_fewshot: int | None
    version: str | float | None


class Outcomes(TypedDict):
    """What the process answers."""

    tasks: Mapping[str, RawTask]
    items_needed: Mapping[str, int]
    """Tasks whose gate waits for more of the baseline's answers, with the number of items that it must reach."""
    num_fresh: int
    """Requests that the server answered now."""
    num_known: int
    """Requests that the answer cache knew."""


class Request(Protocol):
    """lm-eval's `Instance`."""

    task_name: str
    doc_id: int
    idx: int
    doc: object
    args: Sequence[object]
    request_type: str
    resps: list[object]
    filtered_resps: dict[str, object]


class FilterEnsemble(Protocol):
    """Filters that lm-eval runs over the answers, one after another."""

    def apply(self, instances: list[Request]) -> None:
        """Write each request's `filtered_resps`."""


class LeafConfig(Protocol):
    """What is read of a task's settings."""

    metric_list: Sequence[Mapping[str, Any]] | None


class Leaf(Protocol):
    """lm-eval's `Task`."""

    task_name: str
    config: LeafConfig
    instances: Sequence[Request]
    eval_docs: Sequence[object]
    _filters: Iterable[FilterEnsemble]

    def doc_to_target(self, doc: object) -> object:
        """The right choice's index, or the reference answer."""

    def process_results(self, doc: object, results: Sequence[object]) -> Mapping[str, object]:
        """The metrics of one item."""
