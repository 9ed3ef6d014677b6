"""Error bars of a quality measurement: pure functions of the items' scores.

What: the mean score of one model with its interval, the paired comparison of a candidate with its baseline (difference
and recovery), and the flips behind it.

Why paired: both models answer the same items, and most items are answered alike. The variance of the difference is
that of the flips alone, several times below that of two separate means. The flip rate is a figure of its own: equal
accuracies can hide many changed answers (Dutta et al., "Accuracy is Not All You Need", arXiv 2407.09141).

Scores lie in [0, 1]; `None` is an item that could not be scored. It is counted in `Estimate.num_unscored`, never
dropped in silence and never taken for zero. All randomness comes from the generator that the caller passes.

    compared = paired_bootstrap({"piqa": candidate}, {"piqa": baseline}, np.random.default_rng(0))
    compared.difference.lo >= -0.02      # the first, non-sequential decision rule
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from evals.types import Estimate, ItemOutcome

FloatArray = NDArray[np.float64]
Scores = Sequence[float | None]

# One pseudo-item per corner of (candidate, baseline), half a count each: Agresti and Min (2005).
CORNERS = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
MAX_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Flips:
    """Items on which two models differ, as indices into the aligned score lists (or item ids, where given)."""

    gained: tuple[int, ...]
    """The candidate scores higher than its baseline."""
    lost: tuple[int, ...]
    """The candidate scores lower than its baseline."""
    num_paired: int
    """Items that both models have a score for."""

    @property
    def rate(self) -> float | None:
        """Share of the paired items that flipped, either way; None where no item is paired."""
        return (len(self.gained) + len(self.lost)) / self.num_paired if self.num_paired else None


@dataclass(frozen=True)
class PairedComparison:
    """A candidate against its baseline over all tasks, each task with the same weight."""

    difference: Estimate
    """Mean over tasks of (candidate's mean score - baseline's mean score)."""
    recovery: Estimate | None
    """Mean over tasks of (candidate's mean score / baseline's mean score); None where a baseline is too near zero."""
    recovery_missing: str
    """Why `recovery` is None; empty where it is not."""
    differences: dict[str, Estimate]
    """The difference per task."""
    recoveries: dict[str, Estimate | None]
    """The recovery per task."""
    flips: dict[str, Flips]
    """The flips per task."""
    like_these: Estimate | None = None
    """The difference for questions like these, where `difference` is the benchmark's; None: not measured."""


def mean_estimate(scores: Scores, confidence: float = 0.95) -> Estimate:
    """The mean of scores in [0, 1] with the Wilson score interval (Wilson 1927).

    For 0/1 scores this is the interval of a proportion. For other scores in [0, 1] it is conservative, since the
    variance of such a score is at most p (1 - p); the label says so. The interval covers the mean of a population from
    which the items are a random sample.

    Raises ValueError where no item has a score, or a score lies outside [0, 1].
    """
    scored = _as_scores(scores, "scores")
    num_unscored = int(np.isnan(scored).sum())
    scored = scored[~np.isnan(scored)]
    if not scored.size:
        raise ValueError(f"none of the {num_unscored} items has a score: there is no mean to estimate")
    n, p, z = scored.size, float(scored.mean()), _z(confidence)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    is_binary = bool(np.isin(scored, (0.0, 1.0)).all())
    method = f"Wilson {confidence:.0%}" + ("" if is_binary else ", conservative: scores between 0 and 1")
    return _estimate(
        p, max(0.0, centre - half), min(1.0, centre + half), num_samples=n, num_unscored=num_unscored, method=method
    )


