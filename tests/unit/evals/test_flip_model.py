"""The flip model: predictable, within what is possible, the same in blocks, and learning from what is seen."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.gate.flip_model import CURVES, LEAST_CHANCE, FlipModel, make_flip_model, no_evidence, predict


def example(num_items: int, seed: int) -> tuple[FlipModel, np.ndarray, np.ndarray]:
    """A flip model, its baseline's scores and differences that are possible beside them."""
    rng = np.random.default_rng(seed)
    baseline = rng.choice([0.0, 0.3, 0.5, 1.0], num_items)
    ranks = np.where(rng.random(num_items) < 0.2, math.nan, rng.random(num_items))
    differences = rng.choice([0.0, 0.0, 1.0], num_items) - baseline * rng.choice([0.0, 1.0], num_items)
    differences = np.clip(differences, -baseline, 1 - baseline)
    return make_flip_model(ranks, baseline, rng.uniform(0.5, 2, num_items)), baseline, differences


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_predictions_are_possible_differences(num_items, seed):
    flip_model, baseline, differences = example(num_items, seed)
    found, _ = predict(flip_model, no_evidence(), differences)
    assert (found.difference >= -baseline).all()
    assert (found.difference <= 1 - baseline).all()
    assert (np.abs(differences - found.difference) <= 1).all()
    assert (found.second_moment > 0).all()
    most = np.cumsum(np.maximum(1 - baseline, 0)[::-1] * (baseline < 0.5)[::-1])[::-1]
    assert flip_model.most_ahead == pytest.approx(most)
    assert (found.ahead <= most + 1e-9).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.data())
def test_a_prediction_uses_the_answers_before_it_only(num_items, seed, data):
    flip_model, baseline, differences = example(num_items, seed)
    place = data.draw(st.integers(0, num_items - 1))
    other = differences.copy()
    other[place:] = np.where(differences[place:] == 0, (1 - baseline)[place:], 0.0)
    one, _ = predict(flip_model, no_evidence(), differences)
    two, _ = predict(flip_model, no_evidence(), other)
    for name in ("difference", "ahead", "second_moment"):
        assert (getattr(one, name)[: place + 1] == getattr(two, name)[: place + 1]).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000), st.data())
def test_blocks_give_what_the_whole_gives(num_items, seed, data):
    flip_model, _, differences = example(num_items, seed)
    whole, end = predict(flip_model, no_evidence(), differences)
    cut = data.draw(st.integers(1, num_items - 1))
    first, evidence = predict(flip_model.block(0, cut), no_evidence(), differences[:cut])
    second, evidence = predict(flip_model.block(cut, num_items), evidence, differences[cut:])
    assert evidence == pytest.approx(end)
    for name in ("difference", "ahead", "second_moment"):
        parts = np.concatenate([getattr(first, name), getattr(second, name)])
        assert parts == pytest.approx(getattr(whole, name))


def test_flips_far_from_the_boundary_teach_a_wider_curve_to_their_own_group_alone():
    num_items = 400
    rng = np.random.default_rng(0)
    baseline = np.arange(num_items) % 2.0
    ranks = rng.random(num_items)
    flip_model = make_flip_model(ranks, baseline, np.ones(num_items))
    lost = np.where((baseline == 1) & (rng.random(num_items) < 0.5 * np.exp(-ranks / 0.7)), -1.0, 0.0)
    _, evidence = predict(flip_model, no_evidence(), lost)
    right, wrong = evidence
    assert CURVES[int(np.argmax(right))][:2] == (0.5, 0.7)
    assert CURVES[int(np.argmax(wrong))][0] < 0.5  # not one was won


def test_margins_that_say_nothing_are_found_out():
    rng = np.random.default_rng(1)
    flip_model = make_flip_model(rng.random(600), np.ones(600), np.ones(600))
    _, evidence = predict(flip_model, no_evidence(), np.where(rng.random(600) < 0.04, -1.0, 0.0))
    height, decay, _ = CURVES[int(np.argmax(evidence[0]))]
    assert (height, decay) == (0.04, math.inf)


def test_the_curves_priors_sum_to_one_and_count_before_the_first_answer():
    flip_model = make_flip_model(np.array([0.0, 0.4]), np.array([1.0, 0.0]), np.ones(2))
    found, _ = predict(flip_model, no_evidence(), np.zeros(2))
    chances = [sum(prior * max(h * math.exp(-rank / c), LEAST_CHANCE) for h, c, prior in CURVES) for rank in (0.0, 0.4)]
    assert sum(prior for _, _, prior in CURVES) == pytest.approx(1)
    assert found.difference[0] == pytest.approx(-chances[0])
    assert found.ahead[0] == pytest.approx(chances[1] - chances[0])
