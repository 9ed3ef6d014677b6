import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.cost.crossings import Curve, cheapest, closed_loop, crossings
from evals.types import LoadPoint, LoadReport, Price

LOADS = (1.0, 2.0, 4.0, 8.0)
figures = st.lists(st.floats(0.01, 100), min_size=4, max_size=4)


def curve(name: str, values: list[float]) -> Curve:
    return Curve(name, tuple(zip(LOADS, values, strict=True)))


@given(figures, figures)
def test_at_a_crossing_both_cost_the_same_and_around_it_not(a: list[float], b: list[float]) -> None:
    first, second = curve("a", a), curve("b", b)
    found = crossings(first, second)
    assert list(found) == sorted(found)
    for load in found:
        one, other = first.at(load), second.at(load)
        assert one is not None
        assert other is not None
        assert math.isclose(one, other, rel_tol=1e-6)
    assert found == pytest.approx(crossings(second, first))


@given(st.lists(figures, min_size=1, max_size=4), st.floats(0, 3))
def test_the_cheapest_is_below_all_others_wherever_it_is_named(many: list[list[float]], exponent: float) -> None:
    curves = [curve(f"v{number}", values) for number, values in enumerate(many)]
    load = 2**exponent
    ranges = cheapest(curves)
    assert (ranges[0].lo, ranges[-1].hi) == (1.0, 8.0)
    named = [one.name for one in ranges if one.lo <= load <= one.hi]
    prices = {one.name: value for one in curves if (value := one.at(load)) is not None}
    assert min(prices[name] for name in named) <= min(prices.values()) * (1 + 1e-6)


def test_curves_that_only_touch_do_not_cross() -> None:
    assert crossings(curve("a", [2, 1, 2, 2]), curve("b", [1, 1, 1, 1])) == ()


def test_a_published_case_int4_wins_at_small_batches_alone() -> None:
    """Marlin's INT4 kernel against FP16 by batch: 3.1x at 1, 2.3x at 32, 1.0x at 128, 0.74x at 256."""
    fp16 = Curve("fp16", ((1, 100.0), (32, 10.0), (128, 5.0), (256, 4.0)))
    int4 = Curve("int4", ((1, 100 / 3.1), (32, 10 / 2.3), (128, 5.0), (256, 4 / 0.74)))
    assert crossings(fp16, int4) == (128,)
    assert [one.name for one in cheapest([fp16, int4])] == ["int4", "fp16"]


def test_only_loads_that_all_have_are_compared() -> None:
    short = Curve("short", ((2.0, 1.0), (4.0, 1.0)))
    ranges = cheapest([curve("long", [9, 9, 9, 9]), short])
    assert [(one.name, one.lo, one.hi) for one in ranges] == [("short", 2.0, 4.0)]
    assert short.at(8.0) is None
    assert cheapest([short, Curve("elsewhere", ((16.0, 1.0),))]) == ()
    assert cheapest([]) == ()


def test_one_load_is_a_range_of_no_width() -> None:
    (only,) = cheapest([Curve("a", ((8.0, 2.0),)), Curve("b", ((8.0, 1.0),))])
    assert (only.name, only.lo, only.hi) == ("b", 8.0, 8.0)


def test_a_curve_is_made_of_the_mixs_closed_loops_in_order() -> None:
    price = Price("x", Decimal("3.6"), Decimal("3.6"), "on_demand", "", "2026")
    repeats = ({"total_tok_per_s": 100.0},)
    points = (
        LoadPoint("c8", 8, 128, 32, repeats, 0),
        LoadPoint("c1", 1, 128, 32, ({"total_tok_per_s": 50.0},), 0),
        LoadPoint("other mix", 8, 32, 32, repeats, 0),
        LoadPoint("open loop", None, 128, 32, repeats, 0, request_rate=2.0),
        LoadPoint("shared", 4, 128, 32, repeats, 0, prefix_share=0.5),
        LoadPoint("failed", 2, 128, 32, ({"total_tok_per_s": None},), 9),
    )
    found = closed_loop(LoadReport("sweep", points, mix=(128, 32)), price)
    assert [(load, money.value) for load, money in found] == [(1.0, Decimal("0.02")), (8.0, Decimal("0.01"))]