def align(
    candidate: Sequence[ItemOutcome], baseline: Sequence[ItemOutcome]
) -> tuple[list[int], list[float | None], list[float | None]]:
    """The items that both models were asked, by item id: ids (ascending), candidate's scores, baseline's scores.

    Raises ValueError where an item id occurs twice on one side.
    """
    of_candidate = {item.item_id: item.score for item in candidate}
    of_baseline = {item.item_id: item.score for item in baseline}
    for name, items, by_id in (("candidate", candidate, of_candidate), ("baseline", baseline, of_baseline)):
        if len(items) != len(by_id):
            raise ValueError(f"the {name}'s outcomes have an item id twice: {len(items)} outcomes, {len(by_id)} ids")
    ids = sorted(of_candidate.keys() & of_baseline.keys())
    return ids, [of_candidate[i] for i in ids], [of_baseline[i] for i in ids]


def flips(candidate: Scores, baseline: Scores, item_ids: Sequence[int] | None = None) -> Flips:
    """The items that the candidate gained and lost against its baseline; scores are aligned item by item.

    An item that one of them has no score for is in neither list and not in `num_paired`.
    """
    c, b = _as_pair(candidate, baseline, "flips")
    ids = np.arange(c.size) if item_ids is None else np.asarray(item_ids)
    if ids.size != c.size:
        raise ValueError(f"{ids.size} item ids for {c.size} scores")
    gained, lost = ids[c > b], ids[c < b]  # a comparison with nan is False
    num_paired = int((~np.isnan(c) & ~np.isnan(b)).sum())
    return Flips(tuple(gained.tolist()), tuple(lost.tolist()), num_paired)


def paired_bootstrap(
    scores_candidate: Mapping[str, Scores],
    scores_baseline: Mapping[str, Scores],
    rng: np.random.Generator,
    *,
    num_draws: int = 10_000,
    confidence: float = 0.95,
    pseudo_count: float = 0.5,
) -> PairedComparison:
    """Difference and recovery of a candidate with percentile intervals from a paired bootstrap over the items.

    Items are drawn with replacement within each task, the same items for both models; tasks are kept fixed and weigh
    the same. Drawing items is drawing counts of the distinct (candidate, baseline) score pairs, which is what is done
    here: it is the same distribution and does not depend on the number of items for 0/1 scores.

    A plain bootstrap of n items without a single flip would give an interval of width zero, which is false. Therefore
    the drawn distribution has `pseudo_count` items in each corner of (0 or 1, 0 or 1), as the adjusted interval for
    paired proportions does (Agresti and Min, Statistics in Medicine 24, 2005). `pseudo_count=0` is the plain bootstrap.

    `scores_candidate` and `scores_baseline` have, per task, the scores in the items' order (None: not scored);
    `pseudo_count` is the mass of each of the four pseudo-items.

    Raises ValueError where the tasks or the numbers of items differ, a task has no paired item, or a
    score is outside [0, 1].
    """
    if not scores_candidate or scores_candidate.keys() != scores_baseline.keys():
        raise ValueError(
            f"tasks of the candidate {sorted(scores_candidate)}, of the baseline {sorted(scores_baseline)}"
        )
    method = f"paired bootstrap {confidence:.0%}, {num_draws} draws" + (", Agresti-Min" if pseudo_count else "")
    tasks = [
        _draw_task(task, scores, scores_baseline[task], rng, num_draws=num_draws, pseudo_count=pseudo_count)
        for task, scores in scores_candidate.items()
    ]

    def summary(points: list[float], draws: list[FloatArray], over: list[_TaskDraws]) -> Estimate:
        lo, hi = _percentile_interval(np.mean(draws, axis=0), confidence)
        num_samples, num_unscored = sum(t.num_paired for t in over), sum(t.num_unscored for t in over)
        value = float(np.mean(points))
        return _estimate(value, lo, hi, num_samples=num_samples, num_unscored=num_unscored, method=method)

    def recovery(over: list[_TaskDraws]) -> Estimate | None:
        if any(t.no_ratio for t in over):
            return None
        return summary([t.candidate / t.baseline for t in over], [t.draws[:, 0] / t.draws[:, 1] for t in over], over)

    def difference(over: list[_TaskDraws]) -> Estimate:
        return summary([t.candidate - t.baseline for t in over], [t.draws[:, 0] - t.draws[:, 1] for t in over], over)

    return PairedComparison(
        difference=difference(tasks),
        recovery=recovery(tasks),
        recovery_missing="; ".join(t.no_ratio for t in tasks if t.no_ratio),
        differences={t.task: difference([t]) for t in tasks},
        recoveries={t.task: recovery([t]) for t in tasks},
        flips={t.task: flips(scores_candidate[t.task], scores_baseline[t.task]) for t in tasks},
    )


