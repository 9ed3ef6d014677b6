"""The mean score over all items of a benchmark, of which a random part or all were asked. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evals.gate.betting import make_schedule
from evals.gate.intervals import confidence_bounds
from evals.types import Estimate


def benchmark_mean(scores: Sequence[float | None], num_items: int, confidence: float = 0.95) -> Estimate:
    """The mean score over all `num_items` items, from the first ones of a uniform random order.

    Where all were asked it is known: the interval has no width, and items without a score are left out of the mean and
    counted. Else the interval is a confidence sequence for sampling without replacement, valid whenever one stops, and
    an item without a score counts as wrong.

    Raises ValueError where no item has a score.
    """
    known = [score for score in scores if score is not None]
    num_unscored = len(scores) - len(known)
    if not known:
        raise ValueError(f"none of the {num_unscored} items has a score: there is no mean to estimate")
    if len(scores) == num_items:
        mean = float(np.mean(known))
        return Estimate(mean, mean, mean, len(known), num_unscored, f"exact: all {num_items} items of the benchmark")
    filled = np.array([0.0 if score is None else score for score in scores])
    value = float(filled.mean())
    lo, hi = confidence_bounds(filled, make_schedule(np.ones(num_items)), 1 - confidence)
    lo, hi = (min(max(one, 0.0), 1.0) for one in (lo, hi))
    method = (
        f"confidence sequence {confidence:.0%}, valid at any stopping time; {len(scores)} of {num_items} items asked"
    )
    return Estimate(value, min(lo, value), max(hi, value), len(known), num_unscored, method)
