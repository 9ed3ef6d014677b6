"""The frontier: against the definition, pair by pair."""

import time
from decimal import Decimal
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.decide.frontier import (
    Resamples,
    Spread,
    analyze,
    dominating,
    hypervolumes,
    knee,
    non_dominated,
    non_dominated_mask,
)
from evals.types import Estimate, Money, Point

small = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, np.nan])


def point(name, cost, quality):
    money = None if np.isnan(cost) else Money(Decimal(str(cost)), Decimal(str(cost)), Decimal(str(cost)))
    return Point(name, None if np.isnan(quality) else Estimate(quality, quality, quality, 1), money, False)


def direct(cost, quality):
    """The definition, in words of the docstring."""
    on_frontier = []
    for c, q in zip(cost, quality, strict=True):
        dominated = any(cj <= c and qj >= q and (cj < c or qj > q) for cj, qj in zip(cost, quality, strict=True))
        on_frontier.append(not (np.isnan(c) or np.isnan(q) or dominated))
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


def measured(name, cost, quality, half=0.0, cost_half=0.0):
    money = Money(*(Decimal(str(cost + x)) for x in (0.0, -cost_half, cost_half)))
    return Point(name, Estimate(quality, quality - half, quality + half, 100), money, False)


def test_without_noise_probability_is_membership():
    points = [measured("a", 1.0, 0.5), measured("b", 2.0, 0.6), measured("c", 3.0, 0.55), point("d", 1.0, np.nan)]
    found = analyze(points, np.random.default_rng(0))
    assert found.on_frontier == (True, True, False, False)
    assert found.probability == (1.0, 1.0, 0.0, None)
    assert found.confident == (True, True, False, False)


def test_pairing_separates_nearly_equal_models():
    """12 of 400 items lost and none gained: paired draws never dominate the expensive one, unpaired ones often do."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 400).astype(float)
    worse = a.copy()
    worse[np.flatnonzero(a)[:12]] = 0.0
    points = [
        measured("cheap", 1.0, float(worse.mean()), 0.05),
        measured("expensive", 2.0, float(a.mean()), 0.05),
    ]
    scores = {"cheap": {"t": worse.tolist()}, "expensive": {"t": a.tolist()}}
    paired = analyze(points, np.random.default_rng(1), Resamples(scores))
    unpaired = analyze(points, np.random.default_rng(1))
    assert paired.probability[1] > 0.999
    assert unpaired.probability[1] < 0.9
    assert "2 of 2 contenders paired" in paired.method


def test_probability_of_two_independent_points_is_the_normal_tail():
    points = [measured("cheap", 1.0, 0.5, half=0.0196), measured("expensive", 2.0, 0.51, half=0.0196)]
    found = analyze(points, np.random.default_rng(0), num_draws=20_000)
    assert found.probability[0] == 1.0
    assert found.probability[1] == pytest.approx(NormalDist().cdf(0.01 / (0.01 * 2**0.5)), abs=0.015)


def test_cost_is_resampled_over_repeats():
    points = [measured("a", 1.0, 0.5), measured("b", 1.05, 0.5)]
    repeats = {"a": [0.9, 1.0, 1.1], "b": [0.95, 1.05, 1.15]}
    found = analyze(points, np.random.default_rng(0), Resamples(usd_per_1k_tokens=repeats))
    assert 0.05 < found.probability[1] < 0.5
    assert found.confident == (True, True)
    assert analyze(points, np.random.default_rng(0)).probability == (1.0, 0.0)


def rounds_spread(rng, num_rounds, sigma):
    """The error of a ratio over rounds, and how well these rounds say that it is known."""
    logs = rng.normal(0, sigma, num_rounds)
    return float(logs.mean()), Spread("base", float(logs.std(ddof=1)) / num_rounds**0.5, num_rounds - 1)


def test_a_share_is_right_for_a_candidate_that_is_as_expensive_as_its_baseline():
    """A little worse and as expensive: on the frontier only where it seems cheaper. A share above 97.5% is an error."""
    rng = np.random.default_rng(0)
    sure, doubtful, count = 0, 0, 200
    for _ in range(count):
        off, spread = rounds_spread(rng, 4, 0.04)
        day = float(np.exp(rng.normal(0, 0.1)))  # the baseline's own error, which both share
        repeats = {"base": (day * np.exp(rng.normal(0, 0.03, 3))).tolist()}
        usd = float(np.exp(np.mean(np.log(repeats["base"]))))
        points = [measured("base", usd, 0.60), measured("ours", usd * float(np.exp(off)), 0.59)]
        found = analyze(points, rng, Resamples({}, repeats, {"ours": spread}), num_draws=400)
        sure += found.probability[1] > 0.975
        doubtful += found.probability[1] < 0.025
    at_most = 0.025 * count + 3 * (0.025 * 0.975 * count) ** 0.5
    assert sure <= at_most
    assert doubtful <= at_most
    assert sure + doubtful > 0.02 * count, "a share that is never sure would be too wide"


def test_the_confident_set_holds_the_true_frontier_where_prices_are_noisy():
    """Ratios over four rounds of fresh starts, stopped candidates by their paired difference; nominal 95%."""
    rng = np.random.default_rng(1)
    ratio, difference = np.array([1.0, 0.97, 0.90, 0.80]), np.array([0.0, -0.01, 0.0, -0.02])
    true_frontier = non_dominated_mask(ratio, 0.6 + difference)
    count, misses = 200, 0
    for _ in range(count):
        base_quality = 0.6 + rng.normal(0, 0.02)
        base_usd = float(np.exp(rng.normal(0, 0.1)))
        points, ratios, differences = [measured("base", base_usd, base_quality, half=0.0392)], {}, {}
        for index in (1, 2, 3):
            off, ratios[str(index)] = rounds_spread(rng, 4, 0.06)
            usd = base_usd * float(ratio[index]) * float(np.exp(off))
            quality = base_quality + float(difference[index]) + rng.normal(0, 0.006)
            points.append(measured(str(index), usd, quality, half=0.0392))
            differences[str(index)] = Spread("base", 0.006)
        found = analyze(points, rng, Resamples({}, {}, ratios, differences), num_draws=400)
        misses += not np.array(found.confident)[true_frontier].all()
    assert misses <= 0.05 * count + 3 * (0.05 * 0.95 * count) ** 0.5


def test_what_a_candidate_shares_with_its_baseline_cancels():
    """The baseline's own price and quality are badly known; the differences are well known."""
    points = [measured("base", 1.0, 0.5, half=0.1), measured("ours", 0.9, 0.49, half=0.1)]
    repeats = {"base": [0.7, 1.0, 1.43]}
    alone = analyze(points, np.random.default_rng(0), Resamples({}, repeats | {"ours": [0.63, 0.9, 1.29]}))
    beside = Resamples({}, repeats, {"ours": Spread("base", 0.01, 3)}, {"ours": Spread("base", 0.002)})
    found = analyze(points, np.random.default_rng(0), beside)
    assert found.probability[0] > 0.99
    assert found.probability[1] > 0.97
    assert alone.probability[1] < 0.9
    assert "1 priced against their baseline" in found.method


