"""Money from throughput: formulas, intervals, attribution, and the published figures that they must give."""

import time
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

import evals.cost.attribution
import evals.cost.curves
import evals.cost.token_cost
import evals.load.counters
import evals.load.scenario
import evals.load.summary
import evals.load.trace
from evals.cost.attribution import fit_seconds, non_negative_least_squares
from evals.cost.curves import (
    compare,
    cost_curve,
    energy_per_token_j,
    energy_usd_per_1k_tokens,
    fleet_view,
    usd_per_1m_output_tokens_at,
)
from evals.cost.token_cost import break_even_tokens, cost_report, money_per, reprice, usd_per_tokens
from evals.load.summary import METRICS, Figure
from evals.types import LoadPoint, LoadReport, Price, ThetaSlo

DOCUMENTED = (
    evals.cost.token_cost,
    evals.cost.curves,
    evals.cost.attribution,
    evals.load.counters,
    evals.load.scenario,
    evals.load.summary,
    evals.load.trace,
)
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


@pytest.mark.parametrize(
    ("usd_per_hour", "tok_per_s", "published"),
    [
        ("6.98", 6237.6, "0.311"),  # Llama-3.1-8B, one H100, bf16
        ("6.98", 8155.1, "0.238"),  # the same, FP8
        ("3.67", 2906.3, "0.351"),  # one A100, FP16
        ("3.67", 2488.5, "0.410"),  # the same, FP8: more expensive
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
        hits += [
            span is not None and span[0] <= known <= span[1] for span, known in zip(intervals, (A, B, C), strict=True)
        ]
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


@settings(deadline=None)
@given(st.floats(0.1, 1e5), st.decimals("0.01", "1000", places=4), st.integers(1, 10**6))
def test_a_token_costs_what_its_share_of_the_hour_costs(tok_per_s, usd_per_hour, num_tokens):
    usd = usd_per_tokens(usd_per_hour, tok_per_s, num_tokens)
    assert float(usd) * tok_per_s * 3600 / num_tokens == pytest.approx(float(usd_per_hour), rel=1e-9)


@settings(deadline=None)
@given(st.floats(0.1, 1e4), st.floats(1.0, 3.0), st.decimals("0.05", "1", places=3))
def test_busier_is_never_dearer(rate, spread, utilisation):
    figure = Figure(rate, rate / spread, rate * spread, 3, "")
    idle, busy = money_per(PRICE, figure, 1000, utilisation), money_per(PRICE, figure, 1000)
    assert idle.value >= busy.value
    assert busy.lo <= busy.value <= busy.hi


@settings(deadline=None)
@given(st.decimals("0", "100", places=4), st.decimals("0", "100", places=4))
def test_break_even_is_where_the_saving_has_paid(compress_usd, eval_usd):
    tokens = break_even_tokens(compress_usd, eval_usd, Decimal("0.9e-6"), Decimal("0.7e-6"))
    assert tokens * Decimal("0.2e-6") == pytest.approx(compress_usd + eval_usd)
    assert break_even_tokens(compress_usd, eval_usd, Decimal("0.5e-6"), Decimal("0.7e-6")) == Decimal("Infinity")


@pytest.mark.parametrize(("offered", "measured"), [(1, 7.599), (10, 0.787)])
def test_the_curve_below_saturation_is_within_5_percent_of_the_published_one(offered, measured):
    usd = usd_per_1m_output_tokens_at(Decimal("6.98"), offered, output_tokens=256)
    assert float(usd) == pytest.approx(measured, rel=0.05)


def theta(held, failed):
    return ThetaSlo(2.0, 0.2, held, failed, 6, "" if held else "no tested rate meets the objective")


def test_the_headline_stands_on_theta_where_there_is_one():
    load = LoadReport("slo", (linear_point((128, 64)),), theta_slo=theta(2.0, 2.1))
    report = cost_report(load, PRICE, Decimal("0.5"))
    expected = float(PRICE.usd_per_hour) / 3600 / 2.0 * 1000 / 0.5
    assert float(report.usd_per_1k_requests.value) == pytest.approx(expected)
    assert float(report.usd_per_1k_tokens.value) == pytest.approx(expected / 192)
    assert float(report.usd_per_1k_requests.lo) == pytest.approx(8.5 / 3600 / 2.1 * 1000 / 0.5)
    assert "p99 TTFT <= 2 s and p99 TPOT <= 0.2 s" in report.basis
    assert report.peak_usd_per_1k_tokens.value < report.usd_per_1k_tokens.value


def test_an_objective_that_nothing_holds_has_no_headline_but_a_peak():
    report = cost_report(LoadReport("slo", (linear_point((128, 64)),), theta_slo=theta(None, 0.5)), PRICE)
    assert report.usd_per_1k_tokens is None
    assert "no tested rate" in report.missing["usd_per_1k_tokens"]
    assert report.peak_usd_per_1k_tokens is not None


@settings(deadline=None)
@given(st.decimals("0.1", "50", places=3), st.decimals("0", "20", places=3), st.decimals("0.05", "1", places=3))
def test_repricing_equals_pricing_anew(low, more, utilisation):
    other = Price("x", low, low + more, "spot", "", "2026")
    points = tuple(linear_point(mix, (0.98, 1.0, 1.03)) for mix in [(128, 64), (256, 8), (32, 64)])
    load = LoadReport("quick", points)
    moved, anew = reprice(cost_report(load, PRICE), other, utilisation), cost_report(load, other, utilisation)
    for name in ("usd_per_1k_tokens", "usd_per_1k_input_tokens", "usd_per_1k_requests", "peak_usd_per_1k_tokens"):
        for part in ("value", "lo", "hi"):
            assert float(getattr(getattr(moved, name), part)) == pytest.approx(
                float(getattr(getattr(anew, name), part))
            )


def test_ten_thousand_runs_are_repriced_in_two_seconds():
    report = cost_report(LoadReport("quick", tuple(linear_point(m) for m in [(128, 64), (256, 8), (32, 64)])), PRICE)
    other = Price("x", Decimal("1.00"), Decimal("1.20"), "spot", "", "2026")
    start = time.process_time()
    for _ in range(10_000):
        reprice(report, other)
    assert time.process_time() - start < 2.0


def test_the_curve_falls_with_the_load_and_leaves_other_mixes_out():
    points = tuple(point((128, 64), [rate] * 3, concurrency=c) for c, rate in [(8, 4.0), (1, 1.0), (2, 1.9)])
    curve = cost_curve(LoadReport("sweep", (*points, linear_point((256, 8))), mix=(128, 64)), PRICE)
    assert [item.name for item in curve] == ["c1-128x64", "c2-128x64", "c8-128x64"]
    costs = [item.usd_per_1k_tokens.value for item in curve]
    assert costs == sorted(costs, reverse=True)
    assert float(curve[0].usd_per_1m_output_tokens.value) == pytest.approx(10.25 / 3600 / 64 * 1e6)


def test_the_report_names_the_loads_at_which_a_variant_is_cheaper():
    def report(rates):
        return LoadReport(
            "sweep", tuple(point((128, 64), [r * n for n in (0.99, 1.0, 1.01)], c) for c, r in rates.items())
        )

    baseline, variant = report({1: 1.0, 8: 4.0, 64: 8.0}), report({1: 2.0, 8: 4.02, 64: 6.0, 128: 6.1})
    verdicts = {item.name: item.verdict for item in compare(baseline, variant)}
    assert verdicts == {
        "c1-128x64": "cheaper",
        "c8-128x64": "not significantly different",
        "c64-128x64": "more expensive",
    }
    assert compare(baseline, variant)[0].ratio == pytest.approx(0.5)
    expensive_machine = compare(baseline, variant, price_ratio=4.0)
    assert {item.verdict for item in expensive_machine} == {"more expensive"}


def test_one_repeat_tells_nothing_apart():
    one = LoadReport("sweep", (point((128, 64), [1.0]),))
    assert "at least 2 repeats" in compare(one, LoadReport("sweep", (point((128, 64), [9.0]),)))[0].verdict


def test_fleet_prices_whole_machines():
    cheap = Price("l4-24gb", Decimal("0.70"), Decimal("0.90"), "on_demand", "", "2026")
    expensive = Price("h100-80gb", Decimal("8.50"), Decimal("12.00"), "on_demand", "", "2026")
    assert "cheaper machine: l4-24gb instead of h100-80gb" in fleet_view(2.0, (5.0, expensive), (3.0, cheap)).verdict
    slower = fleet_view(9.0, (5.0, cheap), (4.0, cheap))
    assert (slower.num_baseline, slower.num_variant) == (2, 3)
    assert slower.verdict.startswith("costs more: 3 instead of 2 machines")
    assert slower.saving_usd_per_hour == Decimal("-0.80")
    assert fleet_view(10.0, (5.0, cheap), (5.0, cheap)).num_baseline == 2


@settings(deadline=None)
@given(st.floats(0.1, 1e4), st.floats(0.01, 100), st.floats(1.0, 4.0))
def test_a_faster_variant_never_needs_more_machines(peak, theta_0, faster):
    price = Price("x", Decimal(1), Decimal(1), "on_demand", "", "2026")
    view = fleet_view(peak, (theta_0, price), (theta_0 * faster, price))
    assert view.num_variant <= view.num_baseline
    assert view.num_variant >= 1


def test_energy_is_none_where_it_was_not_read():
    measured = point((128, 64), [2.0, 2.0])
    assert energy_per_token_j(measured) is None
    repeats = tuple(repeat | {"duration_s": 10.0} for repeat in measured.repeats)
    read = LoadPoint("c8", 8, 128, 64, repeats, 0, counters=({"gpu_energy_j": 384.0}, {"gpu_energy_j": 384.0}))
    assert energy_per_token_j(read).value == pytest.approx(0.1)
    assert energy_usd_per_1k_tokens(3_600_000.0, 1000, Decimal("0.10")) == Decimal("0.1")


@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_small_least_squares_is_scipys(seed: int, num_rows: int, num_columns: int) -> None:
    """All sets of columns instead of an active set: the same minimum."""
    rng = np.random.default_rng(seed)
    design, target = rng.normal(size=(num_rows, num_columns)), rng.normal(size=num_rows)
    found, (best, residual) = non_negative_least_squares(design, target), nnls(design, target)
    assert np.all(found >= 0)
    assert np.linalg.norm(design @ found - target) == pytest.approx(residual, abs=1e-9)
    if np.linalg.matrix_rank(design) == num_columns:
        assert found == pytest.approx(best, abs=1e-6)
