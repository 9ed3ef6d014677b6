"""The noise floor: how far a score moves when only the rounding of its sums is drawn anew. Pure.

A model's answer depends on the order in which numbers are added: another kernel, batch or library adds them otherwise.
For float32 that moves a log-likelihood by a thousandth of a nat. INT8 activations are codes, and a last digit that
moves a value across the border between two codes is a difference of a whole code, which the next layers pass on: there
rounding moves log-likelihoods by tenths of a nat, and answers flip. The checkpoint is the same, and so is its quality.

What can a decision resolve? Let item i score s_i, a random draw of its rounding, of variance v_i. Two paths are two
independent draws, so E (s_i' - s_i)^2 = 2 v_i: half the mean square of the observed differences (for scores of 0 and 1
half the share of flips) estimates the mean of v_i. Assumed is that the rounding of one item says nothing of another
one's, and nothing of the other model's. Then the mean difference over N items, drawn anew, has the variance

    (mean square of the candidate's differences + that of the baseline's) / (2 N)

and a margin below two standard deviations could be passed or failed by rounding alone.

    noise = task_noise("piqa", one_path.items, other_path.items, num_items_total=1838)
    resolvable_points(noise.rms_score, other.rms_score, num_items=1838)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evals.gate.scores import margin_unit, right_probability
from evals.stats import FloatArray
from evals.types import ItemOutcome, NoiseReport, QualityReport, TaskGate, TaskNoise, TaskResult

NUM_SDS = 2.0
"""A margin must be worth so many standard deviations of the redrawn mean difference."""
SCORES = {"accuracy": "rms_score", "probability": "rms_probability"}
"""What a gate decides by -> the figure of `TaskNoise` that moves it."""


def noise_report(
    paths: tuple[str, str], first: Mapping[str, TaskResult], second: Mapping[str, TaskResult]
) -> NoiseReport:
    """The noise of every task that both paths were asked, over the items that the second one was asked."""
    tasks = {
        task: task_noise(task, first[task].items, result.items, result.num_items_planned)
        for task, result in second.items()
        if task in first
    }
    return NoiseReport(paths, tasks)


def task_noise(
    task: str, first: Sequence[ItemOutcome], second: Sequence[ItemOutcome], num_items_total: int
) -> TaskNoise:
    """The differences between two paths' answers to the same items.

    Args:
        task: its name.
        first: outcomes by the path that quality is measured by; may be of more items.
        second: outcomes by the other path.
        num_items_total: items of the task, of which `second` has some.

    Raises:
        ValueError: an item of the second path is not among the first one's, or has another number of choices there.

    """
    known = {item.item_id: item for item in first}
    missing = sorted(item.item_id for item in second if item.item_id not in known)
    if missing:
        raise ValueError(f"{task}: {len(missing)} items have no answer by the first path, among them {missing[:5]}")
    pairs = [(known[item.item_id], item) for item in second]
    scored = [(one.score, other.score) for one, other in pairs if one.score is not None and other.score is not None]
    scores = _array([b - a for a, b in scored])
    nats = _array([b - a for one, other in pairs for a, b in zip(*_choices(task, one, other), strict=True)])
    both = [(_probability(one), _probability(other)) for one, other in pairs]
    probabilities = _array([b - a for a, b in both if a is not None and b is not None])
    return TaskNoise(
        task=task,
        num_items=scores.size,
        num_unscored=len(pairs) - scores.size,
        num_items_total=num_items_total,
        flip_rate=float((scores != 0).mean()) if scores.size else None,
        rms_score=_rms(scores),
        rms_nats=_rms(nats),
        max_nats=float(np.abs(nats).max()) if nats.size else None,
        rms_probability=_rms(probabilities),
    )


def redraw_sd(candidate_rms: float, baseline_rms: float, num_items: int) -> float:
    """Standard deviation of the mean score's difference over `num_items`, the rounding of both models drawn anew.

    Args:
        candidate_rms: root mean square of the candidate's differences between two paths, as a share of the score.
        baseline_rms: the baseline's.
        num_items: items that the mean is over, at least 1.

    """
    return math.sqrt((candidate_rms**2 + baseline_rms**2) / (2 * num_items))


def resolvable_points(candidate_rms: float, baseline_rms: float, num_items: int) -> float:
    """The smallest margin, in points, that the noise floor can resolve: `NUM_SDS` of `redraw_sd`.

    >>> round(resolvable_points(math.sqrt(0.05), 0.0, 1000), 3)  # 5% of the answers flip
    1.0
    """
    return 100 * NUM_SDS * redraw_sd(candidate_rms, baseline_rms, num_items)


@dataclass(frozen=True)
class TaskFloor:
    """What one task can resolve."""

    task: str
    candidate: TaskNoise
    baseline: TaskNoise
    num_items: int
    """Items of the task that the margin is about."""
    accuracy_points: float | None
    """The smallest margin of accuracy, in points; None where no item was scored."""
    probability_points: float | None
    """The smallest margin of the right choice's probability, in points; None where no item has one."""

    @property
    def models(self) -> tuple[TaskNoise, TaskNoise]:
        """Candidate and baseline."""
        return self.candidate, self.baseline

    def points(self, score: str) -> float | None:
        """The smallest margin in points of a gate's score: one of `SCORES`."""
        return {"accuracy": self.accuracy_points, "probability": self.probability_points}[score]

    def declared_points(self, wanted: str) -> float | None:
        """The smallest declared margin (`gate.delta_points`) that can be decided by the wanted score, or by accuracy
        where the task has no probabilities.
        """
        score = "accuracy" if self.probability_points is None else wanted
        points = self.points(score)
        return None if points is None else points / margin_unit(score)


