"""The gate: against a slow direct implementation, exhaustive enumeration, and the full data."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.gate.flip_model import CURVES
from evals.gate.gate import (
    ACCEPT_BETS,
    REJECT_BETS,
    Gate,
    GateState,
    Verdict,
    both,
    combine,
    differences,
)

score_differences = st.lists(st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1)), min_size=1, max_size=50)
deltas = st.sampled_from([0.0, 0.005, 0.02, 0.07, 0.1, 0.3])


def direct_wealth(d, weights, flip_model, baseline, delta, sign, bets):
    """One sequence, one item at a time, wealth as a plain product: the formulas of the docstring and nothing else.

    It ends where the answer becomes certain. `baseline` None: no score is known, a difference may be anything.
    """
    n = len(d)
    weights = [w / (sum(weights) / n) for w in weights]
    wealth, trajectory, s = [1.0] * len(bets.edges), [], 0.0
    seen = expected = first = 0.0
    for t in range(n):
        left, lightest = sum(weights[t:]), min(weights[t:])
        reach = left / (n * lightest)
        guess, moment = direct_flip_model(d[:t], *flip_model) if flip_model else ([0.0] * n, [0.1] * n)
        shape = lightest**2 / left * sum(p / w for p, w in zip(moment[t:], weights[t:], strict=True))
        first = first or shape
        z = (d[t] - guess[t]) / (n * weights[t] / left)
        m, y = sign * -(delta + (s + sum(guess[t:])) / n) / reach, sign * z / reach
        least, most = direct_range(weights, flip_model, baseline, t)[::sign]
        if not -least + 1e-6 < m < most - 1e-6:
            return trajectory
        prior = bets.prior_items * first
        second = shape * (prior + seen) / (prior + expected)
        for j, edge in enumerate(bets.edges):
            bet = direct_kelly(m, edge * max(delta, 0.005) / reach, second, least, most)
            wealth[j] *= 1 + min(bet, bets.max_loss / (least + m)) * (y - m)
        s, seen, expected = s + d[t], seen + y * y, expected + shape
        trajectory.append(sum(w * x for w, x in zip(bets.weights, wealth, strict=True)))
    return trajectory


def direct_range(weights, flip_model, baseline, t):
    """What y_t can lose and win at most."""
    if baseline is None:
        return 1.0, 1.0
    lightest, lost, won = min(weights[t:]), 0.0, 0.0
    for i in range(t, len(weights)):
        b = baseline[i]
        p = max(max(h * math.exp(-flip_model[0][i] / c), 0.003) for h, c, _ in CURVES) if flip_model else 0.0
        loss, gain = (b, 1 - b + b * p) if b >= 0.5 else (b + (1 - b) * p, 1 - b)
        lost, won = max(lost, loss * lightest / weights[i]), max(won, gain * lightest / weights[i])
    return lost, won


def direct_flip_model(seen, ranks, baseline):
    """Predicted difference and its second moment around it, of each item, from the differences seen."""
    guess, moment = [0.0] * len(ranks), [0.0] * len(ranks)
    for is_right in (True, False):
        ours = [i for i, b in enumerate(baseline) if (b >= 0.5) == is_right]
        chances = [{i: max(h * math.exp(-ranks[i] / c), 0.003) for i in ours} for h, c, _ in CURVES]
        likelihood = [
            prior
            * math.prod(
                chance[i] ** abs(x) * (1 - chance[i]) ** (1 - abs(x)) for i, x in enumerate(seen) if i in chance
            )
            for chance, (_, _, prior) in zip(chances, CURVES, strict=True)
        ]
        for share, chance in zip([one / sum(likelihood) for one in likelihood], chances, strict=True):
            for i in ours:
                effect = -baseline[i] if is_right else 1 - baseline[i]
                guess[i] += share * chance[i] * effect
                moment[i] += share * chance[i] * (1 - chance[i]) * effect**2
    return guess, moment


def direct_kelly(m, edge, second, least, most):
    """The best bet on y = -least, 0 or least, by bisection of the growth's derivative."""
    least = max(least, 1e-6)
    mean, m = min(m + edge, most) / least, m / least
    second = max(second / least**2, abs(mean))
    plus, minus = (second + mean) / 2, (second - mean) / 2
    edge, spread = mean - m, second - 2 * m * mean + m * m

    def slope(x):  # the derivative times (1 + x (1 - m)) (1 - x m) (1 - x (1 + m)), which are positive
        pays = [(plus, 1 - m), (1 - second, -m), (minus, -1 - m)]
        return sum(p * a * math.prod(1 + x * b for _, b in pays if b != a) for p, a in pays)

    if abs(m) >= 1 or second > 1:  # no distribution on three points has these moments: the quadratic is the rule
        linear = 3 * m * edge + spread
        root = math.sqrt(max(0.0, linear**2 - 4 * m * (1 - m * m) * edge))
        return 2 * edge / max(linear + root, 1e-300) / least
    lo, hi = 0.0, (1 - 1e-9) / (1 + m)
    for _ in range(50):
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if slope(middle) > 0 else (lo, middle)
    return lo / least