@given(
    st.lists(
        st.tuples(st.floats(1e-9, 1e3), st.floats(0, 1), st.floats(0, 5), st.integers(1, 9)), min_size=2, max_size=6
    )
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_rounds_say_figures_are_figures(rows):
    """Two rounds that differ a thousandfold, prices of almost nothing: shares stay shares, without a warning."""
    points = [measured(str(i), cost, quality, half=0.01) for i, (cost, quality, _, _) in enumerate(rows)]
    ratios = {str(i): Spread("0", error, degrees) for i, (_, _, error, degrees) in enumerate(rows) if i}
    found = analyze(points, np.random.default_rng(0), Resamples(cost_ratios=ratios), num_draws=100)
    assert all(0 <= share <= 1 for share in found.probability)
    assert np.isfinite(found.hypervolume.value)
    on = np.array(found.on_frontier)
    assert np.array(found.confident)[on].all(), "what is on the measured frontier cannot be left out of the set"


def test_a_baseline_that_is_dominated_still_carries_its_candidates_draws():
    points = [measured("base", 2.0, 0.50), measured("ours", 1.0, 0.60), measured("other", 1.01, 0.61)]
    spreads = {name: Spread("base", 0.001, 9) for name in ("ours", "other")}
    found = analyze(points, np.random.default_rng(0), Resamples(cost_ratios=spreads))
    assert found.probability == (0.0, 1.0, 1.0)
    lost = Resamples(cost_ratios={"ours": Spread("gone", 0.01, 3)})
    assert analyze(points, np.random.default_rng(0), lost).probability[1] == 1.0, "drawn from its own interval"


def test_pruning_changes_nothing():
    """Hopeless points are left out of the draws; the others' draws and figures are as without them."""
    near = [measured(str(i), 1.0 + i / 10, 0.5 + i / 100, half=0.02) for i in range(5)]
    hopeless = [measured(f"far {i}", 10.0 + i, 0.1, half=0.01) for i in range(20)]
    alone = analyze(near, np.random.default_rng(3), reference=(20.0, 0.1))
    together = analyze(near + hopeless, np.random.default_rng(3), reference=(20.0, 0.1))
    assert together.probability == alone.probability + (0.0,) * 20
    assert together.hypervolume.lo == alone.hypervolume.lo


def test_the_confident_set_holds_the_true_frontier():
    rng = np.random.default_rng(0)
    cost = np.array([1.0, 1.2, 1.5, 2.0, 2.5, 3.0])
    truth = np.array([0.50, 0.53, 0.52, 0.58, 0.58, 0.60])
    true_frontier = non_dominated_mask(cost, truth)
    misses = 0
    for _ in range(200):
        seen = truth + rng.normal(0, 0.01, 6)
        points = [measured(str(i), c, q, half=0.0196) for i, (c, q) in enumerate(zip(cost, seen, strict=True))]
        found = analyze(points, rng, num_draws=400)
        misses += not np.array(found.confident)[true_frontier].all()
    assert misses <= 0.05 * 200 + 4 * (0.05 * 0.95 * 200) ** 0.5


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([1.0, 1.5, 2.0, 3.0]), st.sampled_from([0.1, 0.2, 0.3])), max_size=10))
def test_epsilon_dominance_agrees_with_its_definition(pairs):
    points = [measured(str(i), c, q) for i, (c, q) in enumerate(pairs)]
    dominated = dominating(points, 0.1, 0.1)
    for i, (c, q) in enumerate(pairs):
        rivals = [j for j, (cj, qj) in enumerate(pairs) if qj >= q - 0.1 and cj <= c * 0.9]
        assert (dominated[i] is None) == (not rivals)
        if rivals:
            assert dominated[i] in rivals
            assert pairs[dominated[i]][1] == max(pairs[j][1] for j in rivals)


