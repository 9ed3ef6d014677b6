"""What the answers say of questions like these: of the source that the benchmark's questions were drawn from. Pure.

A gate speaks of the N questions of a benchmark. Whoever asks about new questions of the same kind asks about the mean
difference theta of a source, of which the N are a sample (assumed independent and identically distributed, i.i.d.; no
gate decides by it). Production traffic is such a source only where the benchmark was drawn from it.

Uniform order, stopped at any time. A uniform permutation of an i.i.d. sample is i.i.d., so D_1, D_2, ... are
independent draws with mean theta. For a mean M the wealth prod [1 + x_t (D_t - M)] with bets fixed before D_t is seen
and 0 <= x_t <= c / (1 + M) is a non-negative supermartingale where theta <= M; the mirror image serves theta >= M. The
interval holds those M that neither has rejected at error / 2 at any time so far (Waudby-Smith and Ramdas, JRSS B 2024):
it covers theta with probability 1 - error at any stopping time, at every n.

All N items answered, in whatever order. The same, of the N differences in a random order drawn afresh, with bets for
that one number of items: nothing was stopped, so no mixture over stopping times is needed.

Guided order, stopped. The drawn items are no i.i.d. sample of the source: which come first depends on the baseline's
answers. The benchmark's mean mu_N has its confidence sequence, valid at error e_1. mu_N itself lies within z sqrt(v/N)
of theta but for probability e_2, v the variance of D. Both hold but for e_1 + e_2 = error (the union bound):

    [lo - z sqrt(v / N), hi + z sqrt(v / N)],   e_1 = 0.8 error, e_2 = 0.2 error, z = normal quantile at 1 - e_2 / 2.

This last part is approximate: mu_N is taken as normal (N items, not n), and v as its estimate, the importance-weighted
mean of D^2 with one item of difference 1 added, so that items without a flip do not say that flips cannot happen.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from evals.gate import betting, intervals
from evals.gate.betting import FloatArray
from evals.gate.gate import Gate
from evals.types import Estimate

SHARE_OF_SEQUENCE = 0.8
"""Of the error, where a guided sample stopped: the benchmark's confidence sequence has it, its N items the rest."""


def questions_like_these(gate: Gate, confidence: float = 0.95, *, seed: int = 0) -> Estimate:
    """The mean difference over questions of the same source, with the interval that this file derives.

    `seed` orders the differences where all items were answered.

    Raises ValueError before the first item.
    """
    error = 1 - confidence
    benchmark = gate.confidence_sequence(confidence)
    d, value = gate.differences, benchmark.value
    prior = min(gate.second_moment, intervals.PRIOR_OF_INTERVAL)
    if d.size == gate.num_items:
        shuffled = np.random.default_rng(seed).permutation(d)
        lo, hi = iid_bounds(shuffled, error, prior, (d.size, d.size))
        method = f"{confidence:.0%} for questions like these, all {d.size} items"
    elif gate.is_plain:
        lo, hi = iid_bounds(d, error, prior, (16, gate.num_items))
        method = f"{confidence:.0%} for questions like these, valid at any stopping time"
    else:
        found = gate.confidence_sequence(1 - SHARE_OF_SEQUENCE * error)
        square = gate.mean_square() + 1 / gate.num_items
        z = NormalDist().inv_cdf(1 - (1 - SHARE_OF_SEQUENCE) * error / 2)
        more = z * math.sqrt(square / gate.num_items)
        lo, hi = max(-1.0, found.lo - more), min(1.0, found.hi + more)
        method = f"{confidence:.0%} for questions like these, approximate: confidence sequence and sampling of N"
    return Estimate(value, min(lo, value), max(hi, value), int(d.size), method=method)


def iid_bounds(differences: FloatArray, error: float, prior: float, targets: tuple[int, int]) -> tuple[float, float]:
    """Bounds (lo, hi) that hold the mean of i.i.d. differences (n,) in [-1, 1] but for probability `error`.

    Valid at any stopping time. `targets` are the least and the largest number of items that the bets are made for;
    `prior` is the mean square with which they begin (`intervals.interval_bets`).
    """
    d = np.asarray(differences, np.float64)
    bets = intervals.interval_bets(d, targets, error, prior)

    def is_rejected(mean: float, sign: float) -> bool:
        m = sign * min(max(mean, -1 + betting.SURE), 1 - betting.SURE)
        logs = np.cumsum(np.log1p(np.minimum(bets, 0.9 / (1 + m)) * (sign * d - m)), axis=-1)
        return bool(intervals.log_mean(logs).max() >= math.log(2 / error))

    lower = intervals.last_rejected(-1.0, 1.0, lambda mean: is_rejected(mean, 1.0))
    upper = intervals.last_rejected(1.0, -1.0, lambda mean: is_rejected(mean, -1.0))
    return min(lower, upper), max(lower, upper)