KINDS = ["uniform", "weights", "known", "known weights", "flip model", "flip model weights"]


@settings(max_examples=60, deadline=None)
@given(score_differences, deltas, st.sampled_from(KINDS), st.integers(0, 1000))
def test_agrees_with_the_slow_direct_implementation(d, delta, kind, seed):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.3, 3, len(d)) if "weights" in kind else np.ones(len(d))
    ranks, baseline = rng.random(len(d)), rng.uniform(np.maximum(0, -np.array(d)), 1 - np.maximum(0, d))
    flip_model = (ranks, baseline) if "flip model" in kind else None
    known = {"ranks": ranks} if flip_model else {}
    if kind not in ("uniform", "weights"):
        known["baseline"] = baseline
    gate = Gate(len(d), delta, order_weights=weights if "weights" in kind else None, **known)
    gate.update(d)
    trajectory = gate.trajectory()
    accept = direct_wealth(d, weights, flip_model, known.get("baseline"), delta, 1, ACCEPT_BETS)
    reject = direct_wealth(d, weights, flip_model, known.get("baseline"), delta, -1, REJECT_BETS)
    for t, (one, other) in enumerate(zip(accept, reject, strict=True)):
        assert trajectory.log_e_pass[t] == pytest.approx(math.log(one), abs=1e-6)
        assert trajectory.log_e_fail[t] == pytest.approx(math.log(other), abs=1e-6)