def test_epsilon_needs_a_saving_that_matters():
    with pytest.raises(ValueError, match="eps_cost"):
        dominating([], 0.01, 0.0)
    assert dominating([point("gap", np.nan, 0.5), measured("a", 1.0, 0.5)], 0.01, 0.1) == [None, None]


def test_hypervolume_is_the_area():
    # Two boxes in ln(cost) x quality: from 1 to e at 0.2, from e to e^2 at 0.5, above a reference quality of 0.1.
    cost, quality = np.exp([0.0, 1.0, 1.5]), np.array([0.3, 0.6, 0.4])
    volume = hypervolumes(cost, quality, (float(np.exp(2.0)), 0.1))
    assert volume == pytest.approx(1 * 0.2 + 1 * 0.5)
    assert hypervolumes(cost, quality, (0.5, 0.1)) == 0.0
    both = hypervolumes(np.stack([cost, cost[::-1]]), np.stack([quality, quality[::-1]]), (float(np.exp(2.0)), 0.1))
    assert both == pytest.approx([0.7, 0.7])


def test_knee_is_the_bend():
    cost, quality = np.exp(np.array([0.0, 1.0, 2.0, 3.0])), np.array([0.1, 0.9, 0.95, 1.0])
    assert knee(cost, quality) == 1
    assert knee(cost[:2], quality[:2]) is None


def test_bad_input_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="positive"):
        analyze([measured("a", 0.0, 0.5)], rng)
    with pytest.raises(ValueError, match="unique"):
        analyze([measured("a", 1.0, 0.5), measured("a", 2.0, 0.5)], rng)
    two = [measured("a", 1.0, 0.5), measured("b", 1.1, 0.5, half=0.1)]
    with pytest.raises(ValueError, match="same items"):
        analyze(two, rng, Resamples({"a": {"t": [1.0]}, "b": {"t": [1.0, 0.0]}}))
    with pytest.raises(ValueError, match="same tasks"):
        analyze(two, rng, Resamples({"a": {"t": [1.0]}, "b": {"u": [1.0]}}))
    assert analyze([point("gap", np.nan, 0.5)], rng).hypervolume is None


def test_ten_thousand_points_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    cost = np.exp(rng.normal(0, 1, 10_000))
    quality = 0.5 + 0.05 * np.log(cost) + rng.normal(0, 0.05, 10_000)
    points = [
        measured(str(i), round(c, 6), float(q), half=0.01) for i, (c, q) in enumerate(zip(cost, quality, strict=True))
    ]
    begin = time.process_time()
    found = analyze(points, rng)
    assert time.process_time() - begin < 2.0
    assert sum(found.on_frontier) >= 1
    assert all(p is not None for p in found.probability)
