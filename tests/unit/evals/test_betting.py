"""The processes: fair bets, error levels at the boundary, intervals that hold under optional stopping."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.gate import betting
from evals.gate.flip_model import CURVES
from evals.gate.gate import ACCEPT_BETS, REJECT_BETS, Gate


def permuted(population, num_runs, rng):
    return rng.permuted(np.broadcast_to(population, (num_runs, len(population))), axis=1)


def three_point(num_items, num_lost, num_gained):
    return np.concatenate([-np.ones(num_lost), np.ones(num_gained), np.zeros(num_items - num_lost - num_gained)])


@pytest.mark.parametrize(
    ("num_items", "num_lost", "num_gained"), [(100, 2, 0), (500, 15, 5), (500, 80, 70), (1500, 30, 0), (1500, 250, 220)]
)
def test_errors_at_the_boundary_stay_below_the_levels_whenever_one_stops(num_items, num_lost, num_gained):
    """The supremum of both wealths over 500 orders; the bound is alpha plus four standard errors."""
    rng, num_runs = np.random.default_rng(num_items + num_lost), 500
    d = permuted(three_point(num_items, num_lost, num_gained), num_runs, rng)
    bets = (ACCEPT_BETS, REJECT_BETS)
    boundary = float(num_gained - num_lost)
    schedule = betting.make_schedule(np.ones(num_items))
    _, path = betting.advance(betting.start(*bets, (num_runs,)), d, schedule, (boundary, boundary), bets)
    for alpha in (0.01, 0.05, 0.1):
        bound = alpha + 4 * math.sqrt(alpha * (1 - alpha) / num_runs)
        assert (path.log_accept.max(axis=1) >= math.log(1 / alpha)).mean() <= bound
        assert (path.log_reject.max(axis=1) >= math.log(1 / alpha)).mean() <= bound


@pytest.mark.parametrize(("num_lost", "num_gained"), [(30, 30), (40, 25), (70, 10)])
def test_a_stopped_run_seldom_contradicts_the_full_run(num_lost, num_gained):
    rng, num_runs, num_items, delta = np.random.default_rng(num_lost), 200, 1500, 0.02
    population = three_point(num_items, num_lost, num_gained)
    truth = population.mean() > -delta
    wrong = 0
    for d in permuted(population, num_runs, rng):
        gate = Gate(num_items, delta)
        for begin in range(0, num_items, 250):
            if gate.update(d[begin : begin + 250]).decision != "undecided":
                break
        wrong += gate.state.decision != ("pass" if truth else "fail")
    assert wrong / num_runs <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / num_runs)


def test_many_runs_at_once_are_the_same_as_one_gate_each():
    rng = np.random.default_rng(0)
    d = rng.choice([-1.0, -0.3, 0.0, 0.5, 1.0], (20, 60))
    weights, ranks = rng.uniform(0.5, 2, (20, 60)), rng.random((20, 60))
    baseline = rng.uniform(np.maximum(0, -d), 1 - np.maximum(0, d))
    bets = (ACCEPT_BETS, REJECT_BETS)
    schedule = betting.make_schedule(weights, ranks, baseline)
    carry, paths = betting.start(*bets, (20,)), []
    for begin in range(0, 60, 25):
        carry, path = betting.advance(carry, d[:, begin : begin + 25], schedule, (-60 * 0.05, -60 * 0.05), bets)
        paths.append(path.log_accept)
    keep = np.arange(20) % 3 == 0
    rest = betting.advance(carry.rows(keep), d[keep, :0], schedule.rows(keep), (-60 * 0.05, -60 * 0.05), bets)[0]
    assert rest.evidence.shape == (2, len(CURVES), 7)
    for i in range(20):
        gate = Gate(60, 0.05, order_weights=weights[i], ranks=ranks[i], baseline=baseline[i])
        gate.update(d[i])
        assert np.concatenate(paths, axis=1)[i] == pytest.approx(gate.trajectory().log_e_pass, abs=1e-9)


@given(st.floats(-0.99, 0.99), st.floats(1e-4, 1), st.floats(1e-4, 1))
def test_kelly_bet_is_the_best_bet(m, edge, second):
    mean = min(m + edge, 1.0)
    second = max(second, abs(mean))
    p = np.array([(second + mean) / 2, 1 - second, (second - mean) / 2])
    pays = np.array([1 - m, -m, -1 - m])
    bet = float(betting.kelly_bet(np.array(m), np.array(edge), np.array(second)))
    bet = min(bet, 0.999 / (1 + m))

    def growth(x):
        return float((p * np.log1p(x * pays)).sum())

    for other in np.linspace(0, 0.999 / (1 + m), 50):
        assert growth(bet) >= growth(other) - 1e-9


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=40), st.integers(0, 100))
def test_schedule_scales_bounds_to_one(weights, seed):
    w = np.exp(np.array(weights) * 3)
    schedule = betting.make_schedule(w)
    for t in range(w.size):
        q = w[t:] / w[t:].sum()
        assert schedule.reach[t] == pytest.approx((1 / (w.size * q)).max())
        assert schedule.shrink[t] * schedule.reach[t] == pytest.approx(1 / (w.size * q[0]))
        assert schedule.second_moment[t] == pytest.approx(0.1 * (q / (w.size * q * schedule.reach[t]) ** 2).sum())


@pytest.mark.parametrize("kind", ["uniform", "guided", "flip_model"])
@pytest.mark.parametrize(("num_lost", "num_gained"), [(10, 10), (40, 5), (4, 0), (110, 60)])
def test_the_interval_holds_the_mean_where_the_gate_stopped(num_lost, num_gained, kind):
    """90% intervals at the gate's own stopping time: at most 10% misses, plus four standard errors."""
    rng, num_items, num_runs = np.random.default_rng(num_lost), 300, 60
    population = three_point(num_items, num_lost, num_gained)
    misses, widths = 0, []
    for _ in range(num_runs):
        weights = np.ones(num_items) if kind == "uniform" else np.where(population < 0, 0.6, 1.3)
        order = np.argsort(rng.exponential(size=num_items) / weights)
        known = {}
        if kind == "flip_model":
            ranks = np.where(population != 0, rng.random(num_items) / 2, rng.random(num_items))
            baseline = np.where(population == 0, np.arange(num_items) % 2, population < 0)
            known = {"ranks": ranks[order], "baseline": baseline[order]}
        gate = Gate(num_items, 0.05, order_weights=None if kind == "uniform" else weights[order], **known)
        for begin in range(0, num_items, 40):
            if gate.update(population[order[begin : begin + 40]]).decision != "undecided":
                break
        estimate = gate.confidence_sequence(0.9)
        misses += not estimate.lo - 1e-9 <= population.mean() <= estimate.hi + 1e-9
        widths.append(estimate.hi - estimate.lo)
    assert misses / num_runs <= 0.1 + 4 * math.sqrt(0.1 * 0.9 / num_runs)
    assert np.median(widths) < 0.5


