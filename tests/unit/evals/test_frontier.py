"""The frontier: against the definition, pair by pair."""

from decimal import Decimal

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.frontier import non_dominated, non_dominated_mask
from evals.types import Estimate, Money, Point

small = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nan])


def point(name, cost, quality):
    money = None if np.isnan(cost) else Money(Decimal(str(cost)), Decimal(str(cost)), Decimal(str(cost)))
    return Point(name, None if np.isnan(quality) else Estimate(quality, quality, quality, 1), money, False)


def direct(cost, quality):
    """The definition, in words of the docstring."""
    on_frontier = []
    for c, q in zip(cost, quality, strict=True):
        beaten = any(cj <= c and qj >= q and (cj < c or qj > q) for cj, qj in zip(cost, quality, strict=True))
        on_frontier.append(not (np.isnan(c) or np.isnan(q) or beaten))
    return on_frontier


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(small, small), max_size=12))
def test_agrees_with_the_definition_ties_and_gaps_included(pairs):
    points = [point(str(i), c, q) for i, (c, q) in enumerate(pairs)]
    assert non_dominated(points).tolist() == direct([c for c, _ in pairs], [q for _, q in pairs])


def test_many_sets_at_once_agree_with_one_at_a_time():
    rng = np.random.default_rng(0)
    cost, quality = rng.integers(0, 6, (50, 3, 20)) / 4, rng.integers(0, 6, (50, 3, 20)) / 4
    at_once = non_dominated_mask(cost, quality)
    for i in np.ndindex(50, 3):
        assert at_once[i].tolist() == direct(cost[i], quality[i])


def test_an_unmeasured_point_is_never_on_the_frontier():
    points = [point("no cost", np.nan, 1.0), point("no quality", 0.0, np.nan), point("measured", 2.0, 0.1)]
    assert non_dominated(points).tolist() == [False, False, True]
    assert non_dominated([]).tolist() == []
