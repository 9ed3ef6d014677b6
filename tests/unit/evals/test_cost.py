"""Money from throughput: formulas, intervals, attribution, and the published figures that they must give."""

import doctest
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import evals.cost
import evals.load.scenario
import evals.load.summary
from evals.cost import break_even_tokens, cost_report, fit_seconds, money_per, usd_per_tokens
from evals.load.summary import METRICS, Figure
from evals.types import LoadPoint, LoadReport, Price

PRICE = Price("h100-80gb", Decimal("8.50"), Decimal("12.00"), "on_demand", "test", "2026")
A, B, C = 0.0002, 0.004, 0.01


def point(mix, req_per_s, concurrency=8, name=None):
    repeats = tuple(
        dict.fromkeys(METRICS)
        | {"req_per_s": r, "total_tok_per_s": r * sum(mix), "output_tok_per_s": r * mix[1], "num_completed": 16.0}
        for r in req_per_s
    )
    return LoadPoint(name or f"c{concurrency}-{mix[0]}x{mix[1]}", concurrency, *mix, repeats=repeats, num_errors=0)


def linear_point(mix, noise=(1.0, 1.0, 1.0), concurrency=8):
    return point(mix, [1 / ((A * mix[0] + B * mix[1] + C) * n) for n in noise], concurrency)


def test_worked_examples():
    for module in (evals.cost, evals.load.summary, evals.load.scenario):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


@pytest.mark.parametrize(
    ("usd_per_hour", "tok_per_s", "published"),
    [
        ("6.98", 6237.6, "0.311"),  # Llama-3.1-8B, one H100, bf16
        ("6.98", 8155.1, "0.238"),  # the same, FP8
        ("3.67", 2906.3, "0.351"),  # one A100, FP16
        ("3.67", 2488.5, "0.410"),  # the same, FP8: dearer
    ],
)
def test_published_prices_at_saturation(usd_per_hour, tok_per_s, published):
    usd = usd_per_tokens(Decimal(usd_per_hour), tok_per_s, num_tokens=1_000_000)
    assert round(usd, 3) == Decimal(published)


def test_headline_is_the_peak_over_the_utilisation():
    load = LoadReport("quick", (linear_point((128, 64)),))
    report = cost_report(load, PRICE, Decimal("0.4"))
    rate = 1 / (A * 128 + B * 64 + C)
    expected = float(PRICE.usd_per_hour) / 3600 / (rate * 192) * 1000
    assert float(report.peak_usd_per_1k_tokens.value) == pytest.approx(expected)
    assert float(report.usd_per_1k_tokens.value) == pytest.approx(expected / 0.4)
    assert float(report.usd_per_1k_requests.value) == pytest.approx(expected * 192 / 0.4)
    assert "c8-128x64" in report.basis


def test_the_interval_joins_the_price_range_and_the_repeats():
    load = LoadReport("quick", (linear_point((128, 64), noise=(0.97, 1.0, 1.03)),))
    money = cost_report(load, PRICE).peak_usd_per_1k_tokens
    price_alone = cost_report(LoadReport("quick", (linear_point((128, 64)),)), PRICE).peak_usd_per_1k_tokens
    assert money.lo < price_alone.lo < money.value < price_alone.hi < money.hi
    assert float(price_alone.hi / price_alone.lo) == pytest.approx(12.0 / 8.5)


def test_one_repeat_says_that_its_interval_is_the_prices():
    report = cost_report(LoadReport("quick", (linear_point((128, 64), noise=(1.0,)),)), PRICE)
    assert "one repeat" in report.missing["interval"]


def test_input_and_output_prices_from_three_mixes():
    points = tuple(linear_point(mix) for mix in [(128, 64), (256, 8), (32, 64)])
    report = cost_report(LoadReport("quick", points, mix=(128, 64)), PRICE, Decimal(1))
    per_second = float(PRICE.usd_per_hour) / 3600
    assert float(report.usd_per_1k_input_tokens.value) == pytest.approx(A * per_second * 1000, rel=1e-6)
    assert float(report.usd_per_1k_output_tokens.value) == pytest.approx(B * per_second * 1000, rel=1e-6)
    assert report.attribution.s_per_request == pytest.approx(C, rel=1e-5)
    assert report.attribution.relative_residual < 1e-9


