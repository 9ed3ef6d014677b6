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
    best_of_k_level,
    combine,
    differences,
    e_bh,
)

score_differences = st.lists(st.one_of(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-1, 1)), min_size=1, max_size=50)
deltas = st.sampled_from([0.0, 0.005, 0.02, 0.07, 0.1, 0.3])


def direct_wealth(d, weights, flip_model, delta, sign, bets, num_open):
    """One sequence, one item at a time, wealth as a plain product: the formulas of the docstring and nothing else."""
    n = len(d)
    weights = [w / (sum(weights) / n) for w in weights]
    wealth, trajectory, s = [1.0] * len(bets.edges), [], 0.0
    seen = expected = first = 0.0
    for t in range(num_open):
        left, lightest = sum(weights[t:]), min(weights[t:])
        reach = left / (n * lightest)
        guess, moment = direct_flip_model(d[:t], *flip_model) if flip_model else ([0.0] * n, [0.1] * n)
        shape = lightest**2 / left * sum(p / w for p, w in zip(moment[t:], weights[t:], strict=True))
        first = first or shape
        z = (d[t] - guess[t]) / (n * weights[t] / left)
        m, y = sign * -(delta + (s + sum(guess[t:])) / n) / reach, sign * z / reach
        prior = bets.prior_items * first
        second = shape * (prior + seen) / (prior + expected)
        for j, edge in enumerate(bets.edges):
            bet = direct_kelly(m, edge * max(delta, 0.005) / reach, second)
            wealth[j] *= 1 + min(bet, bets.max_loss / (1 + m)) * (y - m)
        s, seen, expected = s + d[t], seen + y * y, expected + shape
        trajectory.append(sum(w * x for w, x in zip(bets.weights, wealth, strict=True)))
    return trajectory


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


def direct_kelly(m, edge, second):
    mean = min(m + edge, 1.0)
    second = max(second, abs(mean))
    plus, minus = (second + mean) / 2, (second - mean) / 2
    pays = [(plus, 1 - m), (1 - second, -m), (minus, -1 - m)]

    def slope(x):
        return sum(p * a / (1 + x * a) for p, a in pays)

    lo, hi = 0.0, (1 - 1e-9) / (1 + m)
    for _ in range(200):
        middle = (lo + hi) / 2
        lo, hi = (middle, hi) if slope(middle) > 0 else (lo, middle)
    return lo


@settings(max_examples=60, deadline=None)
@given(score_differences, deltas, st.sampled_from(["uniform", "weights", "flip_model", "both"]), st.integers(0, 1000))
def test_agrees_with_the_slow_direct_implementation(d, delta, kind, seed):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.3, 3, len(d)) if kind in ("weights", "both") else np.ones(len(d))
    ranks, baseline = rng.random(len(d)), rng.uniform(np.maximum(0, -np.array(d)), 1 - np.maximum(0, d))
    flip_model = (ranks, baseline) if kind in ("flip_model", "both") else None
    known = {"ranks": ranks, "baseline": baseline} if flip_model else {}
    gate = Gate(len(d), delta, order_weights=weights if kind != "uniform" else None, **known)
    gate.update(d)
    trajectory = gate.trajectory()
    # Beyond the first certain item no bet is asked; compare where |m| < 1.
    s = np.cumsum(d) - d
    open_items = np.abs(-len(d) * delta - s) < (len(d) - np.arange(len(d))) * (1 - 1e-6)
    if flip_model:
        open_items &= len(d) - np.arange(len(d)) > 3 + 2 * np.abs(-len(d) * delta - s)  # |m| stays below 1 there
    num_open = len(d) if open_items.all() else int(np.argmin(open_items))
    accept = direct_wealth(d, weights, flip_model, delta, 1, ACCEPT_BETS, num_open)
    reject = direct_wealth(d, weights, flip_model, delta, -1, REJECT_BETS, num_open)
    for t in range(num_open):
        assert trajectory.log_e_pass[t] == pytest.approx(math.log(accept[t]), abs=1e-6)
        assert trajectory.log_e_fail[t] == pytest.approx(math.log(reject[t]), abs=1e-6)


