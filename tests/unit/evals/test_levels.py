"""The error level for the life of a comparison: batches of candidates, however many follow."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.gate.levels import attempt_level


@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.floats(1e-6, 0.5))
def test_all_candidates_ever_tried_share_alpha(batches, alpha):
    spent = sum(size * attempt_level(alpha, number, size) for number, size in enumerate(batches, start=1))
    assert spent <= alpha * (1 + 1e-12)


def test_nothing_is_wasted_in_the_limit():
    assert sum(attempt_level(0.05, batch) for batch in range(1, 200_000)) == pytest.approx(0.05, rel=1e-5)
    assert math.log(0.05 / attempt_level(0.05, 1)) == pytest.approx(0.4977, abs=1e-4)


@pytest.mark.parametrize("values", [(0.0, 1, 1), (1.0, 1, 1), (0.05, 0, 1), (0.05, 1, 0)])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match=r"error probability|at least 1"):
        attempt_level(*values)
