"""Questions like these: intervals that cover the source's mean, wherever one stops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.gate.gate import Gate
from evals.gate.population import iid_bounds, questions_like_these


@pytest.mark.parametrize("kind", ["uniform", "all items", "guided"])
@pytest.mark.parametrize(("lost", "gained"), [(0.03, 0.03), (0.12, 0.08), (0.004, 0.0)])
def test_the_interval_covers_the_source_where_the_gate_stopped(kind, lost, gained):
    """90% intervals for the mean of the source, each run with a benchmark of its own: 10% misses and 4 errors."""
    rng, num_items, num_runs, misses = np.random.default_rng(11), 300, 80, 0
    for _ in range(num_runs):
        d = rng.choice([-1.0, 0.0, 1.0], p=[lost, 1 - lost - gained, gained], size=num_items)
        baseline = np.where(d == 0, rng.integers(0, 2, num_items), d < 0).astype(float)
        weights = np.where(baseline > 0, 1.3, 0.7) if kind == "guided" else None
        keys = rng.exponential(size=num_items) / (1.0 if weights is None else weights)
        order = np.argsort(keys)
        gate = Gate(
            num_items,
            0.05,
            order_weights=None if weights is None else weights[order],
            baseline=baseline[order],
            stop_early=kind != "all items",
        )
        for begin in range(0, num_items, 30):
            if gate.update(d[order[begin : begin + 30]]).decision != "undecided":
                break
        estimate = questions_like_these(gate, 0.9)
        misses += not estimate.lo <= gained - lost <= estimate.hi
    assert misses / num_runs <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / num_runs)


def test_all_items_of_the_benchmark_still_leave_the_source_open():
    gate = Gate(400, 0.02)
    gate.update([0.0] * 400)
    benchmark, source = gate.confidence_sequence(), questions_like_these(gate)
    assert benchmark.lo == benchmark.hi == 0
    assert source.lo < -0.005
    assert source.hi > 0.005
    assert "questions like these" in source.method
    with pytest.raises(ValueError, match="no item has been fed"):
        questions_like_these(Gate(5, 0.1))


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=80), st.floats(0.01, 0.3))
@settings(max_examples=60, deadline=None)
def test_bounds_are_ordered_inside_the_range_and_narrow_with_the_error(d, error):
    lo, hi = iid_bounds(np.array(d), error, 0.0625, (16, 1000))
    wider = iid_bounds(np.array(d), error / 2, 0.0625, (16, 1000))
    assert -1 <= lo <= hi <= 1
    assert wider[1] - wider[0] >= hi - lo - 1e-3


def test_the_order_of_a_full_answer_does_not_matter():
    rng = np.random.default_rng(0)
    d = rng.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=500)
    found = []
    for order in (d, np.sort(d), np.sort(d)[::-1]):
        gate = Gate(500, 0.02, stop_early=False)
        gate.update(order)
        found.append(questions_like_these(gate, seed=3))
    assert max(one.hi - one.lo for one in found) < 1.3 * min(one.hi - one.lo for one in found)