@pytest.mark.parametrize("weights_are", ["uniform", "guided", "hiding the losses"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([0.9, 0.2, 0.5, 0.7, 1.0, 0.0], [0.1, 0.3, 0.5, 0.75, 0.95, 0.4]),
        ([1.0, 1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
        ([0.02, 0.01, 0.97, 0.03, 0.04, 0.02], [0.0, 0.01, 0.9, 0.0, 0.05, 0.0]),
    ],
)
def test_mean_wealth_over_all_orders_is_one_where_the_baseline_bounds_the_bets(before, after, weights_are):
    """E[W_t] = 1 at every t over all N! orders, each weighing what its draw weighs: one-sided ranges are fair too."""
    b, d = np.array(before), np.array(after) - np.array(before)
    n = len(d)
    weights = {"uniform": np.ones(n), "guided": np.maximum(0.35, b), "hiding the losses": np.where(d < 0, 0.2, 1.0)}
    w = weights[weights_are]
    wealths, boundary = np.zeros((2, n)), float(d.sum())
    for order in map(list, itertools.permutations(range(n))):
        chance = math.prod(w[order[t]] / w[order[t:]].sum() for t in range(n))
        gate = Gate(n, max(0.0, -boundary / n), order_weights=w[order], baseline=b[order], second_moment=0.02)
        gate._boundary = gate._reject_boundary = boundary
        gate.update(d[order])
        trajectory = gate.trajectory()
        wealths += chance * np.exp(np.stack([trajectory.log_e_pass, trajectory.log_e_fail]))
    assert wealths == pytest.approx(np.ones((2, n)), abs=1e-6)


@pytest.mark.parametrize("population", [(1, -1, -1, 0, 0, 0, 0), (1, 1, -1, -1, -1, 0, 0), (0.5, -1, -0.5, 0, -0.4, 0)])
def test_mean_wealth_over_all_orders_is_one_on_the_boundary(population):
    """E[W_t] = 1 exactly, at each t, over all N! equally likely orders: what Ville's inequality needs."""
    n = len(population)
    delta = -sum(population) / n
    wealths = []
    for order in sorted(set(itertools.permutations(population))):
        gate = Gate(n, delta)
        gate._boundary = gate._reject_boundary = sum(population)
        gate.update(order)
        # A decided path may stop early; the process itself must be fair while no answer is certain.
        wealths.append(np.exp(gate.trajectory().log_e_pass[: n - 3]))
    assert np.mean(wealths, axis=0) == pytest.approx(np.ones(n - 3), abs=1e-9)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_mean_wealth_over_all_orders_is_one_on_the_boundary_beside_a_projection(is_weighted):
    """The same, each order weighing what its draw weighs, whatever the flip model expects."""
    d = np.array([1.0, -1.0, -1.0, 0.0, 0.0, 0.5, -0.5])
    n, baseline = len(d), np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.4, 0.6])
    weights = np.array([1.0, 3.0, 0.5, 1.0, 2.0, 0.7, 1.0]) if is_weighted else np.ones(n)
    ranks = np.array([0.9, 1.0, 0.0, 0.1, 0.3, 0.5, 0.2])
    wealths = np.zeros((2, n - 4))
    for order in map(list, itertools.permutations(range(n))):
        chance = math.prod(weights[order[t]] / weights[order[t:]].sum() for t in range(n))
        gate = Gate(n, -d.sum() / n, order_weights=weights[order], ranks=ranks[order], baseline=baseline[order])
        gate._boundary = gate._reject_boundary = d.sum()
        gate.update(d[order])
        trajectory = gate.trajectory()
        wealths += chance * np.exp(np.stack([trajectory.log_e_pass, trajectory.log_e_fail])[:, : n - 4])
    assert wealths == pytest.approx(np.ones((2, n - 4)), abs=1e-9)


def test_mean_wealth_stays_at_most_one_where_the_boundary_becomes_certain():
    population, paths = (1, 1, -1, -1, -1, -1, 0), []
    for order in sorted(set(itertools.permutations(population))):
        gate = Gate(7, 0.0)
        gate._boundary = gate._reject_boundary = -1.0
        gate.update(order)
        paths.append(np.exp(gate.trajectory().log_e_pass))
    assert (np.mean(paths, axis=0) <= 1 + 1e-9).all()


