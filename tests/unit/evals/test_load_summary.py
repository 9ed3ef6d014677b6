"""Raw results of the benchmark client to figures."""

import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.load.summary import (
    METRICS,
    Slo,
    count_good,
    figure,
    headline_point,
    metrics,
    num_timeouts,
    over_repeats,
    saturating_point,
    summarise,
    t_quantile,
)
from evals.types import LoadPoint, LoadReport, ThetaSlo


def bench(ttfts=(0.1, 0.2), tpot=0.01, output_len=5, errors=None, duration=2.0):
    """What `vllm bench serve --save-detailed` writes, for requests with the given times."""
    errors = errors or [""] * len(ttfts)
    good = [i for i, error in enumerate(errors) if not error]
    tokens = len(good) * output_len
    ms = sorted(ttfts[i] * 1000 for i in good) or [0.0]
    return {
        "duration": duration,
        "completed": len(good),
        "failed": len(errors) - len(good),
        "total_input_tokens": len(good) * 10,
        "total_output_tokens": tokens,
        "request_throughput": len(good) / duration,
        "output_throughput": tokens / duration,
        "total_token_throughput": (tokens + len(good) * 10) / duration,
        "p50_ttft_ms": ms[len(ms) // 2],
        "p99_ttft_ms": ms[-1],
        "p50_tpot_ms": tpot * 1000 if output_len > 1 else 0.0,
        "p99_tpot_ms": tpot * 1000 if output_len > 1 else 0.0,
        "ttfts": list(ttfts),
        "itls": [[tpot] * (output_len - 1)] * len(ttfts),
        "output_lens": [0 if error else output_len for error in errors],
        "errors": errors,
    }


def point(name, rates, mix=(10, 5), concurrency=1):
    repeats = tuple(dict.fromkeys(METRICS) | {"total_tok_per_s": rate, "req_per_s": rate / sum(mix)} for rate in rates)
    return LoadPoint(name, concurrency, *mix, repeats=repeats, num_errors=0)


def test_figures_are_the_clients_own_in_seconds():
    figures = summarise(bench())
    assert set(figures) == set(METRICS)
    assert figures["output_tok_per_s"] == 5.0
    assert figures["total_tok_per_s"] == 15.0
    assert figures["req_per_s"] == 1.0
    assert figures["ttft_p99_s"] == pytest.approx(0.2)
    assert figures["tpot_p50_s"] == pytest.approx(0.01)
    assert figures["goodput_req_per_s"] is None


def test_nothing_completed_is_missing_not_zero():
    figures = summarise(bench(errors=["boom", "timeout: no whole answer within 1 s"]))
    assert figures["num_failed"] == 2.0
    assert figures["num_completed"] == 0.0
    assert all(figures[name] is None for name in METRICS if name not in ("num_failed", "num_completed", "duration_s"))


def test_one_output_token_has_no_time_per_output_token():
    figures = summarise(bench(output_len=1))
    assert figures["tpot_p50_s"] is None
    assert figures["ttft_p50_s"] is not None


def test_timeouts_are_told_from_other_errors():
    raw = bench(ttfts=(0.1, 0.2, 0.3), errors=["", "refused", "timeout: no whole answer within 1 s"])
    assert num_timeouts(raw) == 1
    assert summarise(raw)["num_failed"] == 2.0


def test_goodput_counts_requests_that_hold_every_limit():
    raw = bench(ttfts=(0.1, 0.2, 0.3), tpot=0.02)
    assert count_good(raw, Slo(ttft_s=0.25)) == 2
    assert count_good(raw, Slo(ttft_s=0.25, tpot_s=0.01)) == 0
    assert count_good(raw, Slo(tpot_s=0.03)) == 3
    assert summarise(raw, Slo(ttft_s=0.25))["goodput_req_per_s"] == 1.0


def test_failed_requests_are_never_good():
    assert count_good(bench(errors=["", "boom"]), Slo(ttft_s=9.0)) == 1


def test_one_repeat_has_no_interval():
    one = over_repeats([3.0])
    assert one is not None
    assert (one.value, one.lo, one.hi) == (3.0, None, None)
    assert "one repeat" in one.method


def test_zero_is_averaged_as_it_is():
    mean = over_repeats([0.0, 2.0])
    assert mean is not None
    assert mean.value == 1.0
    assert mean.method.startswith("mean")


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e6), min_size=2, max_size=8))
def test_interval_holds_the_value_and_stays_positive(values):
    mean = over_repeats(values)
    assert mean is not None
    assert 0 <= mean.lo <= mean.value <= mean.hi
    assert min(values) * 0.999 <= mean.value <= max(values) * 1.001


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 1e4), min_size=2, max_size=6))
def test_the_mean_of_inverses_is_the_inverse_of_the_mean(values):
    rate, time = over_repeats(values), over_repeats([1 / value for value in values])
    assert math.isclose(rate.value * time.value, 1.0, rel_tol=1e-9)
    assert math.isclose(math.log(rate.hi) + math.log(time.lo or 1e-300), 0, abs_tol=1e-6) or time.lo == 0


