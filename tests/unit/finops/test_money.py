from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from finops.money import (
    MAX_PICO,
    MoneyError,
    cost_pico,
    from_micro,
    from_pico,
    parse_moment,
    split,
    to_decimal,
    to_micro,
    to_pico,
    to_us,
)


@given(st.integers(-MAX_PICO, MAX_PICO))
def test_pico_units_hold_amounts_exactly(amount):
    assert to_pico(from_pico(amount)) == amount


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_price_times_a_quantity_is_exact(price_micro, quantity_micro):
    price = Decimal(price_micro).scaleb(-6)
    if price * from_micro(quantity_micro) * 10**12 <= MAX_PICO:
        assert from_pico(cost_pico(price, quantity_micro)) == price * from_micro(quantity_micro)


@given(st.integers(-(10**18), 10**18), st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any))
def test_a_split_loses_nothing_and_is_fair_to_one_unit(total, weights):
    parts = split(total, weights)
    assert sum(parts) == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part * sum(weights) - total * weight) < sum(weights)
        assert weight or not part


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1, 3]])
def test_a_split_without_weights_is_refused(weights):
    with pytest.raises(ValueError, match="weights"):
        split(5, weights)


@given(st.lists(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), min_size=2, max_size=6))
def test_lengths_of_consecutive_periods_add_up(moments):
    edges = [to_us(moment.replace(tzinfo=UTC)) for moment in sorted(moments)]
    assert sum(last - first for first, last in itertools.pairwise(edges)) == edges[-1] - edges[0]
    assert all(edge % 3600 == 0 for edge in edges)


def test_a_moment_is_snapped_to_the_nearest_micro_hour():
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert abs(to_us(moment + timedelta(microseconds=1801)) - to_us(moment)) == 3600
    assert to_us(moment + timedelta(microseconds=1799)) == to_us(moment)


@pytest.mark.parametrize("value", [1.5, True, "12,3", "NaN", "Infinity", None])
def test_what_is_not_exact_money_is_refused(value):
    with pytest.raises(MoneyError, match="limit"):
        to_decimal(value, "limit")


def test_amounts_that_a_row_cannot_hold_are_refused():
    with pytest.raises(MoneyError, match="more than 12 decimals"):
        to_pico(Decimal("0.0000000000001"))
    with pytest.raises(MoneyError, match="too large"):
        to_pico(Decimal(10**8))
    with pytest.raises(MoneyError, match="6 decimals"):
        to_micro(Decimal("0.0000001"))
    with pytest.raises(MoneyError, match="no time zone"):
        to_us(datetime(2026, 1, 1))


def test_a_bad_date_names_the_field_and_a_good_one():
    with pytest.raises(UserError, match=r"--from: '31.12.2026'.*2026-10-01"):
        parse_moment("31.12.2026", "--from")
    assert parse_moment("2026-10-01", "--from") == datetime(2026, 10, 1, tzinfo=UTC)
    assert parse_moment("2026-10-01T02:00:00+02:00", "--from") == datetime(2026, 10, 1, tzinfo=UTC)
