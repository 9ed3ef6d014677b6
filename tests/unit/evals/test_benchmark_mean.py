"""The mean over a whole benchmark, from a part of its items or from all."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.gate.benchmark import benchmark_mean

SCORES = st.lists(st.sampled_from([0.0, 1.0, 0.25, None]), min_size=1, max_size=60)


@given(SCORES, st.integers(0, 200))
def test_the_interval_holds_the_value_and_what_is_possible(scores: list[float | None], more: int) -> None:
    if all(score is None for score in scores):
        with pytest.raises(ValueError, match="none of the"):
            benchmark_mean(scores, len(scores) + more)
        return
    found = benchmark_mean(scores, len(scores) + more)
    assert 0 <= found.lo <= found.value <= found.hi <= 1
    assert found.num_samples + found.num_unscored == len(scores)
    if not more:
        assert found.lo == found.value == found.hi == pytest.approx(np.mean([s for s in scores if s is not None]))


def test_a_part_of_the_items_covers_the_whole_in_95_of_100_orders() -> None:
    rng = np.random.default_rng(0)
    whole = (rng.random(300) < 0.6).astype(float)
    covered = 0
    for _ in range(400):
        found = benchmark_mean(rng.permutation(whole)[:60].tolist(), 300)
        covered += found.lo <= whole.mean() <= found.hi
    assert covered >= 0.93 * 400