def test_mean_wealth_over_all_weighted_orders_is_one_on_the_boundary():
    population, weights = (1, -1, -1, 0, 0, 0), np.array([0.5, 2.0, 0.7, 0.6, 1.5, 0.9])
    mean_pass, mean_fail = np.zeros(3), np.zeros(3)
    for order in itertools.permutations(range(6)):
        w, probability = weights[list(order)], 1.0
        for t in range(6):
            probability *= w[t] / w[t:].sum()
        gate = Gate(6, 1 / 6, order_weights=w)
        gate._boundary = gate._reject_boundary = -1.0
        gate.update([population[i] for i in order])
        mean_pass += probability * np.exp(gate.trajectory().log_e_pass[:3])
        mean_fail += probability * np.exp(gate.trajectory().log_e_fail[:3])
    assert mean_pass == pytest.approx(np.ones(3), abs=1e-9)
    assert mean_fail == pytest.approx(np.ones(3), abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(score_differences, deltas, st.integers(1, 20), st.integers(0, 1000))
def test_blocks_do_not_matter_and_the_end_is_exact(d, delta, block, seed):
    whole, parts = Gate(len(d), delta), Gate(len(d), delta)
    whole.update(d)
    for i in range(0, len(d), block):
        parts.update(d[i : i + block])
    assert parts.trajectory().log_e_pass == pytest.approx(whole.trajectory().log_e_pass, abs=1e-8)
    assert parts.state.decision is whole.state.decision
    assert (parts.state.decided_at, parts.state.reason) == (whole.state.decided_at, whole.state.reason)
    shortfall = sum(Fraction(x) for x in d) + Fraction(str(delta)) * len(d)
    if abs(shortfall) > Fraction(1, 10**6):
        assert whole.state.decision is (Verdict.PASS if shortfall > 0 else Verdict.FAIL)
    elif shortfall <= 0:
        assert whole.state.decision is Verdict.FAIL
    assert whole.confidence_sequence().value == pytest.approx(float(np.mean(d)), abs=1e-12)


@pytest.mark.parametrize(("num_items", "delta"), [(100, 0.07), (50, 0.06), (300, 0.29), (1000, 0.057), (3, 0.0)])
def test_a_tie_with_minus_delta_is_not_a_pass(num_items, delta):
    num_lost = round(num_items * delta)
    d = [-1.0] * num_lost + [0.0] * (num_items - num_lost)
    for order in (d, d[::-1]):
        assert Gate(num_items, delta, alpha=1e-9, beta=1e-9).update(order).decision is Verdict.FAIL
    if num_lost:
        better = [-1.0] * (num_lost - 1) + [0.0] * (num_items - num_lost + 1)
        assert Gate(num_items, delta, alpha=1e-9, beta=1e-9).update(better).decision is Verdict.PASS


def test_a_tie_of_fractional_scores_is_not_a_pass():
    assert Gate(30, 0.1, alpha=1e-9, beta=1e-9).update([-0.1] * 30).decision is Verdict.FAIL


@settings(max_examples=100, deadline=None)
@given(score_differences, deltas)
def test_certainty_is_never_wrong_and_never_late(d, delta):
    gate, n = Gate(len(d), delta, alpha=1e-12, beta=1e-12), len(d)
    for t, x in enumerate(d, start=1):
        state = gate.update([x])
        worst, best = sum(d[:t]) - (n - t) + n * delta, sum(d[:t]) + (n - t) + n * delta
        if state.reason in ("certain", "exact"):
            assert worst > -1e-6 if state.decision is Verdict.PASS else best < 1e-6
        elif state.decision is Verdict.UNDECIDED:
            assert worst <= 1e-6
            assert best >= -1e-6


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40), deltas, st.integers(0, 40))
def test_what_the_baseline_bounds_is_certain_at_once_and_never_wrong(pairs, delta, num_unknown):
    """The pass is certain exactly where losing all that is left to lose would not change it; likewise the fail."""
    before, d = [one for one, _ in pairs], [other - one for one, other in pairs]
    n = len(d)
    known = [None if i >= n - num_unknown else b for i, b in enumerate(before)]
    gate = Gate(n, delta, alpha=1e-12, beta=1e-12, baseline=known)
    for t, x in enumerate(d, start=1):
        state = gate.update([x])
        left = known[t:]
        worst = sum(d[:t]) - sum(1.0 if b is None else b for b in left) + n * delta
        best = sum(d[:t]) + sum(1.0 if b is None else 1 - b for b in left) + n * delta
        if state.reason in ("certain", "exact"):
            assert worst > -1e-6 if state.decision is Verdict.PASS else best < 1e-6
        elif state.decision is Verdict.UNDECIDED:
            assert worst <= 1e-6
            assert best >= -1e-6


def test_wrong_answers_cannot_be_lost_so_a_pass_is_sure_before_the_end():
    """100 items, 40 right in the baseline: once those are asked without a loss nothing is left to lose."""
    baseline = [1.0] * 40 + [0.0] * 60
    gate = Gate(100, 0.02, alpha=1e-12, baseline=baseline)
    assert gate.update([0.0] * 38).decision is Verdict.UNDECIDED
    state = gate.update([0.0])
    assert (state.decision, state.reason, state.decided_at) == (Verdict.PASS, "certain", 39)
    blind = Gate(100, 0.02, alpha=1e-12)
    assert blind.update([0.0] * 98).decision is Verdict.UNDECIDED