@pytest.mark.parametrize("population", [(1, -1, -1, 0, 0, 0, 0), (1, 1, -1, -1, -1, 0, 0), (0.5, -1, -0.5, 0, -0.4, 0)])
def test_mean_wealth_over_all_orders_is_one_on_the_boundary(population):
    """E[W_t] = 1 exactly, at each t, over all N! equally likely orders: what Ville's inequality needs."""
    n = len(population)
    delta = -sum(population) / n
    wealths = []
    for order in sorted(set(itertools.permutations(population))):
        gate = Gate(n, delta)
        gate._boundary = sum(population)
        gate.update(order)
        # A decided path may stop early; the process itself must be fair while no answer is certain.
        wealths.append(np.exp(gate.trajectory().log_e_pass[: n - 3]))
    assert np.mean(wealths, axis=0) == pytest.approx(np.ones(n - 3), abs=1e-9)


@pytest.mark.parametrize("is_weighted", [False, True])
def test_mean_wealth_over_all_orders_is_one_on_the_boundary_beside_a_forecast(is_weighted):
    """The same, each order weighing what its draw weighs, whatever the flip model expects."""
    d = np.array([1.0, -1.0, -1.0, 0.0, 0.0, 0.5, -0.5])
    n, baseline = len(d), np.array([0.0, 1.0, 1.0, 1.0, 0.0, 0.4, 0.6])
    weights = np.array([1.0, 3.0, 0.5, 1.0, 2.0, 0.7, 1.0]) if is_weighted else np.ones(n)
    ranks = np.array([0.9, 1.0, 0.0, 0.1, 0.3, 0.5, 0.2])
    wealths = np.zeros((2, n - 4))
    for order in map(list, itertools.permutations(range(n))):
        chance = math.prod(weights[order[t]] / weights[order[t:]].sum() for t in range(n))
        gate = Gate(n, -d.sum() / n, order_weights=weights[order], ranks=ranks[order], baseline=baseline[order])
        gate._boundary = d.sum()
        gate.update(d[order])
        trajectory = gate.trajectory()
        wealths += chance * np.exp(np.stack([trajectory.log_e_pass, trajectory.log_e_fail])[:, : n - 4])
    assert wealths == pytest.approx(np.ones((2, n - 4)), abs=1e-9)


def test_mean_wealth_stays_at_most_one_where_the_boundary_becomes_certain():
    population, paths = (1, 1, -1, -1, -1, -1, 0), []
    for order in sorted(set(itertools.permutations(population))):
        gate = Gate(7, 0.0)
        gate._boundary = -1.0
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
        gate._boundary = -1.0
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


@pytest.mark.parametrize(
    "d",
    [[1.0] * 400, [-1.0] * 400, [0.0] * 400, [1.0, -1.0] * 200, [-1.0] * 200 + [1.0] * 200, [1e-300, -1e-300] * 200],
)
@pytest.mark.parametrize("delta", [0.0, 1e-6, 0.05, 0.999])
def test_extremes_stay_finite(d, delta):
    weights = np.where(np.arange(400) % 7 == 0, 1e-6, 1.0)
    scores = np.where(np.array(d) == 0, np.arange(400) % 2, np.array(d) < 0)
    known = {"ranks": np.linspace(0, 1, 400), "baseline": scores}
    for kwargs in ({}, {"order_weights": weights}, known, {"order_weights": weights[::-1], **known}):
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


def state(decision, log_e=0.0):
    return GateState(decision, "", 1, 2, 1, log_e, 0.0)


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


def test_levels_for_many_candidates():
    assert best_of_k_level(0.05, 5) == pytest.approx(0.01)
    # K = 4, alpha = 0.1: the largest needs 40, two need 20 each, three 13.3, four 10.
    assert e_bh([math.log(39), 0.0, 0.0, 0.0], 0.1) == ()
    assert e_bh([math.log(41), 0.0, 0.0, 0.0], 0.1) == (0,)
    assert e_bh([math.log(21), 0.0, math.log(20.5), 0.0], 0.1) == (0, 2)
    assert e_bh([math.inf, -math.inf], 0.1) == (0,)


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