def test_interval_covers_the_truth_as_often_as_it_says():
    import numpy as np

    rng = np.random.default_rng(7)
    runs = np.exp(rng.normal(math.log(300), 0.05, size=(2000, 3)))
    hits = sum(fig.lo <= 300 <= fig.hi for fig in (over_repeats(list(run)) for run in runs))
    assert abs(hits / 2000 - 0.95) < 0.02


def test_saturation_is_the_largest_throughput_of_the_headline_mix():
    slow, fast = point("c1", [100.0, 110.0]), point("c8", [300.0, 310.0], concurrency=8)
    other = point("c8-other", [900.0, 910.0], mix=(256, 8), concurrency=8)
    report = LoadReport("quick", (slow, fast, other), mix=(10, 5))
    assert saturating_point(report) is fast
    assert saturating_point(LoadReport("quick", (slow, other))) is slow


def test_a_shared_prefix_is_no_headline():
    plain, shared = point("c8", [100.0]), dataclasses.replace(point("c8-prefix0.9", [300.0]), prefix_share=0.9)
    assert saturating_point(LoadReport("prefix", (shared, plain))) is plain
    assert saturating_point(LoadReport("prefix", (shared,))) is shared


def test_no_throughput_no_saturation():
    dead = LoadPoint("c1", 1, 10, 5, (dict.fromkeys(METRICS),), num_errors=4)
    assert saturating_point(LoadReport("quick", (dead,))) is None
    assert metrics(LoadReport("quick", (dead,))) == {"load/quick/c1/num_errors": 4.0}


def test_flat_names():
    flat = metrics(LoadReport("quick", (point("c1-10x5", [100.0, 100.0]),)))
    assert flat["load/quick/total_tok_per_s"] == pytest.approx(100.0)
    assert flat["load/quick/c1-10x5/total_tok_per_s.lo"] == pytest.approx(100.0)
    assert "load/quick/ttft_p50_s" not in flat


def test_the_headline_stands_at_theta_slo_where_it_was_searched():
    loop, held = point("c16", [300.0], concurrency=16), dataclasses.replace(point("rps2", [200.0]), request_rate=2.0)
    found = LoadReport("slo", (loop, held), theta_slo=ThetaSlo(2.0, 0.2, 2.0, 2.2, 6))
    assert headline_point(found) is held
    assert headline_point(dataclasses.replace(found, theta_slo=None)) is loop
    assert headline_point(dataclasses.replace(found, theta_slo=ThetaSlo(2.0, 0.2, None, 1.0, 6))) is None
    flat = metrics(found)
    assert flat["load/slo/total_tok_per_s"] == flat["load/slo/rps2/total_tok_per_s"] == pytest.approx(200)
    ends = [flat[f"load/slo/theta_slo_req_per_s{end}"] for end in ("", ".lo", ".hi")]
    assert ends == [2.0, 2.0, 2.2]


def test_counters_are_means_of_what_was_read():
    counted = dataclasses.replace(
        point("c1", [1.0, 1.0]), counters=({"num_preemptions": 2.0, "gpu_energy_j": None}, {"num_preemptions": 4.0})
    )
    flat = metrics(LoadReport("quick", (counted,)))
    assert flat["load/quick/c1/num_preemptions"] == 3.0
    assert not [name for name in flat if "gpu_energy" in name]


def test_unknown_metric_is_a_defect():
    with pytest.raises(KeyError, match="tok_per_hour"):
        figure(point("c1", [1.0]), "tok_per_hour")


@settings(deadline=None)
@given(st.floats(0.51, 0.9999), st.floats(0.5, 5000))
def test_students_quantile_is_scipys(probability, degrees):
    from scipy.special import stdtrit

    assert t_quantile(probability, degrees) == pytest.approx(stdtrit(degrees, probability), rel=1e-7, abs=1e-7)
