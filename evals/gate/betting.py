"""The mathematics under the gate: wealth of bets on differences that are drawn without replacement.

Everything here works on the last axis (items, in sampling order) and on any leading axes (replications), so
that one sequence in production and a thousand in a simulation run the same code. `evals/gate/gate.py` says what the
bets are for, proves why they are valid and turns wealth into decisions.

Notation, for item t = 1..N of the order (arrays are 0-based):

    D_t     candidate's score - baseline's score, in [-1, 1]                        given, block by block
    w_t     the weight with which the item was drawn; 1 in the uniform order        Schedule
    R_t     max over the items left of 1 / (N q_t(i)) = sum of w left / (N min w left)   Schedule.reach
    f_t     the predicted difference of the item drawn; 0 without a flip model         evals/gate/flip_model.py
    F_t     sum of what f_t predicts for the items left
    y_t     (D_t - f_t) (min w left) / w_t = (D_t - f_t) / (N q_t R_t), in [-1, 1]   Schedule.shrink * (D - f)
    S_t     D_1 + ... + D_t
    m_t     (M - (S_{t-1} + F_t) / N) / R_t, the mean of y_t where the mean of all D is exactly M

In the uniform order R_t = (N - t + 1) / N, y_t = D_t and m_t = (N M - S_{t-1}) / (N - t + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.gate.flip_model import FlipModel, Prediction, make_flip_model, no_evidence, predict, sum_of_rest

FloatArray = NDArray[np.float64]

TIE = 1e-9
"""Means closer than this to the boundary count as on it. It covers the rounding of sums of fractional scores."""
PRIOR_FLIP_RATE = 0.1
"""Expected before the first answer where nothing is predicted."""
SURE = 1e-9
"""Bets are made while |m_t| < 1 - SURE: beyond, rounding would decide."""


@dataclass(frozen=True)
class Bets:
    """A mixture of bets. Each assumes a true mean that lies `edges[j]` margins on the good side of the boundary.

    `weights` sum to 1. The flips' second moment is learned: what was expected counts as `prior_items` items seen before
    the first. No factor of a wealth falls below 1 - `max_loss`.
    """

    edges: tuple[float, ...]
    weights: tuple[float, ...]
    prior_items: float = 8.0
    max_loss: float = 0.95

    def __post_init__(self) -> None:
        assert len(self.edges) == len(self.weights), "one weight per edge"
        assert abs(sum(self.weights) - 1) < 1e-12, "the weights of a mixture sum to 1"
        assert min(self.edges) > 0, "edges are positive"
        assert min(self.weights) > 0, "weights are positive"
        assert 0 < self.max_loss < 1, "wealth must stay positive"


@dataclass(frozen=True)
class Schedule:
    """What is known of an order before any answer: per item, in sampling order, shape (..., N)."""

    reach: FloatArray
    """R_t > 0."""
    shrink: FloatArray
    """y_t / (D_t - f_t), in (0, 1]."""
    second_moment: FloatArray
    """E[y_t^2] where nothing is predicted, up to one factor that is learned from the answers."""
    flip_model: FlipModel | None = None

    @property
    def num_items(self) -> int:
        """N."""
        return int(self.reach.shape[-1])

    def block(self, start: int, stop: int) -> Schedule:
        """The items from `start` up to `stop`, 0-based."""
        flip_model = None if self.flip_model is None else self.flip_model.block(start, stop)
        return Schedule(
            self.reach[..., start:stop], self.shrink[..., start:stop], self.second_moment[..., start:stop], flip_model
        )

    def rows(self, keep: NDArray[np.bool_]) -> Schedule:
        """The replications (one leading axis) where `keep` is true."""
        flip_model = None if self.flip_model is None else self.flip_model.rows(keep)
        return Schedule(self.reach[keep], self.shrink[keep], self.second_moment[keep], flip_model)

    @property
    def first_second_moment(self) -> FloatArray:
        """(..., 1) E[y_1^2]."""
        return self.second_moment[..., :1] if self.flip_model is None else self.flip_model.first_second_moment


def make_schedule(weights: FloatArray, ranks: FloatArray | None = None, baseline: FloatArray | None = None) -> Schedule:
    """Weights (..., N) > 0 in sampling order; with the margins' ranks and the baseline's scores, a flip model too.

    `ranks` (..., N) in [0, 1], nan where an item has no margin; `baseline` (..., N) in [0, 1].
    """
    w = np.asarray(weights, np.float64)
    w = w / w.mean(axis=-1, keepdims=True)
    w_left = sum_of_rest(w)
    w_min = np.minimum.accumulate(w[..., ::-1], axis=-1)[..., ::-1]
    second_moment = PRIOR_FLIP_RATE * w_min**2 / w_left * sum_of_rest(1 / w)
    flip_model = None
    if ranks is not None and baseline is not None:
        flip_model = make_flip_model(np.asarray(ranks, np.float64), np.asarray(baseline, np.float64), w)
    return Schedule(w_left / (w.shape[-1] * w_min), w_min / w, np.maximum(second_moment, 1e-12), flip_model)


@dataclass(frozen=True)
class Carry:
    """Where the processes stand after `num_used` items; arrays have the leading axes (...); wealths (num_bets, ...)."""

    num_used: int
    total: FloatArray
    """S."""
    sum_squares: FloatArray
    """Sum of y^2."""
    sum_expected: FloatArray
    """Sum of the y^2 that were expected."""
    log_accept: FloatArray
    """Log wealth per bet against "mean D <= -delta"."""
    log_reject: FloatArray
    """Log wealth per bet against "mean D >= -delta"."""
    evidence: FloatArray
    """Log-likelihoods of the flip model's curves, (2, K, ...)."""

    def rows(self, keep: NDArray[np.bool_]) -> Carry:
        """The replications where `keep` is true."""
        sums = (self.total[keep], self.sum_squares[keep], self.sum_expected[keep])
        wealths = self.log_accept[:, keep], self.log_reject[:, keep]
        return Carry(self.num_used, *sums, *wealths, self.evidence[..., keep])