def task_floor(
    task: str, num_items: int, candidate: NoiseReport | None, baseline: NoiseReport | None
) -> TaskFloor | None:
    """The floor under a task's margin; None where the noise of one of the two was not measured."""
    ours = None if candidate is None else candidate.tasks.get(task)
    theirs = None if baseline is None else baseline.tasks.get(task)
    if ours is None or theirs is None or num_items < 1:
        return None
    points: dict[str, float | None] = {}
    for score, name in SCORES.items():
        a, b = getattr(ours, name), getattr(theirs, name)
        points[score] = None if a is None or b is None else resolvable_points(a, b, num_items)
    return TaskFloor(task, ours, theirs, num_items, points["accuracy"], points["probability"])


def floor_problem(gate: TaskGate, candidate: QualityReport, baseline: QualityReport) -> str | None:
    """Why a task's margin cannot be decided: it lies below the noise floor. None where it does not, or nobody measured.

    Args:
        gate: the task's gate; its margin is about `num_items_total` items.
        candidate: with its noise.
        baseline: with its noise.

    """
    floor = task_floor(gate.task, gate.num_items_total, candidate.noise, baseline.noise)
    points = None if floor is None else floor.points(gate.score)
    margin = gate.delta_points if gate.margin_points is None else gate.margin_points
    if points is None or margin >= points:
        return None
    return (
        f"the margin of {margin:g} points of {gate.score} lies below the noise floor of {points:.2g} points "
        "(parsimony noise)"
    )


def _probability(item: ItemOutcome) -> float | None:
    return right_probability(item.loglikelihoods, item.target)


def _choices(task: str, one: ItemOutcome, other: ItemOutcome) -> tuple[Sequence[float], Sequence[float]]:
    """Both paths' log-likelihoods of an item's choices; nothing where one of them has none."""
    ours, theirs = one.loglikelihoods, other.loglikelihoods
    if not ours or not theirs:
        return (), ()
    if len(ours) != len(theirs):
        raise ValueError(f"{task}: item {one.item_id} has {len(ours)} choices by one path, {len(theirs)} by the other")
    return ours, theirs


def _array(values: Sequence[float]) -> FloatArray:
    return np.asarray(values, np.float64)


def _rms(values: FloatArray) -> float | None:
    return float(np.sqrt((values**2).mean())) if values.size else None
