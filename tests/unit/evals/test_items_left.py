"""How many items a verdict still takes: estimates beside what happened."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.gate.gate import Verdict
from evals.gate.items_left import ItemsLeft, items_to_decide
from evals.gate.scores import ItemScore
from evals.gate.sequential import GateRule, SequentialEvaluation, uniform_sampling_order


def evaluation(num_items, flips, seed, rule, num_seen, *, num_known=None):
    """One task of which `num_seen` items were answered, and the candidate's other answers."""
    rng = np.random.default_rng(seed)
    p = rng.random(num_items)
    q = np.clip(p + rng.normal(0, flips, num_items), 0, 1)
    order = uniform_sampling_order("a", range(num_items), str(seed))
    base = {i: ItemScore(float(p[i] > 0.5), float(p[i])) for i in order.item_ids[: num_known or num_items]}
    found = SequentialEvaluation({"a": order}, {"a": base}, rule)
    answers = [ItemScore(float(q[i] > 0.5), float(q[i])) for i in order.item_ids]
    found.feed("a", answers[:num_seen])
    return found, answers[num_seen:]


@given(
    st.integers(2, 400),
    st.floats(0, 0.5),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from(["probability", "accuracy"]),
)
@settings(max_examples=50, deadline=None)
def test_a_estimate_stays_within_what_is_left(num_items, flips, seed, is_guarded, score):
    rule = GateRule({"a": 0.02}, {"a": 0.05} if is_guarded else {}, score=score, max_items=max(1, num_items // 2))
    found, _ = evaluation(num_items, flips, seed, rule, num_items // 3)
    before = found.states["a"]
    estimate = items_to_decide(found, "a", np.random.default_rng(0), 21)
    assert found.states["a"] == before  # it only looks
    if not before.num_items:
        assert estimate is None
        return
    assert 0 <= estimate.num_items <= estimate.num_left == num_items - before.num_items
    assert 0 <= estimate.pass_share <= 1
    if before.decision in (Verdict.PASS, Verdict.FAIL):
        assert estimate.num_items == 0
    else:
        assert estimate.num_items > 0
    assert estimate == items_to_decide(found, "a", np.random.default_rng(0), 21)


@pytest.mark.parametrize("score", ["probability", "accuracy"])
def test_a_estimate_is_near_what_it_takes(score):
    """Median over 20 worlds of what it took over what was estimated after 100 of 3,000 items: between 1/2 and 2."""
    ratios = []
    for seed in range(20):
        rule = GateRule({"a": 0.02}, score=score, order="uniform")
        found, rest = evaluation(3000, 0.05, seed, rule, 100)
        estimate = items_to_decide(found, "a", np.random.default_rng(seed), 51)
        if estimate == ItemsLeft(0, 2900, 1.0):
            continue
        for begin in range(0, len(rest), 10):
            if found.states["a"].decision is not Verdict.UNDECIDED:
                break
            found.feed("a", rest[begin : begin + 10])
        ratios.append((found.states["a"].num_items - 100) / estimate.num_items)
    assert len(ratios) > 10
    assert 0.5 < np.median(ratios) < 2


def test_a_baseline_in_lockstep_is_estimate_too():
    found, _ = evaluation(5000, 0.03, 0, GateRule({"a": 0.01}, {"a": 0.03}), 64, num_known=64)
    estimate = items_to_decide(found, "a", np.random.default_rng(0), 21)
    assert 0 < estimate.num_items < 4936


def test_a_full_evaluation_takes_all_that_is_left():
    found, _ = evaluation(200, 0.05, 0, GateRule({"a": 0.02}, stop_early=False), 50)
    assert items_to_decide(found, "a", np.random.default_rng(0)).num_items == 150
