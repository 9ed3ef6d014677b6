"""The error level of one candidate among all that are ever tried against one baseline. Pure.

Candidates come in batches: batch b = 1, 2, ... tests m_b of them together (`--multirun` knows its number, a single run
is a batch of one), each at

    alpha_b = alpha * 6 / (pi^2 b^2) / m_b.

The union bound over every candidate ever tried is sum over b of m_b alpha_b = alpha * (6 / pi^2) * sum of 1 / b^2
= alpha (Euler), whatever the dependence between candidates, however many follow, and also where whether another batch
follows depends on what came out before: alpha_b is fixed before batch b is asked. So the probability that any candidate
which is worse by the margin is ever promoted beside this baseline is at most alpha.

The price of not knowing the number: the first candidate is tested at 0.61 alpha, the k-th single one at 0.61 alpha /
k^2. e-values need 0.5, 1.9, 2.7 or 3.3 nats more than 1 / alpha at the first, second, third and fourth batch.
"""

from __future__ import annotations

import math


def attempt_level(alpha: float, batch: int, batch_size: int = 1) -> float:
    """The level of each candidate of batch number `batch` (from 1) with `batch_size` candidates.

    Raises ValueError where alpha is no error probability, or a number is below 1.

    >>> round(attempt_level(0.05, 1), 4), round(attempt_level(0.05, 2, 4), 5)
    (0.0304, 0.0019)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is an error probability between 0 and 1, not {alpha}")
    if batch < 1 or batch_size < 1:
        raise ValueError(f"batches are counted from 1 and hold at least 1 candidate, not {batch} with {batch_size}")
    return alpha * 6 / (math.pi**2 * batch**2) / batch_size
