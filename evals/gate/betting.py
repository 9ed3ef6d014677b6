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
    y_t     (D_t - f_t) (min w left) / w_t = (D_t - f_t) / (N q_t R_t)               Schedule.shrink * (D - f)
    l_t     what y_t can lose at most, u_t what it can win: -l_t <= y_t <= u_t       Schedule.most_lost, most_won
    S_t     D_1 + ... + D_t
    m_t     (M - (S_{t-1} + F_t) / N) / R_t, the mean of y_t where the mean of all D is exactly M

In the uniform order R_t = (N - t + 1) / N, y_t = D_t and m_t = (N M - S_{t-1}) / (N - t + 1).

The range. With b_i the baseline's score of item i, D_i lies in [-b_i, 1 - b_i]: a wrong answer cannot be lost, nor a
right one won. So D_i - f_i >= -b_i where f_i <= 0 (b_i >= 1/2), and D_i - f_i >= -b_i - (1 - b_i) p_i elsewhere, p_i
the largest chance of a flip that the model can give the item; the mirror image bounds it above. l_t is the maximum of
that loss times (min w left) / w_i over the items left, u_t that of the gain. Both are known before item t is drawn. A
factor 1 + x (y_t - m_t) is then at least 1 - c for every bet x <= c / (l_t + m_t), where l_t = 1 would allow
c / (1 + m_t) only: weights that grow like the baseline's score make l_t small, and the bets against a loss large. Where
the baseline has not answered every item, l_t = u_t = 1: which items it has answered says which come next, and a bet may
not know that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from evals.gate.flip_model import FlipModel, Prediction, make_flip_model, no_evidence, predict, sum_of_rest

FloatArray = NDArray[np.float64]

TIE = 1e-9
"""Means closer than this to the boundary count as on it. It covers the rounding of sums of fractional scores."""
PRIOR_FLIP_RATE = 0.1
"""Mean of D^2 that is expected before the first answer where nothing is predicted."""
SURE = 1e-9
"""Bets are made while -l_t + SURE < m_t < u_t - SURE: beyond, rounding would decide."""


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
    most_lost: FloatArray
    """l_t: -y_t is at most this."""
    most_won: FloatArray
    """u_t: y_t is at most this."""
    lost_after: FloatArray
    """The most that the items after this one can lose together: the sum of their b_i; 1 where b_i is not known."""
    won_after: FloatArray
    """Likewise what they can win: the sum of their 1 - b_i."""
    flip_model: FlipModel | None = None

    @property
    def num_items(self) -> int:
        """N."""
        return int(self.reach.shape[-1])

    def block(self, start: int, stop: int) -> Schedule:
        """The items from `start` up to `stop`, 0-based."""
        flip_model = None if self.flip_model is None else self.flip_model.block(start, stop)
        return self._cut(lambda array: array[..., start:stop], flip_model)

    def widen(self) -> Schedule:
        """The same for one order that many replications share (one leading axis)."""
        return replace(self, flip_model=None if self.flip_model is None else self.flip_model.widen())

    def rows(self, keep: NDArray[np.bool_]) -> Schedule:
        """The replications (one leading axis) where `keep` is true; what all share is kept as it is."""
        flip_model = None if self.flip_model is None else self.flip_model.rows(keep)
        return self._cut(lambda array: array[keep] if array.ndim > 1 else array, flip_model)

    def _cut(self, cut: Callable[[FloatArray], FloatArray], flip_model: FlipModel | None) -> Schedule:
        reach, shrink, second_moment = map(cut, (self.reach, self.shrink, self.second_moment))
        lost, won, lost_after, won_after = map(cut, (self.most_lost, self.most_won, self.lost_after, self.won_after))
        return Schedule(reach, shrink, second_moment, lost, won, lost_after, won_after, flip_model)

    @property
    def first_second_moment(self) -> FloatArray:
        """(..., 1) E[y_1^2]."""
        return self.second_moment[..., :1] if self.flip_model is None else self.flip_model.first_second_moment