def test_a_wider_margin_to_pass_than_to_be_rejected_leaves_all_answers_to_the_wider_one():
    """3 points are lost of a margin of 5 to pass and 1 to be rejected: early a rejection is shown, all items pass."""
    rng = np.random.default_rng(3)
    d = rng.permutation([-1.0] * 60 + [0.0] * 1940)
    gate = Gate(2000, 0.05, reject_delta=0.01, alpha=1e-9)
    state = gate.update(d[:1200])
    assert (state.decision, state.reason) == (Verdict.FAIL, "e-value")
    assert gate.update(d[1200:]).decision is Verdict.PASS
    narrow = Gate(2000, 0.05, alpha=1e-9)
    assert narrow.update(d[:1200]).decision is not Verdict.FAIL


def test_the_largest_e_value_is_kept_with_its_item():
    gate = Gate(500, 0.05, baseline=[1.0] * 500)
    assert (gate.state.max_log_e_pass, gate.state.max_at) == (0.0, 0)
    gate.update([0.0] * 30)
    state = gate.update([0.0] * 10 + [-1.0] * 20)
    trajectory = gate.trajectory().log_e_pass
    assert state.max_log_e_pass == trajectory.max() > trajectory[-1]
    assert state.max_at == trajectory.argmax() + 1 == 40
    assert state.num_left == 440


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 300), st.sampled_from([0.0, 0.02, 0.1]), st.booleans())
def test_the_smallest_margin_is_one_that_a_gate_would_pass(seed, num_seen, flips, is_known):
    rng = np.random.default_rng(seed)
    n = 300
    b = (rng.random(n) < 0.6).astype(float)
    d = np.where(rng.random(n) < flips, 1 - 2 * b, 0.0)
    known = {"baseline": b} if is_known else {}
    gate = Gate(n, 0.02, **known)
    gate.update(d[:num_seen])
    found = gate.smallest_margin(0.05)
    shown = [m for m in (0.0, 0.001, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.95) if passes(n, m, d[:num_seen], known)]
    if found is None:
        assert 0.95 not in shown
        return
    assert passes(n, found, d[:num_seen], known)
    assert all(m in shown for m in (0.05, 0.1, 0.2, 0.3, 0.5, 0.95) if m >= found)
    if 0.001 < found <= 0.1:
        assert not passes(n, round(found - 0.001, 3), d[:num_seen], known)


def passes(num_items, delta, d, known):
    gate = Gate(num_items, delta, **known)
    state = gate.update(d)
    certain = math.isinf(state.log_e_pass)
    return state.log_e_pass > 0 if certain else state.max_log_e_pass >= math.log(20)


def test_the_smallest_margin_of_a_full_answer_is_exact_and_scales():
    gate = Gate(200, 0.02)
    gate.update([-1.0] * 5 + [0.0] * 195)
    assert gate.smallest_margin(0.05) == 0.026  # 2.5 points are lost, and a tie is no pass
    assert gate.smallest_margin(0.05, unit=0.5) == 0.051
    assert Gate(200, 0.02).smallest_margin(0.05) is None
    hopeless = Gate(200, 0.02)
    hopeless.update([-1.0] * 200)
    assert hopeless.smallest_margin(0.05) is None


@pytest.mark.parametrize(("num_lost", "num_gained"), [(10, 4), (30, 22)])
def test_the_smallest_margin_is_seldom_below_the_true_loss_wherever_one_stops(num_lost, num_gained):
    """A confidence bound at 10% at a stopping time that waits for a small one: at most 10% misses and 4 errors."""
    rng, n, num_runs, misses = np.random.default_rng(7), 200, 60, 0
    d = np.concatenate([-np.ones(num_lost), np.ones(num_gained), np.zeros(n - num_lost - num_gained)])
    for _ in range(num_runs):
        gate, order = Gate(n, 0.02), rng.permutation(d)
        best = 1.0
        for begin in range(0, n - 50, 50):
            gate.update(order[begin : begin + 50])
            best = min(best, gate.smallest_margin(0.1) or 1.0)
        misses += best <= (num_lost - num_gained) / n
    assert misses / num_runs <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / num_runs)


