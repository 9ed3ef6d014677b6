"""How much cheaper is a candidate, shown by rounds that measured it and its baseline in turn? Pure.

A round starts both servers anew and measures both under the same conditions, so that what drifts on the machine from
one round to another is in both of its figures, and cancels in their ratio. What is left (between starts, and within
them) is told by how the rounds' ratios differ: Student's t on their logarithms, with one degree of freedom less than
rounds. Repeats within a round are averaged first. Taken as independent they would pretend to know what a second start
would give: at 3% noise within and between starts three repeats of one start call equal prices cheaper in 9.5% of pairs,
at 1% and 5% in 36%, where 2.5% are meant.

>>> def a_round(baseline, candidate):
...     return PriceRound(baseline, candidate, "baseline", "2026-11-27T00:00:00+00:00")
>>> rounds = [a_round((100.0, 102.0), (110.0, 112.0)), a_round((90.0, 91.0), (100.0, 99.0)),
...           a_round((101.0, 99.0), (109.0, 110.0))]
>>> found = price_ratio(rounds)
>>> round(found.ratio, 3), round(found.lo, 3), round(found.hi, 3), found.num_rounds
(0.911, 0.906, 0.916, 3)
>>> price_ratio(rounds[:1]).method
'one round: no interval'
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evals.load.summary import t_quantile
from evals.types import PriceRatio, PriceRound

CONFIDENCE = 0.95
WIDEST = 300.0
"""Of half an interval, on the logarithm: two rounds that differ much would else give an end that is no number."""
LATER_LOOKS_ERROR = 0.01
"""One-sided error of all later looks together: 3.5% with the first one's 2.5%."""


def confidence_at(earlier_looks: int) -> float:
    """Two-sided confidence of the interval after so many earlier looks at the same rounds.

    Looking once has 2.5% of error on each side, all later looks together 1%: the second half of that, the third a
    quarter, and so on. So whoever asks for more rounds until a price is shown errs in at most 3.5%.

    >>> [round(confidence_at(looks), 4) for looks in range(4)]
    [0.95, 0.99, 0.995, 0.9975]
    """
    if not earlier_looks:
        return CONFIDENCE
    return 1 - 2 * LATER_LOOKS_ERROR * math.ldexp(1.0, -earlier_looks)


def price_ratio(
    rounds: Sequence[PriceRound], price_per_hour_ratio: float = 1.0, confidence: float = CONFIDENCE
) -> PriceRatio | None:
    """The candidate's price of a token over its baseline's, with a t interval over the rounds.

    Args:
        rounds: as they were measured; one without a throughput on either side has no ratio, and the whole has none.
        price_per_hour_ratio: the candidate's machine price over the baseline's, above 0.
        confidence: of the two-sided interval.

    Returns:
        None where there is no round, or a round has no ratio (`rounds_without_ratio`).

    """
    if not rounds or rounds_without_ratio(rounds):
        return None
    logs = [_log_ratio(one) + math.log(price_per_hour_ratio) for one in rounds]
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return PriceRatio(math.exp(mean), None, None, 1, "one round: no interval", confidence)
    half = min(t_half_width(logs, confidence), WIDEST)
    method = f"t interval {100 * confidence:g}% on the logarithm, {len(logs)} rounds of fresh starts"
    return PriceRatio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), len(logs), method, confidence)


def t_half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float:
    """Half the width of Student's t interval of the mean of at least two values."""
    count = len(values)
    mean = sum(values) / count
    variance = sum((value - mean) ** 2 for value in values) / (count - 1)
    return t_quantile(0.5 + confidence / 2, count - 1) * math.sqrt(variance / count)


def rounds_without_ratio(rounds: Sequence[PriceRound]) -> int:
    """Rounds in which one of the two completed nothing in some repeat."""
    return sum(
        not (one.baseline_tok_per_s and one.candidate_tok_per_s)
        or any(not rate for rate in (*one.baseline_tok_per_s, *one.candidate_tok_per_s))
        for one in rounds
    )


def log_spread(ratio: PriceRatio) -> float | None:
    """Standard error of the ratio's logarithm; None where there is no interval."""
    if ratio.lo is None or ratio.hi is None:
        return None
    return math.log(ratio.hi / ratio.lo) / 2 / t_quantile(0.5 + ratio.confidence / 2, ratio.num_rounds - 1)


def _log_ratio(one: PriceRound) -> float:
    """Log of the candidate's price over the baseline's on one machine: the inverse of their speeds' ratio."""
    return _mean_log(one.baseline_tok_per_s) - _mean_log(one.candidate_tok_per_s)


def _mean_log(rates: Sequence[float | None]) -> float:
    logs = [math.log(rate) for rate in rates if rate]
    return sum(logs) / len(logs)
