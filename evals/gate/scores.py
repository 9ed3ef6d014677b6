"""What a gate compares: right or wrong, or the probability of the right choice. Pure.

The probability is the softmax of the choices' log-likelihoods, as they were recorded, at the right choice. It moves
before an answer flips: a candidate that is as good as its baseline shows it with fewer items. It is another estimand
than accuracy. On recorded answers of 16 pairs of a variant and a task its difference to the baseline correlated 0.98
with that of accuracy, and was 0.80 times as large: so a margin on it is `EQUAL_STRICTNESS` times the declared one, and
a looser margin on accuracy stays beside it as a guard (`evals/gate/sequential.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from core.errors import ConfigError, closest
from evals.types import TaskResult

SCORES = ("probability", "accuracy")
EQUAL_STRICTNESS = 0.80
"""A margin on the probability, as a share of the margin on accuracy that is as strict on recorded answers."""


class ItemScore(NamedTuple):
    """One model's score on one item, in [0, 1]; None where there is none."""

    accuracy: float | None
    """lm-eval's score: 1 for a right answer, 0 for a wrong one, or a metric between."""
    probability: float | None
    """Of the right choice."""

    def of(self, kind: str) -> float | None:
        """The score of a kind of `SCORES`."""
        return self.probability if kind == "probability" else self.accuracy


def require_score(name: str) -> None:
    """Check a value of `gate.score`.

    Raises:
        ConfigError: it is no known score.

    """
    if name not in SCORES:
        raise ConfigError(f"gate.score={name}: not one of {', '.join(SCORES)}{closest(name, SCORES)}")


def margin_unit(score: str) -> float:
    """What a declared margin is multiplied by on a score of `SCORES`."""
    return EQUAL_STRICTNESS if score == "probability" else 1.0


def right_probability(loglikelihoods: Sequence[float], target: object) -> float | None:
    """The softmax of the choices' log-likelihoods (nats) at the right choice's index.

    None where there are fewer than two choices, one of the values is not finite, or `target` is no index of a choice. A
    text is a reference answer, also where it is made of digits: the third choice of a sum may well read "2".

    >>> right_probability([-1.0, -1.0], 1)
    0.5
    >>> right_probability([-1.0, -1.0], "1") is None
    True
    """
    if len(loglikelihoods) < 2 or isinstance(target, bool) or not isinstance(target, int):
        return None
    if not 0 <= target < len(loglikelihoods) or not all(map(math.isfinite, loglikelihoods)):
        return None
    top = max(loglikelihoods)
    shares = np.exp(np.array(loglikelihoods, np.float64) - top)
    return float(shares[target] / shares.sum())


def scores_of(tasks: Mapping[str, TaskResult]) -> dict[str, dict[int, ItemScore]]:
    """Scores by task and item id.

    An item without an accuracy has no probability either: its answer could not be scored.
    """
    return {
        name: {
            item.item_id: ItemScore(
                item.score, None if item.score is None else right_probability(item.loglikelihoods, item.target)
            )
            for item in result.items
        }
        for name, result in tasks.items()
    }


def score_kind(baseline: Iterable[ItemScore], wanted: str) -> str:
    """`probability` where it is wanted and every item of the baseline has one, else `accuracy`.

    It rests on the baseline alone, so it is fixed before the candidate answers.
    """
    probabilities = [one.probability for one in baseline]
    is_known = bool(probabilities) and all(one is not None for one in probabilities)
    return "probability" if wanted == "probability" and is_known else "accuracy"