@pytest.mark.parametrize(
    "d",
    [[1.0] * 400, [-1.0] * 400, [0.0] * 400, [1.0, -1.0] * 200, [-1.0] * 200 + [1.0] * 200, [1e-300, -1e-300] * 200],
)
@pytest.mark.parametrize("delta", [0.0, 1e-6, 0.05, 0.999])
def test_extremes_stay_finite(d, delta):
    weights = np.where(np.arange(400) % 7 == 0, 1e-6, 1.0)
    scores = np.where(np.array(d) == 0, np.arange(400) % 2, np.array(d) < 0)
    known = {"ranks": np.linspace(0, 1, 400), "baseline": scores}
    scored = {"baseline": scores, "order_weights": weights, "second_moment": 1e-6}
    for kwargs in ({}, {"order_weights": weights}, known, {"order_weights": weights[::-1], **known}, scored):
        gate = Gate(400, delta, alpha=1e-12, beta=1e-12, **kwargs)
        with np.errstate(all="raise", under="ignore"):
            for i in range(0, 400, 37):
                gate.update(d[i : i + 37])
                estimate = gate.confidence_sequence()
                assert -1 <= estimate.lo <= estimate.hi <= 1
        assert np.isfinite(gate.trajectory().log_e_pass).all()
        assert np.isfinite(gate.trajectory().log_e_fail).all()
        assert gate.state.decision is not Verdict.UNDECIDED


def test_fewer_items_than_a_block_and_a_single_item():
    assert Gate(3, 0.02).update([0.0, 0.0, 0.0]).decision is Verdict.PASS
    assert Gate(1, 0.02).update([0.0]).reason == "exact"
    assert Gate(1, 0.02).update([-1.0]).decision is Verdict.FAIL
    gate = Gate(2, 0.02)
    assert gate.update([]).decision is Verdict.UNDECIDED
    with pytest.raises(ValueError, match="for 2 items left"):
        gate.update([0.0, 0.0, 0.0])


def test_a_clear_case_stops_early_and_says_where():
    rng = np.random.default_rng(0)
    gate = Gate(10_000, 0.05)
    while gate.state.decision is Verdict.UNDECIDED:
        gate.update(rng.choice([-1.0, 0.0, 1.0], p=[0.02, 0.96, 0.02], size=64))
    state = gate.state
    assert (state.decision, state.reason) == (Verdict.PASS, "e-value")
    assert state.num_items < 400
    assert state.num_items - 64 < state.decided_at <= state.num_items
    assert gate.trajectory().log_e_pass[state.decided_at - 1] >= math.log(20)
    assert (gate.trajectory().log_e_pass[: state.decided_at - 1] < math.log(20)).all()


def test_more_answers_after_an_early_decision_are_kept_and_the_exact_answer_stands():
    d = [0.0] * 100 + [-1.0] * 100
    gate = Gate(200, 0.1, alpha=0.2)
    assert gate.update(d[:100]).decision is Verdict.PASS
    assert gate.update(d[100:110]).decision is Verdict.PASS
    assert gate.update(d[110:]).decision is Verdict.FAIL
    assert gate.state.log_e_pass == -math.inf


def test_full_evaluation_decides_at_the_last_item_only():
    gate = Gate(200, 0.05, stop_early=False)
    assert gate.update([0.0] * 199).decision is Verdict.UNDECIDED
    state = gate.update([0.0])
    assert (state.decision, state.reason, state.decided_at) == (Verdict.PASS, "exact", 200)


def test_a_budget_ends_futile_never_as_a_pass():
    gate = Gate(2000, 0.01, max_items=100)
    state = gate.update([0.0, -1.0, 1.0] * 30)
    while state.decision is Verdict.UNDECIDED:
        state = gate.update([0.0])
    assert (state.decision, state.reason) == (Verdict.FUTILE, "budget")
    assert state.num_items <= 100


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 1.0]), min_size=20, max_size=40), st.integers(5, 19))
def test_futility_is_never_declared_where_gains_would_still_pass(d, used):
    gate = Gate(len(d), 0.1, max_items=20)
    for x in d[:used]:
        gate.update([x])
    if gate.state.reason == "budget":
        rest = Gate(len(d), 0.1)
        rest.update(d[: gate.state.num_items])
        rest.update([1.0] * (20 - gate.state.num_items))
        assert rest.state.decision is not Verdict.PASS