def make_schedule(
    weights: FloatArray,
    ranks: FloatArray | None = None,
    baseline: FloatArray | None = None,
    second_moment: float = PRIOR_FLIP_RATE,
) -> Schedule:
    """Weights (..., N) > 0 in sampling order; with the margins' ranks and the baseline's scores, a flip model too.

    `baseline` (..., N) in [0, 1], nan where it has not answered; `ranks` (..., N) in [0, 1], nan where an item has no
    margin, need every score of the baseline. `second_moment` is the mean of D^2 that is expected before the first
    answer, where there is no flip model.
    """
    w = np.asarray(weights, np.float64)
    w = w / w.mean(axis=-1, keepdims=True)
    w_left = sum_of_rest(w)
    w_min = np.minimum.accumulate(w[..., ::-1], axis=-1)[..., ::-1]
    second = np.maximum(second_moment * w_min**2 / w_left * sum_of_rest(1 / w), 1e-12)
    scores = np.full(w.shape[-1], np.nan) if baseline is None else np.asarray(baseline, np.float64)
    flip_model = None
    if ranks is not None:
        flip_model = make_flip_model(np.asarray(ranks, np.float64), scores, w)
    known = ~np.isnan(scores)
    lost, won = np.where(known, scores, 1.0), np.where(known, 1 - scores, 1.0)
    most_lost, most_won = (_largest_of_rest(x / w) * w_min for x in _extremes(lost, won, flip_model))
    if not known.all():
        most_lost = most_won = np.ones(w.shape[-1])
    lost_after, won_after = (sum_of_rest(one) - one for one in (lost, won))
    reach = w_left / (w.shape[-1] * w_min)
    return Schedule(reach, w_min / w, second, most_lost, most_won, lost_after, won_after, flip_model)


def _extremes(lost: FloatArray, won: FloatArray, flip_model: FlipModel | None) -> tuple[FloatArray, FloatArray]:
    """What D - f can lose and win at most, item by item."""
    if flip_model is None:
        return lost, won
    largest, is_right = flip_model.chance.max(axis=0), flip_model.effect < 0
    return np.where(is_right, lost, lost + won * largest), np.where(is_right, won + lost * largest, won)


def _largest_of_rest(values: FloatArray) -> FloatArray:
    """Maxima over the last axis from each place to the end."""
    largest: FloatArray = np.maximum.accumulate(values[..., ::-1], axis=-1)[..., ::-1]
    return largest


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

    def repeat(self, num_runs: int) -> Carry:
        """One sequence's state (no leading axis) as the start of `num_runs` replications."""
        sums = (np.full(num_runs, float(one)) for one in (self.total, self.sum_squares, self.sum_expected))
        rest = (
            np.repeat(one[..., None], num_runs, axis=-1) for one in (self.log_accept, self.log_reject, self.evidence)
        )
        return Carry(self.num_used, *sums, *rest)


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
    carry: Carry,
    differences: FloatArray,
    schedule: Schedule,
    boundary_totals: tuple[float, float],
    bets: tuple[Bets, Bets],
) -> tuple[Carry, Path]:
    """Feed a block of differences (..., T) to both processes.

    `schedule` is the whole order's; `boundary_totals` = -N delta are the sums of all D on the boundary and `bets` the
    bets, of acceptance and of rejection.
    """
    d = np.asarray(differences, np.float64)
    num_items, begin, end = schedule.num_items, carry.num_used, carry.num_used + d.shape[-1]
    part = schedule.block(begin, end)
    total = carry.total[..., None] + np.cumsum(d, axis=-1)
    predicted, evidence = prediction(part, carry.evidence, d)
    y = (d - predicted.difference) * part.shrink
    sum_squares = carry.sum_squares[..., None] + np.cumsum(y * y, axis=-1)
    sum_expected = carry.sum_expected[..., None] + np.cumsum(predicted.second_moment, axis=-1)
    seen = Seen(part, y, predicted.second_moment, sum_squares - y * y, sum_expected - predicted.second_moment, schedule)
    wealths = []
    for sign, bound, bet, begun in zip(
        (1, -1), boundary_totals, bets, (carry.log_accept, carry.log_reject), strict=True
    ):
        m = (bound - (total - d) - predicted.ahead) / (num_items * part.reach)
        unit = max(abs(bound) / num_items, 0.005) / part.reach
        wealths.append(seen.log_wealths(m, unit, bet, begun, sign))
    accept, reject = wealths
    path = Path(total, log_mixture(accept, bets[0]), log_mixture(reject, bets[1]), predicted)
    if not d.shape[-1]:
        return carry, path
    sums = (total[..., -1], sum_squares[..., -1], sum_expected[..., -1])
    return Carry(end, *sums, accept[..., -1], reject[..., -1], evidence), path


