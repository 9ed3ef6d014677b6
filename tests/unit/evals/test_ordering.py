"""Orders and guides: the draws' probabilities, the shape of the weights, and validity under bad guides."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.gate.gate import Gate, Verdict
from evals.gate.ordering import FLOOR, guide_weights, guided_order, margin, margin_ranks, uniform_order


def test_guided_order_is_weighted_sampling_without_replacement():
    weights, rng, num_draws = np.array([4.0, 2.0, 1.0, 1.0]), np.random.default_rng(0), 20_000
    counts = dict.fromkeys(itertools.permutations(range(4)), 0)
    for _ in range(num_draws):
        counts[tuple(guided_order(weights, rng).tolist())] += 1
    for order, count in counts.items():
        w = weights[list(order)]
        expected = math.prod(w[t] / w[t:].sum() for t in range(4))
        assert count / num_draws == pytest.approx(expected, abs=5 * math.sqrt(expected / num_draws))


@given(st.integers(1, 50), st.integers(0, 100))
def test_orders_are_seeded_permutations(n, seed):
    for order in (uniform_order, lambda n, rng: guided_order(np.arange(1.0, n + 1), rng)):
        first = order(n, np.random.default_rng(seed))
        assert sorted(first.tolist()) == list(range(n))
        assert first.tolist() == order(n, np.random.default_rng(seed)).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(-100, 100)), min_size=1, max_size=60),
    st.booleans(),
)
def test_weights_are_positive_floored_and_fall_with_the_margin(margins, has_costs):
    costs = list(range(1, len(margins) + 1)) if has_costs else None
    guide = guide_weights(margins, costs)
    assert guide.weights.mean() == pytest.approx(1)
    assert guide.weights.min() >= FLOOR - 1e-6
    known = [(m, w) for m, w in zip(margins, guide.weights, strict=True) if m is not None]
    if not has_costs:
        known.sort()
        assert all(a[1] >= b[1] - 1e-12 for a, b in itertools.pairwise(known))


def test_no_margin_at_all_gives_the_uniform_order():
    guide = guide_weights([None] * 20)
    assert guide.weights == pytest.approx(np.ones(20))
    assert np.isnan(guide.ranks).all()
    assert guide_weights([1.0] * 20).weights == pytest.approx(np.ones(20))


def test_ranks_are_shares_of_smaller_margins_and_ties_share_theirs():
    assert margin_ranks([3.0, None, 1.0, 1.0, 7.0]) == pytest.approx([0.625, math.nan, 0.25, 0.25, 0.875], nan_ok=True)


def test_a_margin_is_what_stands_between_the_score_and_a_change():
    assert margin([-1.0, -3.0, -7.0], 0) == 2.0
    assert margin([-1.0, -3.0, -7.0], 2) == 6.0  # a wrong answer: how far the right one is behind, not the second best
    assert margin([-1.0, -3.0, -7.0], "a text") == margin([-1.0, -3.0, -7.0]) == 2.0
    assert margin([-1.0], 0) is None
    assert margin((), None) is None


def test_dear_items_are_drawn_later():
    guide = guide_weights([None] * 100, [100.0] * 50 + [1000.0] * 50)
    assert guide.weights[0] > guide.weights[99]


def test_bad_guides_are_refused():
    with pytest.raises(ValueError, match="at least one item"):
        guide_weights([])
    with pytest.raises(ValueError, match="2 positive numbers"):
        guide_weights([1.0, 2.0], [1.0, 0.0])


def run_to_decision(d, delta, rng, guide=None, baseline=None):
    order = guided_order(np.ones(len(d)) if guide is None else guide.weights, rng)
    known = {}
    if guide is not None:
        known = {"order_weights": guide.weights[order]}
    if baseline is not None:
        known |= {"ranks": guide.ranks[order], "baseline": baseline[order]}
    gate = Gate(len(d), delta, **known)
    for begin in range(0, len(d), 100):
        if gate.update(d[order[begin : begin + 100]]).decision is not Verdict.UNDECIDED:
            break
    return gate.state


@pytest.mark.parametrize("foretold", ["nothing", "no loss", "only losses", "noise"])
@pytest.mark.parametrize("kind", ["hides the losses", "loves the gains", "useless", "wild"])
def test_alpha_holds_under_a_useless_or_adversarial_guide(kind, foretold):
    """400 orders at the boundary: at alpha = 10%, more than 60 false passes have a chance below 1 in 1000."""
    rng = np.random.default_rng(5)
    d = np.concatenate([-np.ones(50), np.ones(20), np.zeros(530)])
    weights = {
        "hides the losses": np.where(d < 0, 0.4, 1.2),
        "loves the gains": np.where(d > 0, 5.0, 0.8),
        "useless": rng.uniform(0.5, 2, d.size),
        "wild": np.exp(rng.normal(0, 2, d.size)),
    }[kind]
    baseline = np.where(d == 0, rng.integers(0, 2, d.size), d < 0)
    ranks = {
        "no loss": np.where(d < 0, 1.0, 0.0),
        "only losses": np.where(d < 0, 0.0, 1.0),
        "noise": rng.random(d.size),
    }.get(foretold)
    false_passes = 0
    for _ in range(400):
        order = guided_order(weights, rng)
        known = {} if ranks is None else {"ranks": ranks[order], "baseline": baseline[order]}
        gate = Gate(d.size, 0.05, alpha=0.1, order_weights=weights[order], **known)
        gate.update(d[order])
        false_passes += gate.trajectory().log_e_pass.max() >= math.log(10)
    assert false_passes <= 60


def test_a_good_guide_needs_fewer_items():
    rng = np.random.default_rng(1)
    margins = np.sort(rng.exponential(size=2000))
    is_flip = rng.random(2000) < 0.4 * np.exp(-np.arange(2000) / 200)
    d = np.where(is_flip, rng.choice([-1.0, 1.0], 2000), 0.0)
    guide = guide_weights(margins.tolist())
    baseline = np.where(d == 0, rng.integers(0, 2, d.size), d < 0)
    kinds = {"uniform": (), "order": (guide,), "order and flip model": (guide, baseline)}
    used = {kind: [run_to_decision(d, 0.02, rng, *known).num_items for _ in range(60)] for kind, known in kinds.items()}
    median = {kind: np.median(items) for kind, items in used.items()}
    assert median["order"] < 0.9 * median["uniform"]
    assert median["order and flip model"] < 0.9 * median["order"]