@dataclass(frozen=True)
class _TaskDraws:
    """One task's mean scores: of all paired items, and per bootstrap draw."""

    task: str
    candidate: float
    baseline: float
    draws: FloatArray  # (num_draws, 2): candidate, baseline
    num_paired: int
    num_unscored: int
    no_ratio: str


def _draw_task(
    task: str, candidate: Scores, baseline: Scores, rng: np.random.Generator, *, num_draws: int, pseudo_count: float
) -> _TaskDraws:
    c, b = _as_pair(candidate, baseline, task)
    is_paired = ~np.isnan(c) & ~np.isnan(b)
    if not is_paired.any():
        raise ValueError(f"{task}: no item has a score from both models")
    pairs = np.stack([c[is_paired], b[is_paired]], axis=1)
    draws = _resample_means(pairs, rng, num_draws, pseudo_count)
    point_c, point_b = (float(mean) for mean in pairs.mean(axis=0))
    num_zero = int((draws[:, 1] <= 0).sum()) if point_b > 0 else num_draws
    no_ratio = f"{task}: the baseline's mean score is 0 in {num_zero} of {num_draws} draws, so there is no ratio"
    num_paired = int(is_paired.sum())
    return _TaskDraws(task, point_c, point_b, draws, num_paired, c.size - num_paired, no_ratio if num_zero else "")


def _resample_means(pairs: FloatArray, rng: np.random.Generator, num_draws: int, pseudo_count: float) -> FloatArray:
    """Mean (candidate, baseline) scores of `num_draws` samples of n items: (n, 2) -> (num_draws, 2)."""
    n = len(pairs)
    values, counts = np.unique(pairs, axis=0, return_counts=True)
    mass = counts.astype(np.float64)
    if pseudo_count:
        values = np.concatenate([values, CORNERS])
        mass = np.concatenate([mass, np.full(len(CORNERS), pseudo_count)])
    chunk = max(1, MAX_CELLS_AT_ONCE // len(values))
    parts = [
        rng.multinomial(n, mass / mass.sum(), size=min(chunk, num_draws - start)) @ values / n
        for start in range(0, num_draws, chunk)
    ]
    return np.concatenate(parts)


def _percentile_interval(draws: FloatArray, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    lo, hi = np.quantile(draws, [tail, 1 - tail])
    return float(lo), float(hi)


def _estimate(value: float, lo: float, hi: float, *, num_samples: int, num_unscored: int, method: str) -> Estimate:
    """An Estimate whose interval contains its value even where rounding says otherwise."""
    return Estimate(value, min(lo, value), max(hi, value), num_samples, num_unscored, method)


def _as_scores(scores: Scores, name: str) -> FloatArray:
    array = np.array([math.nan if s is None else s for s in scores], dtype=np.float64)
    if np.any((array < 0) | (array > 1)):
        raise ValueError(
            f"{name}: scores must lie in [0, 1], these reach from {np.nanmin(array)} to {np.nanmax(array)}"
        )
    return array


def _as_pair(candidate: Scores, baseline: Scores, name: str) -> tuple[FloatArray, FloatArray]:
    if len(candidate) != len(baseline):
        raise ValueError(f"{name}: {len(candidate)} scores of the candidate, {len(baseline)} of its baseline")
    return _as_scores(candidate, name), _as_scores(baseline, name)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
