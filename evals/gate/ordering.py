"""The order in which a gate asks its items: uniform, or guided to where answers can flip.

Why: two models differ where the baseline was unsure. On PIQA the tenth of the items of smallest margin (best minus
second log-likelihood of the baseline) had 30% flips under INT8 and 46% under AWQ, the upper half less than 1%. A gate
that draws such items first, weighs its bets (`evals/gate/gate.py`) and bets on what the margins do not foretell
(`evals/gate/flip_model.py`) needs fewer items for the same guarantee.

The weights may use the baseline's answers, prompts and costs, never the candidate's answers.

    guide = guide_weights(baseline_margins, token_costs=prompt_tokens)
    order = guided_order(guide.weights, rng)
    gate = Gate(len(order), 0.02, order_weights=guide.weights[order], ranks=guide.ranks[order], baseline=scores[order])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.gate.betting import FloatArray


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
    ranks: FloatArray
    """Share of items with a smaller margin, in (0, 1); nan for an item without a margin."""


FLOOR = 0.8
"""The smallest weight as a share of the mean (1 is the uniform order): the rarest item bounds every bet. Lower floors
win more where flips are many and lose where a candidate hardly flips beside a wide margin (docs/statistics.md)."""
FLIP_DECAY = 0.12
"""Flips fall off as exp(-u / 0.12), u the share of items with a smaller margin: measured on PIQA, INT8 and AWQ."""
FLIP_BACKGROUND = 0.1
"""Share of the predicted flips that is spread evenly: how far the guide is distrusted."""


SPREAD_SHARE, LEAST_WEIGHT = 0.8, 0.5
"""Where the score is the probability p of the right choice: weights max(p, 0.8 * 2 sqrt(p (1 - p)), 0.5)."""


def probability_weights(probabilities: Sequence[float]) -> FloatArray:
    """Weights (num_items,) of mean 1 for a gate on the probability of the right choice, from the baseline's p.

    max(p, 0.8 * 2 sqrt(p (1 - p)), 0.5) before scaling. A candidate can lose at most p: weights in proportion to it
    make all items' largest losses alike, which lets a gate bet most (l_t in evals/gate/betting.py) where a candidate
    hardly moves. One that moves does so around p = 1/2: the second term draws there, and keeps the variance low. The
    floor bounds the gains (u_t), and so the bets on a rejection.

    Raises ValueError where there is no item or one is not in [0, 1].
    """
    known = np.asarray(probabilities, np.float64)
    if not known.size or not np.all((known >= 0) & (known <= 1)):
        raise ValueError("a guide needs at least one item, and probabilities in [0, 1]")
    spread = SPREAD_SHARE * 2 * np.sqrt(known * (1 - known))
    weights = np.maximum(np.maximum(known, spread), LEAST_WEIGHT)
    return np.asarray(weights / weights.mean(), np.float64)


def margin(loglikelihoods: Sequence[float], target: object = None) -> float | None:
    """How far a model is from changing its score on a question: |right choice's log-likelihood - best of the others|.

    Where the right choice's index is not known, best minus second log-likelihood; None without two choices.
    """
    if len(loglikelihoods) < 2:
        return None
    if isinstance(target, int) and 0 <= target < len(loglikelihoods):
        others = [one for choice, one in enumerate(loglikelihoods) if choice != target]
        return abs(loglikelihoods[target] - max(others))
    best, second = sorted(loglikelihoods, reverse=True)[:2]
    return best - second


def guide_weights(margins: Sequence[float | None], token_costs: Sequence[float] | None = None) -> Guide:
    """Weights that draw first where answers can flip, from how sure the baseline was of each answer.

    `margins` (num_items,): see `margin`, or the answer's mean token log-probability; only their ranks count, and None
    predicts an average item. `token_costs` (num_items,) > 0: the items' prompt and answer tokens. Weights grow like
    sqrt(predicted flips / cost), cut below at `FLOOR` of the mean.

    Raises ValueError where there is no item, a cost is not positive or the lengths differ.
    """
    if not margins:
        raise ValueError("a guide needs at least one item")
    ranks = margin_ranks(margins)
    costs = np.ones(ranks.size) if token_costs is None else np.asarray(token_costs, np.float64)
    if costs.shape != ranks.shape or not np.all(np.isfinite(costs) & (costs > 0)):
        raise ValueError(f"token_costs must be {ranks.size} positive numbers")
    return Guide(_floored(np.sqrt(_predicted_flips(ranks) / costs), FLOOR), ranks)


def margin_ranks(margins: Sequence[float | None]) -> FloatArray:
    """The share of items with a smaller margin, in (0, 1); ties share theirs; nan for items without a margin."""
    values = np.array([math.nan if m is None else m for m in margins], np.float64)
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return values
    below, upto = (np.searchsorted(known, values, side=side) for side in ("left", "right"))
    return np.where(np.isnan(values), math.nan, (below + upto) / (2 * known.size))


def _predicted_flips(ranks: FloatArray) -> FloatArray:
    """Predicted flips relative to the mean; 1 for items without a margin."""
    known = ~np.isnan(ranks)
    flips = np.ones(ranks.size)
    if known.any():
        shape = np.exp(-ranks[known] / FLIP_DECAY)
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
