"""What is recorded of energy and of the split between input and output."""

from __future__ import annotations

from dataclasses import replace

import pytest

from evals.cost.attribution import fit_seconds
from evals.types import LoadPoint, LoadReport
from pipeline.config import EnergyConfig
from pipeline.record.metrics import attribution_metrics, energy_metrics
from pipeline.types import Making
from tests.unit.pipeline.test_decide import cost

REPEAT = {"total_tok_per_s": 100.0, "req_per_s": 1.0, "duration_s": 10.0}


def counted(**joules: float | None) -> LoadReport:
    return LoadReport("quick", (LoadPoint("c8", 8, 80, 20, (REPEAT, REPEAT), 0, counters=(joules, joules)),))


def test_a_tokens_joules_and_what_they_cost() -> None:
    load = counted(gpu_energy_j=300.0, cpu_energy_j=9.0)
    assert energy_metrics(load, EnergyConfig()) == {"load/quick/energy_j_per_token": pytest.approx(0.3)}
    priced = energy_metrics(load, EnergyConfig(usd_per_kwh=0.12, power_usage_effectiveness=1.2))
    assert priced["cost/energy_usd_per_1k_tokens"] == pytest.approx(0.000012)


def test_a_counter_that_could_not_be_read_gives_no_figure() -> None:
    energy = EnergyConfig(usd_per_kwh=0.12)
    assert energy_metrics(counted(gpu_energy_j=None, cpu_energy_j=None), energy) == {}
    only_cpu = energy_metrics(counted(gpu_energy_j=None, cpu_energy_j=100.0), energy)
    assert only_cpu["load/quick/energy_j_per_token"] == pytest.approx(0.1)


def test_the_fit_is_recorded_with_its_residual() -> None:
    fit = fit_seconds([(128, 64), (256, 8), (32, 64), (128, 128)], [1.0, 0.4, 0.7, 1.6])
    assert not isinstance(fit, str)
    found = attribution_metrics(replace(cost("1"), attribution=fit))
    assert found["cost/attribution/relative_residual"] == fit.relative_residual > 0
    assert attribution_metrics(cost("1")) == {}
    exact = fit_seconds([(128, 64), (256, 8), (32, 64)], [1.0, 0.4, 0.7])
    assert not isinstance(exact, str)
    assert "cost/attribution/relative_residual" not in attribution_metrics(replace(cost("1"), attribution=exact))


def test_what_the_making_found_is_recorded_and_what_is_unknown_has_no_metric() -> None:
    making = Making(wall_s=0.0, peak_host_bytes=5, size_metrics={"size/bits_per_weight": 4.5}, distill_curve=[(1, 2.0)])
    assert making.metrics == {"compress/wall_s": 0.0, "compress/peak_host_bytes": 5.0, "size/bits_per_weight": 4.5}
    assert Making().metrics == {}