def start(accept: Bets, reject: Bets, leading: tuple[int, ...] = ()) -> Carry:
    """Before the first item: every wealth is 1."""
    zero = np.zeros(leading)
    wealths = np.zeros((len(accept.edges), *leading)), np.zeros((len(reject.edges), *leading))
    return Carry(0, zero, zero, zero, *wealths, no_evidence(leading))


@dataclass(frozen=True)
class Path:
    """The processes after each item of a block: arrays (..., T)."""

    total: FloatArray
    """S_t."""
    log_accept: FloatArray
    """Log of the mixture's wealth against "mean D <= -delta"."""
    log_reject: FloatArray
    """Log of the mixture's wealth against "mean D >= -delta"."""
    prediction: Prediction


def advance(
    carry: Carry, differences: FloatArray, schedule: Schedule, boundary_total: float, bets: tuple[Bets, Bets]
) -> tuple[Carry, Path]:
    """Feed a block of differences (..., T) to both processes.

    `schedule` is the whole order's; `boundary_total` = -N delta is the sum of all D on the boundary; `bets` are those
    for acceptance and rejection.
    """
    d = np.asarray(differences, np.float64)
    num_items, begin, end = schedule.num_items, carry.num_used, carry.num_used + d.shape[-1]
    part = schedule.block(begin, end)
    total = carry.total[..., None] + np.cumsum(d, axis=-1)
    predicted, evidence = prediction(part, carry.evidence, d)
    expected = predicted.second_moment
    y = (d - predicted.difference) * part.shrink
    m = (boundary_total - (total - d) - predicted.ahead) / (num_items * part.reach)
    is_open = np.abs(m) < 1 - SURE  # beyond, the answer is certain, and no bet is made
    m = np.where(is_open, m, 0.0)
    sum_squares = carry.sum_squares[..., None] + np.cumsum(y * y, axis=-1)
    sum_expected = carry.sum_expected[..., None] + np.cumsum(expected, axis=-1)
    unit = max(abs(boundary_total) / num_items, 0.005) / part.reach
    first = schedule.first_second_moment

    def wealth(sign: float, bet: Bets, log_start: FloatArray) -> FloatArray:
        prior = bet.prior_items * first
        second = expected * (prior + sum_squares - y * y) / (prior + sum_expected - expected)
        bets_made = [kelly_bet(sign * m, edge * unit, second) for edge in bet.edges]
        logs = [np.where(is_open, _log_factor(sign * y, sign * m, made, bet.max_loss), 0.0) for made in bets_made]
        return np.stack([begun[..., None] + np.cumsum(x, axis=-1) for begun, x in zip(log_start, logs, strict=True)])

    accept, reject = wealth(1.0, bets[0], carry.log_accept), wealth(-1.0, bets[1], carry.log_reject)
    path = Path(total, log_mixture(accept, bets[0]), log_mixture(reject, bets[1]), predicted)
    if not d.shape[-1]:
        return carry, path
    sums = (total[..., -1], sum_squares[..., -1], sum_expected[..., -1])
    return Carry(end, *sums, accept[..., -1], reject[..., -1], evidence), path


def prediction(part: Schedule, evidence: FloatArray, differences: FloatArray) -> tuple[Prediction, FloatArray]:
    """What is predicted before each answer of a block, and the evidence after it (`flip_model.predict`)."""
    if part.flip_model is None:
        return Prediction(0.0, 0.0, part.second_moment), evidence
    return predict(part.flip_model, evidence, differences)


def _log_factor(y: FloatArray, m: FloatArray, bet: FloatArray, max_loss: float) -> FloatArray:
    """log(1 + bet (y - m)) with the bet cut so that the factor is at least 1 - max_loss."""
    return np.log1p(np.minimum(bet, max_loss / (1 + m)) * (y - m))