def test_too_few_mixes_is_missing_with_the_reason():
    load = LoadReport("quick", (linear_point((128, 64)), linear_point((256, 8), concurrency=1)))
    report = cost_report(load, PRICE)
    assert report.usd_per_1k_input_tokens is None
    assert "has 1" in report.missing["usd_per_1k_input_tokens"]
    assert report.usd_per_1k_tokens is not None


def test_a_coefficient_at_its_bound_is_missing_not_free():
    mixes = [(128, 64), (256, 8), (32, 64)]
    points = tuple(point(mix, [1 / (B * mix[1])] * 3) for mix in mixes)
    report = cost_report(LoadReport("quick", points), PRICE)
    assert report.usd_per_1k_input_tokens is None
    assert "not separable" in report.missing["usd_per_1k_input_tokens"]
    assert report.usd_per_1k_output_tokens is not None


def test_mixes_that_lie_on_a_line_are_refused():
    assert "tell input, output and request apart" in fit_seconds([(10, 10), (20, 20), (30, 30)], [1.0, 2.0, 3.0])


def test_known_coefficients_lie_in_the_stated_interval():
    rng = np.random.default_rng(11)
    mixes = [(128, 64), (256, 8), (32, 64), (512, 128)] * 3
    truth = np.array([A * i + B * o + C for i, o in mixes])
    hits = np.zeros(3)
    num_fits = 400
    for _ in range(num_fits):
        fit = fit_seconds(mixes, list(truth * np.exp(rng.normal(0, 0.02, len(mixes)))))
        intervals = (fit.s_per_input_token_interval, fit.s_per_output_token_interval, fit.s_per_request_interval)
        hits += [span is not None and span[0] <= known <= span[1] for span, known in zip(intervals, (A, B, C), strict=True)]
    assert np.all(np.abs(hits / num_fits - 0.95) < 0.035), hits / num_fits


def test_nothing_measured_is_missing_not_free():
    dead = LoadPoint("c1-128x64", 1, 128, 64, (dict.fromkeys(METRICS),), num_errors=3)
    report = cost_report(LoadReport("quick", (dead,)), PRICE)
    assert report.usd_per_1k_tokens is None
    assert set(report.missing) == {
        "usd_per_1k_tokens",
        "usd_per_1k_input_tokens",
        "usd_per_1k_output_tokens",
        "usd_per_1k_requests",
        "peak_usd_per_1k_tokens",
    }


@pytest.mark.parametrize("utilisation", ["0", "-0.1", "1.01"])
def test_an_impossible_utilisation_is_refused(utilisation):
    with pytest.raises(ValueError, match="utilisation"):
        cost_report(LoadReport("quick", (linear_point((128, 64)),)), PRICE, Decimal(utilisation))


@given(st.floats(0.1, 1e5), st.decimals("0.01", "1000", places=4), st.integers(1, 10**6))
def test_a_token_costs_what_its_share_of_the_hour_costs(tok_per_s, usd_per_hour, num_tokens):
    usd = usd_per_tokens(usd_per_hour, tok_per_s, num_tokens)
    assert float(usd) * tok_per_s * 3600 / num_tokens == pytest.approx(float(usd_per_hour), rel=1e-9)


@given(st.floats(0.1, 1e4), st.floats(1.0, 3.0), st.decimals("0.05", "1", places=3))
def test_busier_is_never_dearer(rate, spread, utilisation):
    figure = Figure(rate, rate / spread, rate * spread, 3, "")
    idle, busy = money_per(PRICE, figure, 1000, utilisation), money_per(PRICE, figure, 1000)
    assert idle.value >= busy.value
    assert busy.lo <= busy.value <= busy.hi


@given(st.decimals("0", "100", places=4), st.decimals("0", "100", places=4))
def test_break_even_is_where_the_saving_has_paid(compress_usd, eval_usd):
    tokens = break_even_tokens(compress_usd, eval_usd, Decimal("0.9e-6"), Decimal("0.7e-6"))
    assert tokens * Decimal("0.2e-6") == pytest.approx(compress_usd + eval_usd)
    assert break_even_tokens(compress_usd, eval_usd, Decimal("0.5e-6"), Decimal("0.7e-6")) == Decimal("Infinity")
