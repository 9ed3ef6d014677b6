r"""How a candidate's answers are expected to differ from its baseline's, learned while they come in. Pure.

A right answer can only be lost and a wrong one only won, and the smaller the baseline's margin, the sooner. How soon is
the candidate's own: INT8 flips 4% of a benchmark's answers, rounding to 4 bits 20%. So K curves (`CURVES`) say what the
chance of a flip may be at each rank of the margin, and the answers seen so far weigh them by Bayes' rule, right and
wrong answers apart. With p_t(i) the weighted chance for item i before answer t, and b_i the baseline's score,

    f_t(i) = -b_i p_t(i)         for a right answer (b_i >= 1/2)
    f_t(i) = (1 - b_i) p_t(i)    for a wrong one

is fixed before D_t is seen and lies in [-b_i, 1 - b_i], as D_i does: |D_i - f_t(i)| <= 1. It is a control variate:

    E[(D_I - f_t(I)) / (N q_t(I))] + (1/N) sum over the items left of f_t  =  (1/N) sum over the items left of D,

whatever f_t is, so a gate may bet on D - f instead of D (so do Shekhar, Xu, Lipton, Liang and Ramdas, arXiv 2305.06884,
with side information). A wrong flip model costs items, never validity. A good one leaves p (1 - p) of
a second moment p.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

CURVES = (
    *((0.5, decay, 0.24) for decay in (0.05, 0.12, 0.3, 0.7)),
    *((height, math.inf, 0.04 / 3) for height in (0.01, 0.04, 0.15)),
)
"""(height, decay, prior weight): the chance of a flip is height exp(-u / decay), u the rank of the item's margin in
[0, 1]. At no margin at all the answer is a coin's; how far the doubt reaches is what differs between candidates. The
flat curves are for margins that say nothing: they take over when the answers show it."""
_PRIORS = np.array([prior for _, _, prior in CURVES])
LEAST_CHANCE = 0.003
"""No answer is beyond a flip."""
NUM_GROUPS = 2
"""Right answers and wrong ones."""


@dataclass(frozen=True)
class FlipModel:
    """What is known before the first answer; items in sampling order, on the last axis.

    Shapes: K curves, N items, any leading axes "..." between them.
    """

    chance: FloatArray
    """(K, ..., N) chance of a flip under each curve."""
    effect: FloatArray
    """(..., N) what a flip does to the difference: -b for a right answer, 1 - b for a wrong one."""
    ahead: FloatArray
    """(2, K, ..., N) sum of effect * chance over the items left, this one included: right answers, wrong answers."""
    spread: FloatArray
    """(2, K, ..., N) likewise E[y_t^2] (notation of evals/gate/betting.py)."""
    most_ahead: FloatArray
    """(..., N) the largest sum that the predictions of the items left can have."""

    def block(self, start: int, stop: int) -> FlipModel:
        """The items from `start` up to `stop`, 0-based."""
        return self._cut(lambda array: array[..., start:stop])

    def widen(self) -> FlipModel:
        """The same for one order that many replications share (one leading axis)."""
        return self._cut(lambda array: array[..., None, :])

    def rows(self, keep: NDArray[np.bool_]) -> FlipModel:
        """The replications (one leading axis) where `keep` is true."""
        return self._cut(lambda array: array[..., keep, :])

    def _cut(self, cut: Callable[[FloatArray], FloatArray]) -> FlipModel:
        return FlipModel(*map(cut, (self.chance, self.effect, self.ahead, self.spread, self.most_ahead)))

    @property
    def first_second_moment(self) -> FloatArray:
        """(..., 1) E[y_1^2], every curve weighing the same."""
        first: FloatArray = np.tensordot(_PRIORS, self.spread[..., :1].sum(axis=0), axes=1)
        return first


def make_flip_model(ranks: FloatArray, baseline: FloatArray, weights: FloatArray) -> FlipModel:
    """A flip model from what is known of the items; each (..., N) in sampling order.

    `ranks` of the margins in [0, 1], nan where an item has none; the `baseline`'s scores in [0, 1]; the `weights` > 0
    with which items are drawn.
    """
    chance = np.stack([_curve(ranks, height, decay) for height, decay, _ in CURVES])
    is_right = baseline >= 0.5
    effect = np.where(is_right, -baseline, 1 - baseline)
    groups = np.stack([is_right, ~is_right])[:, None]
    weight_left = sum_of_rest(weights)
    least_left = np.minimum.accumulate(weights[..., ::-1], axis=-1)[..., ::-1]
    variance = effect**2 * chance * (1 - chance) / weights
    spread = sum_of_rest(groups * variance) * (least_left**2 / weight_left)
    return FlipModel(
        chance,
        effect,
        sum_of_rest(groups * (effect * chance)),
        np.maximum(spread, 1e-12),
        sum_of_rest(np.maximum(effect, 0.0)),
    )


def _curve(ranks: FloatArray, height: float, decay: float) -> FloatArray:
    unknown = height * (-decay * math.expm1(-1 / decay) if decay < math.inf else 1.0)  # the curve's mean
    return np.clip(np.where(np.isnan(ranks), unknown, height * np.exp(-ranks / decay)), LEAST_CHANCE, 1 - LEAST_CHANCE)


def no_evidence(leading: tuple[int, ...] = ()) -> FloatArray:
    """Log-likelihoods (2, K, ...) of the curves, priors included, before the first answer: right and wrong answers."""
    priors = np.log(_PRIORS).reshape(1, -1, *(1 for _ in leading))
    return np.array(np.broadcast_to(priors, (NUM_GROUPS, len(CURVES), *leading)))


@dataclass(frozen=True)
class Prediction:
    """What is predicted before each answer of a block: arrays (..., T)."""

    difference: FloatArray | float
    """f_t of the item that is drawn."""
    ahead: FloatArray | float
    """Sum of f_t over the items left, that item included."""
    second_moment: FloatArray
    """E[y_t^2]."""


def predict(part: FlipModel, evidence: FloatArray, differences: FloatArray) -> tuple[Prediction, FloatArray]:
    """The predictions for a block of differences (..., T), and the log-likelihoods (2, K, ...) after it.

    `part` is the flip model of this block, `evidence` the log-likelihoods before it. The prediction for an answer uses
    those before it only.
    """
    flipped = np.minimum(np.abs(differences), 1.0)
    log_likelihood = flipped * np.log(part.chance) + (1 - flipped) * np.log1p(-part.chance)
    found, ahead, second_moment, after = 0.0, 0.0, 0.0, []
    for group, is_member in enumerate((part.effect < 0, part.effect >= 0)):
        own = log_likelihood * is_member
        before = evidence[group][..., None] + np.cumsum(own, axis=-1)
        end = before[..., -1] if own.shape[-1] else evidence[group]
        before = np.concatenate([evidence[group][..., None], before[..., :-1]], axis=-1)[..., : own.shape[-1]]
        share = np.exp(before - before.max(axis=0))
        share /= share.sum(axis=0)
        found = found + is_member * (share * part.chance).sum(axis=0)
        ahead = ahead + (share * part.ahead[group]).sum(axis=0)
        second_moment = second_moment + (share * part.spread[group]).sum(axis=0)
        after.append(end)
    return Prediction(found * part.effect, ahead, np.asarray(second_moment)), np.stack(after)


def sum_of_rest(values: FloatArray) -> FloatArray:
    """Sums over the last axis from each place to the end."""
    total: FloatArray = np.cumsum(values[..., ::-1], axis=-1)[..., ::-1]
    return total