def test_unscored_items_count_against_the_candidate():
    assert differences([1.0, None, 0.0, None], [1.0, 0.0, None, None]).tolist() == [0.0, 0.0, -1.0, -1.0]
    with pytest.raises(ValueError, match="2 scores of the candidate, 1 of its baseline"):
        differences([1.0, 1.0], [1.0])


def state(decision, log_e=0.0, at=1):
    return GateState(decision, "", 1, 2, at, log_e, 0.0, log_e, at)


def test_a_guard_and_its_main_gate_pass_together_and_fail_alone():
    p, f, u, x = (Verdict(name) for name in ("pass", "fail", "undecided", "futile"))
    for main, guard, task in [(p, p, p), (p, u, u), (u, p, u), (p, f, f), (u, f, f), (f, p, f), (p, x, x), (f, x, f)]:
        assert both(state(main), state(guard)).decision is task
    later = both(state(p, 3.0, at=7), state(p, 5.0, at=9))
    assert (later.decided_at, later.log_e_pass, later.max_log_e_pass, later.max_at) == (9, 3.0, 3.0, 7)


def test_all_tasks_must_pass_and_the_first_failed_ends_it():
    p, f, u = Verdict.PASS, Verdict.FAIL, Verdict.UNDECIDED
    assert combine({"a": state(p, 3.0), "b": state(p, 4.0)}).decision is p
    assert combine({"a": state(p, 3.0), "b": state(p, 4.0)}).log_e_pass == 3.0
    assert combine({"a": state(p), "b": state(u)}).undecided == ("b",)
    assert combine({"a": state(p), "b": state(u)}).decision is u
    both = combine({"a": state(u), "b": state(f)})
    assert (both.decision, both.because) == (f, "b")
    assert combine({"a": state(p), "b": state(Verdict.FUTILE)}).decision is Verdict.FUTILE
    with pytest.raises(ValueError, match="no task"):
        combine({})


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"delta": 2.0}, "2 points are 0.02"),
        ({"delta": 0.1, "alpha": 0.0}, "alpha is an error probability"),
        ({"delta": 0.1, "order_weights": [1.0, 0.0]}, "2 positive numbers"),
        ({"delta": 0.1, "ranks": [0.1, 0.2]}, "both the margins' ranks and the baseline's scores"),
        ({"delta": 0.1, "ranks": [0.1, 1.2], "baseline": [0.0, 1.0]}, r"ranks must lie in \[0, 1\]"),
        ({"delta": 0.1, "ranks": [0.1, None], "baseline": [0.0, 2.0]}, r"baseline must lie in \[0, 1\]"),
        ({"delta": 0.1, "ranks": [0.1], "baseline": [0.0]}, "must be 2 numbers"),
        ({"delta": 0.1, "max_items": 0}, "max_items"),
        ({"delta": 0.1, "ranks": [0.1, 0.2], "baseline": [0.0, None]}, "baseline's scores, all of them"),
        ({"delta": 0.1, "baseline": [0.0, 1.5]}, r"baseline must lie in \[0, 1\]"),
        ({"delta": 0.1, "reject_delta": 1.0}, "delta is a share"),
        ({"delta": 0.1, "second_moment": 0.0}, "second_moment must be positive"),
    ],
)
def test_bad_parameters_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        Gate(2, **kwargs)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        Gate(2, 0.1).update([math.nan])


def test_a_difference_that_the_baseline_rules_out_is_refused():
    gate = Gate(3, 0.1, ranks=[0.1, 0.5, None], baseline=[1.0, 0.0, 1.0])
    gate.update([0.0])
    with pytest.raises(ValueError, match=r"item 2 of the order: a difference of -1\.0 from a baseline's 0\.0"):
        gate.update([-1.0, 0.0])
    assert gate.update([1.0, -1.0]).num_items == 3
