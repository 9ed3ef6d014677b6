"""Intervals that hold whenever one stops, and the margins that answers show. Pure; notation of `betting.py`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from evals.gate import betting
from evals.gate.betting import Bets, FloatArray, Schedule
from evals.gate.flip_model import no_evidence

PRIOR_OF_INTERVAL = 0.0625
"""Mean of y^2 with which an interval's bets begin, at most."""


def sure_bounds(differences: FloatArray, schedule: Schedule) -> tuple[float, float]:
    """The mean of all N differences lies between these for certain, whatever the items left do."""
    n, num_items, total = len(differences), schedule.num_items, float(np.sum(differences))
    if n:
        lost, won = float(schedule.lost_after[n - 1]), float(schedule.won_after[n - 1])
    else:
        lost = won = float(num_items)
    return (total - lost) / num_items, (total + won) / num_items


def confidence_bounds(
    differences: FloatArray, schedule: Schedule, error: float, prior: float = PRIOR_OF_INTERVAL
) -> tuple[float, float]:
    """Bounds that contain the mean of all N differences with probability 1 - error, whenever one stops.

    `differences` (n,) are the answers so far, n <= N. The bounds are those means M that neither the wealth against
    "mean <= M" nor that against "mean >= M" has ever rejected at error / 2 (Waudby-Smith and Ramdas 2020, 2024). The
    bets sqrt(2 ln(2/error) / (k v_{t-1})) / R_t do not depend on M but for the cut at max_loss, so each factor falls
    as M grows (also where it is cut: 1 + c (y - m) / (m + l) falls for every y >= -l), and bisection finds the end.
    They are mixed over the stopping times k = 16, 32, ... N; v starts from `prior` as the mean of y^2 in eight items.
    """
    d, n, num_items = np.asarray(differences, np.float64), len(differences), schedule.num_items
    lo, hi = sure_bounds(d, schedule)
    if n in (0, num_items):
        return lo, hi
    part = schedule.block(0, n)
    predicted, _ = betting.prediction(part, no_evidence(), d)
    y = (d - predicted.difference) * part.shrink
    bets = interval_bets(y, (16, num_items), error, prior) / part.reach
    before = (np.cumsum(d) - d + predicted.ahead) / num_items

    def is_rejected(mean: float, sign: float) -> bool:
        m = np.clip((mean - before) / part.reach, betting.SURE - part.most_lost, part.most_won - betting.SURE)
        least = part.most_lost if sign > 0 else part.most_won
        logs = np.cumsum(betting.log_factor(sign * y, sign * m, bets, least, 0.9), axis=-1)
        return bool(log_mean(logs).max() >= np.log(2 / error))

    lower = last_rejected(lo, hi, lambda mean: is_rejected(mean, 1.0))
    upper = last_rejected(hi, lo, lambda mean: is_rejected(mean, -1.0))
    return min(lower, upper), max(lower, upper)  # crossed where every mean was rejected: at most a share `error`


def interval_bets(y: FloatArray, targets: tuple[int, int], error: float, prior: float) -> FloatArray:
    """Bets (K, n) for an interval after y (n,), uncut: a row per stopping time k = least, 2 least, ... largest target.

    Bet t uses what came before y_t: sqrt(2 ln(2/error) / (k v_{t-1})), v the mean of y^2 (Waudby-Smith and Ramdas).
    """
    least, largest = targets
    second = (8 * prior + np.cumsum(y * y) - y * y) / (8 + np.arange(len(y)))
    times = np.unique(np.minimum(least * 2.0 ** np.arange(24), largest))[:, None]
    return np.asarray(np.sqrt(2 * np.log(2 / error) / (times * second)), np.float64)


def log_mean(logs: FloatArray) -> FloatArray:
    """Log of the mean over the first axis of what has these logarithms."""
    top = logs.max(axis=0)
    return np.asarray(top + np.log(np.exp(logs - top).mean(axis=0)), np.float64)


def last_rejected(begin: float, end: float, is_rejected: Callable[[float], bool]) -> float:
    """The last rejected mean on the way from `begin` to `end`; `begin` where none is (it bounds the mean for sure)."""
    if not is_rejected(begin):
        return begin
    for _ in range(24):  # to 1e-7, on the side that is rejected
        middle = (begin + end) / 2
        begin, end = (middle, end) if is_rejected(middle) else (begin, middle)
    return begin


def shown_margins(
    differences: FloatArray, schedule: Schedule, margins: FloatArray, bets: Bets, log_level: float
) -> NDArray[np.bool_]:
    """Which of the margins (K,) the answers so far (n,) show: "the mean of all D is above -margin", as a gate would.

    A margin is shown where its wealth has ever reached the level or its pass is certain now, unless its fail is.
    """
    d, n, num_items = np.asarray(differences, np.float64), len(differences), schedule.num_items
    if not n:
        return np.zeros(len(margins), np.bool_)
    part = schedule.block(0, n)
    predicted, _ = betting.prediction(part, no_evidence(), d)
    y, expected = (d - predicted.difference) * part.shrink, predicted.second_moment
    seen = betting.Seen(part, y, expected, np.cumsum(y * y) - y * y, np.cumsum(expected) - expected, schedule)
    before, delta = np.cumsum(d) - d, np.asarray(margins, np.float64)[:, None]
    m = (-num_items * delta - before - predicted.ahead) / (num_items * part.reach)
    unit = np.maximum(delta, 0.005) / part.reach
    logs = betting.log_mixture(seen.log_wealths(m, unit, bets, np.zeros((len(bets.edges), 1)), 1.0), bets)
    lo, hi = sure_bounds(d, schedule)
    is_sure, is_ruled_out = lo + delta[:, 0] > betting.TIE, hi + delta[:, 0] <= betting.TIE
    return np.asarray(((logs.max(axis=1) >= log_level) | is_sure) & ~is_ruled_out, np.bool_)
