"""The order in which a gate asks its items: uniform, or guided to where answers can flip.

Why: two models differ where the baseline was unsure. On PIQA the tenth of the items of smallest margin (best minus
second log-likelihood of the baseline) held 30% flips under INT8 and 46% under AWQ, the upper half less than 1%. A gate
that draws such items first, and weighs its bets (`evals/gate.py`), needs fewer items for the same guarantee.

The weights may use the baseline's answers, prompts and costs, never the candidate's answers.

    guide = guide_weights(baseline_margins, token_costs=prompt_tokens)
    order = guided_order(guide.weights, rng)
    gate = Gate(len(order), 0.02, order_weights=guide.weights[order], predicted_flips=guide.predicted_flips[order])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.betting import FloatArray


def uniform_order(num_items: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A uniform random permutation of the item indices."""
    return rng.permutation(num_items).astype(np.int64)


def guided_order(weights: FloatArray, rng: np.random.Generator) -> NDArray[np.int64]:
    """Weighted sampling without replacement: each next item in proportion to its weight.

    By exponential keys E_i / w_i in rising order (Efraimidis and Spirakis, Information Processing Letters 97, 2006).
    """
    keys = rng.exponential(size=len(weights)) / np.asarray(weights, np.float64)
    return np.argsort(keys, kind="stable").astype(np.int64)


@dataclass(frozen=True)
class Guide:
    """How a guided order draws: arrays (num_items,) in the items' own order."""

    weights: FloatArray
    predicted_flips: FloatArray
    """Predicted flip probabilities up to a factor."""


FLOOR = 0.75
"""The smallest weight as a share of the mean (1 is the uniform order): the rarest item bounds every bet. Lower floors
win more where flips are many and lose where a candidate hardly flips beside a wide margin (docs/statistics.md)."""
FLIP_DECAY = 0.12
"""Flips fall off as exp(-u / 0.12), u the share of items with a smaller margin: measured on PIQA, INT8 and AWQ."""
FLIP_BACKGROUND = 0.1
"""Share of the predicted flips that is spread evenly: how far the guide is distrusted."""


def guide_weights(margins: Sequence[float | None], token_costs: Sequence[float] | None = None) -> Guide:
    """Weights that draw first where answers can flip, from how sure the baseline was of each answer.

    `margins` (num_items,): best minus second log-likelihood, or the answer's mean token log-probability; only their
    ranks count, and None (no margin) predicts an average item. `token_costs` (num_items,) > 0: the items' prompt and
    answer tokens. Weights grow like sqrt(predicted flips / cost), cut below at `FLOOR` of the mean.

    Raises ValueError where there is no item, a cost is not positive or the lengths differ.
    """
    if not margins:
        raise ValueError("a guide needs at least one item")
    flips = predict_flips(margins)
    costs = np.ones(flips.size) if token_costs is None else np.asarray(token_costs, np.float64)
    if costs.shape != flips.shape or not np.all(np.isfinite(costs) & (costs > 0)):
        raise ValueError(f"token_costs must be {flips.size} positive numbers")
    return Guide(_floored(np.sqrt(flips / costs), FLOOR), flips)


def predict_flips(margins: Sequence[float | None]) -> FloatArray:
    """Predicted flip probability per item, relative to the mean: 1 for items without a margin."""
    values = np.array([math.nan if m is None else m for m in margins], np.float64)
    known = ~np.isnan(values)
    flips = np.ones(values.size)
    if known.any():
        below = np.searchsorted(np.sort(values[known]), values[known], side="left")
        upto = np.searchsorted(np.sort(values[known]), values[known], side="right")
        rank = (below + upto) / (2 * known.sum())
        shape = np.exp(-rank / FLIP_DECAY)
        flips[known] = (1 - FLIP_BACKGROUND) * shape / shape.mean() + FLIP_BACKGROUND
    return flips


def _floored(raw: FloatArray, floor: float) -> FloatArray:
    """`raw` cut below so that the smallest weight is `floor` times the mean, which is 1."""
    lo, hi = 0.0, float(raw.max())
    for _ in range(60):
        cut = (lo + hi) / 2
        lo, hi = (cut, hi) if cut < floor * np.maximum(raw, cut).mean() else (lo, cut)
    weights = np.maximum(raw, hi)
    return np.asarray(weights / weights.mean(), np.float64)