def test_the_interval_narrows_and_closes_at_the_end():
    rng = np.random.default_rng(0)
    d = rng.permutation(three_point(2000, 60, 50))
    gate, widths = Gate(2000, 0.02), []
    for begin in range(0, 2000, 400):
        gate.update(d[begin : begin + 400])
        estimate = gate.confidence_sequence()
        widths.append(estimate.hi - estimate.lo)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] < 0.12
    assert widths[-1] == 0
    assert estimate.method.startswith("exact")
    with pytest.raises(ValueError, match="no item has been fed"):
        Gate(5, 0.1).confidence_sequence()


@pytest.mark.parametrize("has_flip_model", [False, True])
def test_guided_estimate_is_unbiased(has_flip_model):
    rng = np.random.default_rng(2)
    population = three_point(200, 30, 10)
    weights = np.where(population < 0, 2.0, 0.8)
    ranks, baseline = np.where(population < 0, 0.1, 0.7), (population < 0).astype(float)
    values = []
    for _ in range(800):
        order = np.argsort(rng.exponential(size=200) / weights)
        known = {"ranks": ranks[order], "baseline": baseline[order]} if has_flip_model else {}
        gate = Gate(200, 0.01, order_weights=weights[order], alpha=1e-9, beta=1e-9, **known)
        gate.update(population[order][:80])
        values.append(gate.trajectory().mean_difference[-1])
    standard_error = np.std(values) / math.sqrt(len(values))
    assert np.mean(values) == pytest.approx(population.mean(), abs=5 * standard_error)
    assert standard_error < 0.003


