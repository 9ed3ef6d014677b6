"""Error bars: against known values, exact enumeration and coverage by simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.stats import align, flips, mean_estimate, paired_bootstrap
from evals.types import ItemOutcome

score_lists = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 1.0]), st.floats(0, 1)), min_size=1, max_size=60)


def test_wilson_agrees_with_a_published_example():
    # 10 of 100: Wilson 95% = (0.0552, 0.1744) (Brown, Cai, DasGupta 2001, and R's prop.test without correction).
    estimate = mean_estimate([1.0] * 10 + [0.0] * 90)
    assert estimate.value == pytest.approx(0.1)
    assert (estimate.lo, estimate.hi) == (pytest.approx(0.0552, abs=1e-4), pytest.approx(0.1744, abs=1e-4))
    assert estimate.method == "Wilson 95%"
    assert estimate.num_samples == 100


def test_unscored_items_are_counted_and_change_nothing_else():
    with_none = mean_estimate([1.0, None, 0.0, None, 1.0])
    without = mean_estimate([1.0, 0.0, 1.0])
    assert (with_none.value, with_none.lo, with_none.hi) == (without.value, without.lo, without.hi)
    assert (with_none.num_samples, with_none.num_unscored) == (3, 2)


def test_no_score_at_all_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match="none of the 2 items"):
        mean_estimate([None, None])
    with pytest.raises(ValueError, match="no item has a score from both"):
        paired_bootstrap({"t": [1.0, None]}, {"t": [None, 1.0]}, np.random.default_rng(0))


@given(score_lists)
def test_mean_stays_inside_its_interval_and_the_interval_inside_0_1(scores):
    if all(s is None for s in scores):
        return
    estimate = mean_estimate(scores)
    assert 0 <= estimate.lo <= estimate.value <= estimate.hi <= 1
    assert estimate.num_samples + estimate.num_unscored == len(scores)
    assert estimate.hi > estimate.lo


@pytest.mark.parametrize("bad", [-0.1, 1.5, 100.0])
def test_a_score_outside_0_1_is_refused(bad):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        mean_estimate([bad])


def test_flips_lists_what_changed():
    changed = flips([1.0, 0.0, 1.0, None, 0.5], [1.0, 1.0, 0.0, 1.0, 0.5], item_ids=[10, 11, 12, 13, 14])
    assert changed.gained == (12,)
    assert changed.lost == (11,)
    assert changed.num_paired == 4
    assert changed.rate == pytest.approx(0.5)
    assert flips([None], [1.0]).rate is None


def test_align_pairs_by_item_id_not_by_position():
    a = [ItemOutcome(3, 1.0), ItemOutcome(1, 0.0)]
    b = [ItemOutcome(1, 1.0), ItemOutcome(2, 1.0), ItemOutcome(3, None)]
    assert align(a, b) == ([1, 3], [0.0, 1.0], [1.0, None])
    with pytest.raises(ValueError, match="twice"):
        align([ItemOutcome(1, 1.0), ItemOutcome(1, 0.0)], b)


def test_mean_over_tasks_of_ratios_and_differences():
    candidate = {"a": [1.0, 1.0, 0.0, 0.0] * 50, "b": [1.0, 0.0] * 100}
    baseline = {"a": [1.0, 1.0, 1.0, 1.0] * 50, "b": [1.0, 0.0] * 100}
    compared = paired_bootstrap(candidate, baseline, np.random.default_rng(0))
    assert compared.difference.value == pytest.approx((-0.5 + 0.0) / 2)
    assert compared.recovery.value == pytest.approx((0.5 + 1.0) / 2)
    assert compared.differences["a"].value == pytest.approx(-0.5)
    assert compared.recoveries["b"].value == pytest.approx(1.0)
    assert len(compared.flips["a"].lost) == 100
    assert compared.difference.num_samples == 400


def test_same_seed_same_interval():
    data = {"t": [1.0, 0.0, 1.0, 1.0] * 10}, {"t": [1.0, 1.0, 0.0, 1.0] * 10}
    first = paired_bootstrap(*data, np.random.default_rng(7))
    assert first == paired_bootstrap(*data, np.random.default_rng(7))


def test_resampling_is_that_of_items():
    """The counts trick gives the mean and variance of drawing item indices."""
    rng = np.random.default_rng(1)
    c, b = rng.random(40).round(1), rng.random(40).round(1)
    compared = paired_bootstrap({"t": c.tolist()}, {"t": b.tolist()}, rng, num_draws=20_000, pseudo_count=0)
    index = rng.integers(0, 40, size=(20_000, 40))
    lo, hi = np.quantile((c - b)[index].mean(axis=1), [0.025, 0.975])
    assert compared.difference.lo == pytest.approx(lo, abs=0.006)
    assert compared.difference.hi == pytest.approx(hi, abs=0.006)


def test_no_flip_among_few_items_is_not_certainty():
    same = {"t": [1.0, 0.0] * 10}
    compared = paired_bootstrap(same, same, np.random.default_rng(0))
    assert compared.difference.value == 0
    assert compared.difference.lo < -0.04
    plain = paired_bootstrap(same, same, np.random.default_rng(0), pseudo_count=0)
    assert plain.difference.lo == plain.difference.hi == 0


def test_recovery_is_missing_with_a_reason_where_the_baseline_is_zero():
    compared = paired_bootstrap(
        {"zero": [1.0, 0.0], "fine": [1.0] * 30}, {"zero": [0.0, 0.0], "fine": [1.0] * 30}, np.random.default_rng(0)
    )
    assert compared.recovery is None
    assert compared.recovery_missing.startswith("zero: ")
    assert compared.recoveries["fine"] is not None
    assert compared.difference.value == pytest.approx(0.25)


def test_tasks_and_lengths_must_agree():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="tasks of the candidate"):
        paired_bootstrap({"a": [1.0]}, {"b": [1.0]}, rng)
    with pytest.raises(ValueError, match="2 scores of the candidate, 1 of its baseline"):
        paired_bootstrap({"a": [1.0, 1.0]}, {"a": [1.0]}, rng)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, None]), st.sampled_from([0.0, 1.0])), min_size=2, max_size=40))
def test_intervals_hold_their_values(pairs):
    candidate, baseline = [c for c, _ in pairs], [b for _, b in pairs]
    if all(c is None for c in candidate):
        return
    compared = paired_bootstrap({"t": candidate}, {"t": baseline}, np.random.default_rng(0), num_draws=200)
    assert -1 <= compared.difference.lo <= compared.difference.value <= compared.difference.hi <= 1
    assert compared.difference.num_unscored == sum(c is None for c in candidate)
    assert (compared.recovery is None) == bool(compared.recovery_missing)


@pytest.mark.parametrize(("flip_rate", "mean"), [(0.05, 0.0), (0.1, -0.03), (0.02, -0.01)])
def test_coverage_of_the_difference(flip_rate, mean):
    """95% intervals hold the population's difference in at least 92% of repeats, at few flips too."""
    rng = np.random.default_rng(3)
    lost, gained = (flip_rate - mean) / 2, (flip_rate + mean) / 2
    hits = 0
    for _ in range(300):
        d = rng.choice([-1.0, 0.0, 1.0], p=[lost, 1 - flip_rate, gained], size=200)
        baseline = np.where(d < 0, 1.0, np.where(d > 0, 0.0, rng.integers(0, 2, 200)))
        compared = paired_bootstrap({"t": (baseline + d).tolist()}, {"t": baseline.tolist()}, rng, num_draws=1000)
        hits += compared.difference.lo <= mean <= compared.difference.hi
    assert hits >= 0.92 * 300
