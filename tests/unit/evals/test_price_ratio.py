"""The price ratio of interleaved rounds: its algebra, and how often it errs where speeds drift."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evals.cost.curves import compare_points
from evals.cost.price_ratio import confidence_at, log_spread, price_ratio, rounds_without_ratio, t_half_width
from evals.types import LoadPoint, PriceRound

NOMINAL, AT_MOST = 0.025, 0.035
"""One-sided: the error that is meant, and what may be measured of it."""
rates = st.floats(1.0, 1e5)
a_round = st.tuples(st.lists(rates, min_size=1, max_size=4), st.lists(rates, min_size=1, max_size=4))


def rounds_of(pairs):
    return [PriceRound(tuple(base), tuple(ours), "baseline", "2026-11-27T00:00:00+00:00") for base, ours in pairs]


@given(st.lists(a_round, min_size=2, max_size=8))
def test_the_interval_holds_its_value_and_swaps_with_the_sides(pairs):
    found = price_ratio(rounds_of(pairs))
    swapped = price_ratio(rounds_of([(ours, base) for base, ours in pairs]))
    assert found.lo <= found.ratio * (1 + 1e-12)
    assert found.ratio <= found.hi * (1 + 1e-12)
    assert swapped.ratio == pytest.approx(1 / found.ratio)
    assert (swapped.lo, swapped.hi) == (pytest.approx(1 / found.hi), pytest.approx(1 / found.lo))
    assert found.num_rounds == len(pairs)


@given(st.lists(a_round, min_size=2, max_size=6), st.lists(st.floats(0.5, 2.0), min_size=6, max_size=6))
def test_what_moves_both_sides_of_a_round_cancels(pairs, drifts):
    moved = [([x * k for x in base], [x * k for x in ours]) for (base, ours), k in zip(pairs, drifts, strict=False)]
    before, after = price_ratio(rounds_of(pairs)), price_ratio(rounds_of(moved))
    assert after.ratio == pytest.approx(before.ratio)
    assert math.log(after.hi / after.lo) == pytest.approx(math.log(before.hi / before.lo), abs=1e-9)


@given(st.lists(a_round, min_size=2, max_size=6), st.floats(0.1, 10.0))
def test_the_machines_prices_multiply(pairs, factor):
    plain, priced = price_ratio(rounds_of(pairs)), price_ratio(rounds_of(pairs), factor)
    for name in ("ratio", "lo", "hi"):
        assert getattr(priced, name) == pytest.approx(getattr(plain, name) * factor)


@given(st.lists(st.floats(-1.0, 1.0), min_size=2, max_size=8), st.integers(2, 5))
def test_repeats_within_a_round_are_no_replications(logs, times):
    """The same figure said several times in one start narrows nothing."""
    assume(np.std(logs) > 1e-6)
    once = price_ratio(rounds_of([([100.0], [100.0 * math.exp(x)]) for x in logs]))
    often = price_ratio(rounds_of([([100.0] * times, [100.0 * math.exp(x)] * times) for x in logs]))
    assert (often.lo, often.hi) == (pytest.approx(once.lo), pytest.approx(once.hi))


def test_fewer_than_two_rounds_have_no_interval():
    assert price_ratio([]) is None
    one = price_ratio(rounds_of([([100.0, 101.0], [110.0, 111.0])]))
    assert (one.lo, one.hi) == (None, None)
    assert one.ratio == pytest.approx(0.9095, abs=1e-4)
    assert one.method == "one round: no interval"
    assert log_spread(one) is None


def test_a_round_that_completed_nothing_takes_the_whole_ratio_away():
    whole = ([100.0], [100.0])
    for broken in (([None], [100.0]), ([100.0], [100.0, None]), ([0.0], [1.0]), ([], [1.0])):
        found = rounds_of([whole, broken, whole])
        assert rounds_without_ratio(found) == 1
        assert price_ratio(found) is None


def test_an_end_is_always_a_number():
    """Two rounds that differ a millionfold, told at a late look."""
    found = price_ratio(rounds_of([([1e6], [1.0]), ([1.0], [1e6])]), confidence=confidence_at(20))
    assert 0 < found.lo < found.ratio < found.hi < math.inf


def test_the_spread_is_the_intervals():
    found = price_ratio(rounds_of([([100.0], [100.0 * math.exp(x)]) for x in (0.01, -0.02, 0.03, 0.0)]))
    logs = [-0.01, 0.02, -0.03, 0.0]
    assert math.log(found.hi / found.ratio) == pytest.approx(t_half_width(logs))
    assert log_spread(found) == pytest.approx(np.std(logs, ddof=1) / 2)


def equal_prices(rng, within, between, num_rounds, num_repeats, drift=0.0):
    """Rounds of two servers of one speed: each start, and each repeat, is off by its own share; the machine drifts."""
    machine = rng.normal(0, drift) + np.cumsum(rng.normal(0, drift, num_rounds))
    pairs = []
    for shared in machine:
        sides = []
        for _ in range(2):
            start = shared + rng.normal(0, between)
            sides.append(np.exp(start + rng.normal(0, within, num_repeats)).tolist())
        pairs.append(sides)
    return rounds_of(pairs)


@pytest.mark.parametrize(("within", "between"), [(0.03, 0.03), (0.01, 0.05)])
@pytest.mark.parametrize("drift", [0.0, 0.05])
@pytest.mark.parametrize("num_rounds", [2, 4, 8])
def test_equal_prices_are_called_cheaper_as_rarely_as_is_said(within, between, drift, num_rounds):
    rng = np.random.default_rng([num_rounds, round(1000 * within), round(1000 * between), round(1000 * drift)])
    count = 4000
    cheaper = sum(price_ratio(equal_prices(rng, within, between, num_rounds, 2, drift)).hi < 1 for _ in range(count))
    assert cheaper / count <= AT_MOST
    assert cheaper / count >= NOMINAL / 2, "so low an error would be an interval that is too wide"


@pytest.mark.parametrize(("within", "between"), [(0.03, 0.03), (0.01, 0.05)])
def test_who_asks_for_more_rounds_until_it_is_shown_errs_in_at_most_3_5_percent(within, between):
    rng = np.random.default_rng([1, round(1000 * within)])
    count, cheaper = 3000, 0
    for _ in range(count):
        rounds = equal_prices(rng, within, between, 16, 2)
        looks = enumerate((4, 8, 16))
        cheaper += any(price_ratio(rounds[:size], confidence=confidence_at(look)).hi < 1 for look, size in looks)
    assert cheaper / count <= AT_MOST


@given(st.integers(1, 40))
def test_all_later_looks_together_have_one_percent(looks):
    assert sum((1 - confidence_at(look)) / 2 for look in range(1, looks + 1)) < 0.01
    assert confidence_at(looks) < confidence_at(looks + 1) < 1


def test_three_repeats_of_one_start_err_as_often_as_the_document_says():
    """What the rounds replaced: Welch's interval over the repeats of one start of each."""
    rng = np.random.default_rng(0)
    for within, between, share in ((0.03, 0.03, 0.095), (0.01, 0.05, 0.36)):
        count, cheaper = 120, 0
        for _ in range(count):
            (pair,) = equal_prices(rng, within, between, 1, 3)
            base, ours = (
                LoadPoint("c8", 8, 128, 16, tuple({"total_tok_per_s": rate} for rate in side), 0)
                for side in (pair.baseline_tok_per_s, pair.candidate_tok_per_s)
            )
            cheaper += compare_points(base, ours).hi < 1
        assert cheaper / count == pytest.approx(share, abs=3 * (share * (1 - share) / count) ** 0.5)
