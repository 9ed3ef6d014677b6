"""The cost-quality frontier: which candidates no other candidate beats.

A candidate is dominated when another one costs no more and is no worse, and is better in at least one of the two. A
candidate whose cost or quality was not measured is never on the frontier: missing is never free, fast or certain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evals.types import Point

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


def non_dominated(points: Sequence[Point]) -> BoolArray:
    """Which points are on the frontier of their measured values: shape (len(points),), in the points' order.

    Points with equal cost and quality do not dominate each other. A point without quality or cost is never on it.
    """
    cost = np.array([np.nan if p.usd_per_1k_tokens is None else float(p.usd_per_1k_tokens.value) for p in points])
    quality = np.array([np.nan if p.quality is None else p.quality.value for p in points])
    return non_dominated_mask(cost, quality)


def non_dominated_mask(cost: FloatArray, quality: FloatArray) -> BoolArray:
    """The frontier of many point sets at once: (..., num_points) twice -> (..., num_points); nan is not measured.

    One sort by (cost, falling quality) and one running maximum per set: O(num_points log num_points).
    """
    cost, quality = np.broadcast_arrays(np.asarray(cost, np.float64), np.asarray(quality, np.float64))
    measured: BoolArray = ~(np.isnan(cost) | np.isnan(quality))
    cost, quality = np.where(measured, cost, np.inf), np.where(measured, quality, -np.inf)
    if not cost.size:
        return measured
    order = np.lexsort((-quality, cost), axis=-1)
    c, q = np.take_along_axis(cost, order, -1), np.take_along_axis(quality, order, -1)
    # Points of equal cost form a group; its first point is its best. A point survives when it is as good as its
    # group's first and better than everything that is strictly cheaper.
    is_first = np.concatenate([np.ones_like(c[..., :1], dtype=bool), c[..., 1:] != c[..., :-1]], axis=-1)
    first = np.maximum.accumulate(np.where(is_first, np.arange(c.shape[-1]), 0), axis=-1)
    best = np.maximum.accumulate(q, axis=-1)
    best_cheaper = np.where(first > 0, np.take_along_axis(best, np.maximum(first - 1, 0), -1), -np.inf)
    survives = (q == np.take_along_axis(q, first, -1)) & (q > best_cheaper)
    mask: BoolArray = np.zeros_like(measured)
    np.put_along_axis(mask, order, survives, -1)
    mask &= measured
    return mask
