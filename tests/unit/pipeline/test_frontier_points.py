"""Recorded runs as the frontier's points: a candidate beside the baseline that it was measured with."""

import math

import numpy as np
import pytest

from evals.decide.frontier import analyze
from pipeline.record.frontier_runs import RecordedRun, RunData, RunInfo
from pipeline.record.tags import COMPARISON_GROUP, FRONTIER_GROUP
from pipeline.report.frontier import baseline_indices, resamples_of, spreads_of, unique_points

ALONE = {"quality/mean": 0.5, "quality/mean.lo": 0.4, "quality/mean.hi": 0.6, "quality/num_items": 100.0}
HOUR = {"cost/usd_per_hour": 2.0, "cost/usd_per_hour.lo": 1.0, "cost/usd_per_hour.hi": 3.0}


def run(name, usd, role="candidate", group="g", method="", **metrics):
    cost = {"cost/usd_per_1k_tokens": usd, "cost/usd_per_1k_tokens.lo": usd / 2, "cost/usd_per_1k_tokens.hi": usd * 2}
    tags = {"role": role, "label": name, COMPARISON_GROUP: group, FRONTIER_GROUP: "f", "quality_method": method}
    named = {key.replace("__", "/").replace("_at_", "."): value for key, value in metrics.items()}
    return RecordedRun(RunInfo(name, 0), RunData({**ALONE, **HOUR, **cost, **named}, tags))


RATIO = {"price__ratio": 0.9, "price__ratio_at_lo": 0.85, "price__ratio_at_hi": 0.95, "price__num_rounds": 4.0}
LOSS = {"difference_points": -1.0, "difference_points_at_lo": -3.0, "difference_points_at_hi": 1.0}
BASE = run("none", 1.0, "baseline")


def test_a_price_is_the_baselines_times_the_ratio():
    points = unique_points([run("int8", 0.5, **RATIO), BASE])
    money = points[0].usd_per_1k_tokens
    assert float(money.value) == pytest.approx(0.9), "not the 0.5 of one start alone"
    assert float(money.lo) == pytest.approx(0.85 / 2), "with the range of the machine's price"
    assert float(money.hi) == pytest.approx(0.95 * 1.5)
    assert points[1].usd_per_1k_tokens.value == 1


def test_a_run_without_rounds_or_without_its_baseline_keeps_its_own():
    other = run("awq", 0.5, group="another machine", **RATIO)
    points = unique_points([run("old", 0.7), other, BASE])
    assert [float(point.usd_per_1k_tokens.value) for point in points] == [0.7, 0.5, 1.0]
    assert baseline_indices([run("old", 0.7), other, BASE]) == [2, None, None]


def test_only_a_stopped_candidates_quality_is_the_baselines_plus_the_difference():
    stopped = run("a", 1.0, method="confidence sequence 95%, tasks combined", **LOSS)
    complete = run("b", 1.0, method="Wilson 95%", **LOSS)
    points = unique_points([stopped, complete, BASE])
    assert (points[0].quality.value, points[0].quality.lo, points[0].quality.hi) == pytest.approx((0.49, 0.47, 0.51))
    assert points[1].quality.value == 0.5


def test_spreads_come_from_the_recorded_intervals():
    runs = [run("int8", 0.5, **RATIO, **LOSS), BASE]
    points = unique_points(runs)
    ratios, differences = spreads_of(points, runs)
    assert set(ratios) == set(differences) == {"int8"}
    assert ratios["int8"].baseline == "none"
    assert ratios["int8"].degrees == 3
    assert ratios["int8"].standard_error == pytest.approx(math.log(0.95 / 0.85) / 2 / 3.182446, rel=1e-4)
    assert differences["int8"].standard_error == pytest.approx(0.04 / 2 / 1.96, rel=1e-3)
    resamples = resamples_of(runs, None)
    assert resamples.cost_ratios == ratios, "also where no evidence is read"
    found = analyze(points, np.random.default_rng(0), resamples)
    assert found.probability[0] > 0.9
