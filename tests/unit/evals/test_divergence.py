"""Divergence of the choices' probabilities: zero for equal answers, never negative, missing where there are none."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from evals.gate.divergence import divergence
from evals.types import ItemOutcome

LOGS = st.lists(st.floats(-50, 0), min_size=2, max_size=5)


def item(item_id: int, logs: list[float], target: int | str | None = 0) -> ItemOutcome:
    return ItemOutcome(item_id, 1.0, tuple(logs), target)


@given(st.lists(LOGS, min_size=1, max_size=5), st.floats(-3, 3))
def test_a_shift_of_all_choices_changes_the_perplexity_alone(rows: list[list[float]], shift: float) -> None:
    baseline = [item(i, logs) for i, logs in enumerate(rows)]
    candidate = [item(i, [one - shift for one in logs]) for i, logs in enumerate(rows)]
    found = divergence(candidate, baseline)
    assert found is not None
    assert found.kl_nats == pytest.approx(0, abs=1e-9)
    assert found.answer_perplexity_ratio == pytest.approx(math.exp(shift))
    assert found.num_items == len(rows)


@given(LOGS, st.data())
def test_it_is_the_relative_entropy(logs: list[float], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.floats(-50, 0), min_size=len(logs), max_size=len(logs)))
    found = divergence([item(0, other)], [item(0, logs)])
    assert found is not None
    assert found.kl_nats == pytest.approx(rel_entr(softmax(logs), softmax(other)).sum(), abs=1e-9)


def test_two_choices_by_hand() -> None:
    p, q = 0.75, 0.5
    found = divergence([item(0, [math.log(q), math.log(1 - q)])], [item(0, [math.log(p), math.log(1 - p)])])
    assert found is not None
    assert found.kl_nats == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))


def test_what_is_not_there_is_missing() -> None:
    generated = ItemOutcome(0, 1.0, (), "42")
    assert divergence([generated], [generated]) is None
    assert divergence([item(1, [-1, -2])], [item(2, [-1, -2])]) is None
    named = divergence([item(0, [-1, -2], "x")], [item(0, [-1, -2], "x")])
    assert named is not None
    assert named.answer_perplexity_ratio is None