@dataclass(frozen=True)
class Seen:
    """What the bets of a block are made of, whatever the boundary: arrays (..., T)."""

    part: Schedule
    y: FloatArray
    expected: FloatArray
    """E[y^2] as it was expected."""
    squares_before: FloatArray
    """Sum of the y^2 before each item, and of those that were expected."""
    expected_before: FloatArray
    whole: Schedule

    def log_wealths(
        self, m: FloatArray, unit: FloatArray, bets: Bets, log_start: FloatArray, sign: float
    ) -> FloatArray:
        """Log wealth per bet after each item (num_bets, ..., T); sign 1 against "mean <= m", -1 against "mean >= m".

        `m` (..., T) is the boundary's mean of y, `unit` one margin in its units, `log_start` (num_bets, ...).
        """
        part = self.part
        is_open = (m > SURE - part.most_lost) & (m < part.most_won - SURE)  # else the answer is certain: no bet is made
        m = np.where(is_open, m, 0.0)
        lost, won = (np.where(is_open, one, 1.0) for one in (part.most_lost, part.most_won))
        least, most = (lost, won) if sign > 0 else (won, lost)
        prior = bets.prior_items * self.whole.first_second_moment
        second = self.expected * (prior + self.squares_before) / (prior + self.expected_before)
        logs = []
        for edge, begun in zip(bets.edges, log_start, strict=True):
            made = kelly_bet(sign * m, edge * unit, second, least, most)
            factor = np.where(is_open, log_factor(sign * self.y, sign * m, made, least, bets.max_loss), 0.0)
            logs.append(begun[..., None] + np.cumsum(factor, axis=-1))
        return np.stack(logs)


def prediction(part: Schedule, evidence: FloatArray, differences: FloatArray) -> tuple[Prediction, FloatArray]:
    """What is predicted before each answer of a block, and the evidence after it (`flip_model.predict`)."""
    if part.flip_model is None:
        return Prediction(0.0, 0.0, part.second_moment), evidence
    return predict(part.flip_model, evidence, differences)


def log_factor(y: FloatArray, m: FloatArray, bet: FloatArray, least: FloatArray, max_loss: float) -> FloatArray:
    """log(1 + bet (y - m)), y >= -least, with the bet cut so that the factor is at least 1 - max_loss."""
    return np.log1p(np.minimum(bet, max_loss / (least + m)) * (y - m))


def kelly_bet(
    m: FloatArray, edge: FloatArray, second: FloatArray, least: FloatArray | float = 1.0, most: FloatArray | float = 1.0
) -> FloatArray:
    """The bet of largest log growth when y is -least, 0 or +least with mean m + edge and E[y^2] = second (Kelly 1956).

    The growth's derivative is a quadratic in the bet: m (1 - m^2) x^2 - (3 m edge + E(y - m)^2) x + edge = 0 (in units
    of `least`). This is its smaller positive root, in the form that does not cancel. No mean above `most` is assumed.
    """
    unit = np.maximum(least, 1e-6)
    mean = np.minimum(m + edge, most) / unit
    m = m / unit
    edge = mean - m
    spread = np.maximum(second / unit**2, np.abs(mean)) - 2 * m * mean + m * m
    linear = 3 * m * edge + spread
    root = np.sqrt(np.maximum(linear * linear - 4 * m * (1 - m * m) * edge, 0.0))
    bet: FloatArray = 2 * edge / np.maximum(linear + root, 1e-300) / unit
    return bet


def log_mixture(log_wealths: FloatArray, bets: Bets) -> FloatArray:
    """Log of the weighted mean of wealths: (num_bets, ...) -> (...)."""
    top = log_wealths.max(axis=0)
    mixed = sum(weight * np.exp(logs - top) for weight, logs in zip(bets.weights, log_wealths, strict=True))
    return np.asarray(top + np.log(mixed), np.float64)


UNDECIDED, E_ACCEPT, E_REJECT, SURE_ACCEPT, SURE_REJECT = range(5)


def verdicts(
    path: Path, part: Schedule, num_items: int, boundary_total: float, log_levels: tuple[float, float]
) -> NDArray[np.int8]:
    """What is decided after each item of a block: (..., T) codes.

    `part` is the block's schedule; `log_levels` = log(1/alpha), log(1/beta). What is certain from the sum and what the
    items left can lose or win goes before what the wealths say. A tie with the boundary is a rejection.
    """
    slack = path.total - boundary_total
    codes = np.where(path.log_accept >= log_levels[0], E_ACCEPT, UNDECIDED)
    codes = np.where(path.log_reject >= log_levels[1], E_REJECT, codes)
    codes = np.where(slack - part.lost_after > TIE * num_items, SURE_ACCEPT, codes)
    codes = np.where(slack + part.won_after <= TIE * num_items, SURE_REJECT, codes)
    return codes.astype(np.int8)