def kelly_bet(m: FloatArray, edge: FloatArray, second: FloatArray) -> FloatArray:
    """The bet of largest log growth when y is -1, 0 or 1 with mean m + edge and E[y^2] = second (Kelly 1956).

    The growth's derivative is a quadratic in the bet: m (1 - m^2) x^2 - (3 m edge + E(y - m)^2) x + edge = 0. This is
    its smaller positive root, in the form that does not cancel.
    """
    mean = np.minimum(m + edge, 1.0)
    edge = mean - m
    spread = np.maximum(second, np.abs(mean)) - 2 * m * mean + m * m
    linear = 3 * m * edge + spread
    root = np.sqrt(np.maximum(linear * linear - 4 * m * (1 - m * m) * edge, 0.0))
    bet: FloatArray = 2 * edge / np.maximum(linear + root, 1e-300)
    return bet


def log_mixture(log_wealths: FloatArray, bets: Bets) -> FloatArray:
    """Log of the weighted mean of wealths: (num_bets, ...) -> (...)."""
    top = log_wealths.max(axis=0)
    mixed = sum(weight * np.exp(logs - top) for weight, logs in zip(bets.weights, log_wealths, strict=True))
    return np.asarray(top + np.log(mixed), np.float64)


UNDECIDED, E_ACCEPT, E_REJECT, SURE_ACCEPT, SURE_REJECT = range(5)


def verdicts(
    path: Path, num_used: int, num_items: int, boundary_total: float, log_levels: tuple[float, float]
) -> NDArray[np.int8]:
    """What is decided after each item of a block: (..., T) codes.

    `num_used` counts the items before the block; `log_levels` = log(1/alpha), log(1/beta). What is certain from the
    sum and the number of items left goes before what the wealths say. A tie with the boundary is a rejection.
    """
    left = num_items - num_used - 1 - np.arange(path.total.shape[-1])
    slack = path.total - boundary_total
    codes = np.where(path.log_accept >= log_levels[0], E_ACCEPT, UNDECIDED)
    codes = np.where(path.log_reject >= log_levels[1], E_REJECT, codes)
    codes = np.where(slack - left > TIE * num_items, SURE_ACCEPT, codes)
    codes = np.where(slack + left <= TIE * num_items, SURE_REJECT, codes)
    return codes.astype(np.int8)


def confidence_bounds(differences: FloatArray, schedule: Schedule, error: float) -> tuple[float, float]:
    """Bounds that contain the mean of all N differences with probability 1 - error, whenever one stops.

    `differences` (n,) are the answers so far, n <= N. The bounds are those means M that neither the wealth against
    "mean <= M" nor that against "mean >= M" has ever rejected at error / 2 (Waudby-Smith and Ramdas 2020, 2024). The
    bets sqrt(2 ln(2/error) / (k v_{t-1})) / R_t do not depend on M but for the cut at max_loss, so each factor falls
    as M grows, and bisection finds the end. They are mixed over the stopping times k = 16, 32, ... N.
    """
    d, n, num_items = np.asarray(differences, np.float64), len(differences), schedule.num_items
    total = float(d.sum())
    lo, hi = (total - (num_items - n)) / num_items, (total + (num_items - n)) / num_items
    if n in (0, num_items):
        return lo, hi
    part = schedule.block(0, n)
    predicted, _ = prediction(part, no_evidence(), d)
    y = (d - predicted.difference) * part.shrink
    second = (0.5 + np.cumsum(y * y) - y * y) / (8 + np.arange(n))
    targets = np.unique(np.minimum(16 * 2.0 ** np.arange(24), num_items))[:, None]
    bets = np.sqrt(2 * np.log(2 / error) / (targets * second)) / part.reach
    before = (np.cumsum(d) - d + predicted.ahead) / num_items

    def is_rejected(mean: float, sign: float) -> bool:
        m = sign * np.clip((mean - before) / part.reach, -1 + SURE, 1 - SURE)
        logs = np.cumsum(_log_factor(sign * y, m, bets, 0.9), axis=-1)
        top = logs.max(axis=0)
        mixed = top + np.log(np.exp(logs - top).mean(axis=0))
        return bool(mixed.max() >= np.log(2 / error))

    lower = _last_rejected(lo, hi, lambda mean: is_rejected(mean, 1.0))
    upper = _last_rejected(hi, lo, lambda mean: is_rejected(mean, -1.0))
    return min(lower, upper), max(lower, upper)  # crossed where every mean was rejected: at most a share `error`


def _last_rejected(begin: float, end: float, is_rejected: Callable[[float], bool]) -> float:
    """The last rejected mean on the way from `begin` to `end`; `begin` where none is (it bounds the mean for sure)."""
    if not is_rejected(begin):
        return begin
    for _ in range(40):
        middle = (begin + end) / 2
        begin, end = (middle, end) if is_rejected(middle) else (begin, middle)
    return begin