@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_the_uniform_process_is_the_published_martingale(delta):
    """Waudby-Smith and Ramdas, on x = (D + 1) / 2 in [0, 1]: prod 1 + l_t (x_t - (N mu - sum x) / (N - t + 1))."""
    rng, n = np.random.default_rng(4), 300
    d = rng.permutation(three_point(n, 12, 9))
    one = betting.Bets((1.0,), (1.0,))
    schedule = betting.make_schedule(np.ones(n))
    _, path = betting.advance(betting.start(one, one), d, schedule, (-n * delta, -n * delta), (one, one))
    x, mu, capital, seen = (d + 1) / 2, (1 - delta) / 2, 1.0, 0.0
    for t in range(n - 40):
        m = (n * mu - x[:t].sum()) / (n - t)
        second = (betting.PRIOR_FLIP_RATE * one.prior_items + seen) / (one.prior_items + t)
        edge = delta * n / (n - t)
        # Their bet is at most c / m; ours, on the scale of D, is half of theirs.
        ours = float(betting.kelly_bet(np.array(2 * m - 1), np.array(edge), np.array(second)))
        capital *= 1 + min(2 * ours, one.max_loss / m) * (x[t] - m)
        seen += d[t] ** 2
        assert path.log_accept[t] == pytest.approx(math.log(capital), abs=1e-9)


@pytest.mark.parametrize("weights_are", ["uniform", "guided", "hiding the losses", "wild"])
@pytest.mark.parametrize("kind", ["small moves", "few large losses", "confident answers"])
def test_alpha_and_beta_hold_for_probabilities_whatever_the_weights(kind, weights_are):
    """One-sided ranges, known from the baseline: the suprema of both wealths at the boundary, over 400 orders."""
    rng, n, num_runs = np.random.default_rng(len(kind) + len(weights_are)), 250, 400
    b = {"confident answers": rng.beta(0.3, 0.2, n)}.get(kind, rng.random(n))
    moved = {
        "small moves": np.clip(b + rng.normal(-0.02, 0.05, n), 0, 1),
        "few large losses": np.where(rng.random(n) < 0.04, 0.02 * b, np.clip(b + 0.01, 0, 1)),
        "confident answers": np.where(rng.random(n) < 0.1, 1 - b, b),
    }[kind]
    d = moved - b
    weights = {
        "uniform": np.ones(n),
        "guided": np.maximum(b, 0.5),
        "hiding the losses": np.where(d < 0, 0.3, 1.2),
        "wild": np.exp(rng.normal(0, 1.5, n)),
    }[weights_are]
    order = np.argsort(rng.exponential(size=(num_runs, n)) / weights, axis=1)
    schedule = betting.make_schedule(weights[order], baseline=b[order], second_moment=0.01)
    bets, boundary = (ACCEPT_BETS, REJECT_BETS), float(d.sum())
    _, path = betting.advance(betting.start(*bets, (num_runs,)), d[order], schedule, (boundary, boundary), bets)
    for alpha in (0.05, 0.2):
        bound = alpha + 4 * math.sqrt(alpha * (1 - alpha) / num_runs)
        assert (path.log_accept.max(axis=1) >= math.log(1 / alpha)).mean() <= bound
        assert (path.log_reject.max(axis=1) >= math.log(1 / alpha)).mean() <= bound


def test_a_range_that_the_baseline_bounds_lets_bets_be_larger():
    """No answer moves and the baseline is sure of none: half as much can be lost, so a pass takes fewer items."""
    b, n = np.full(2000, 0.5), 2000
    needed = {}
    for kind, known in (("known", b), ("unknown", None)):
        gate = Gate(n, 0.02, baseline=known, second_moment=0.01)
        needed[kind] = gate.update(np.zeros(n)[:1000]).decided_at
    assert needed["known"] < 0.6 * needed["unknown"]
