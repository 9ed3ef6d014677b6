"""Which points come next: sweeps that end when the throughput is flat, and the search for theta at an objective."""

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.load.scenario import LoadScenario, PointSpec, SloSearch, Sweep
from evals.load.search import holds, next_points, theta_slo
from evals.load.summary import METRICS, Slo
from evals.types import LoadPoint

SWEEP = Sweep(128, 64, max_concurrency=64)
SEARCH = SloSearch(128, 64, slo_ttft_p99_s=1.0, capacity_concurrency=32)


def answer(spec, *, num_errors=0, **figures):
    """What a server would answer to a spec: each figure is a value, or a list with one per repeat."""
    num = max((len(value) for value in figures.values() if isinstance(value, list)), default=2)
    repeats = tuple(
        dict.fromkeys(METRICS)
        | {name: value[index] if isinstance(value, list) else value for name, value in figures.items()}
        for index in range(num)
    )
    return LoadPoint(
        spec.name,
        spec.concurrency,
        spec.input_tokens,
        spec.output_tokens,
        repeats,
        num_errors,
        num_requests=spec.num_requests,
        request_rate=spec.request_rate,
    )


def run(scenario, server, limit=50):
    """Ask and answer until the scenario is complete."""
    measured = []
    for _ in range(limit):
        specs = next_points(scenario, measured)
        if not specs:
            return measured
        measured.extend(server(spec) for spec in specs)
    raise AssertionError("the plan has no end")


class Queue:
    """One server: requests wait longer the closer the rate comes to its capacity (a queue's 1 / (1 - load))."""

    def __init__(self, capacity, base_s=0.05, noise=0.0, seed=0):
        self.capacity, self.base_s, self.noise = capacity, base_s, noise
        self.rng = np.random.default_rng(seed)

    def ttft_p99_s(self, rate):
        load = rate / self.capacity
        return 1e3 if load >= 1 else self.base_s * (1 + load / (1 - load))

    def theta(self, limit_s):
        """The rate at which the 99th percentile reaches the limit: base x 1 / (1 - load) = limit."""
        return self.capacity * (1 - self.base_s / limit_s)

    def __call__(self, spec):
        if spec.request_rate is None:
            return answer(spec, req_per_s=[self.capacity, self.capacity])
        noise = np.exp(self.rng.normal(0, self.noise, 3)) if self.noise else np.ones(3)
        return answer(spec, ttft_p99_s=[float(self.ttft_p99_s(spec.request_rate) * n) for n in noise])


def test_fixed_points_come_first_and_once():
    points = (PointSpec(10, 5, 2, concurrency=1), PointSpec(10, 5, 2, concurrency=8))
    scenario = LoadScenario("x", points)
    assert next_points(scenario, []) == points
    assert next_points(scenario, [answer(points[0])]) == points[1:]
    assert next_points(scenario, [answer(point) for point in points]) == ()


def test_a_sweep_doubles_until_the_throughput_is_flat():
    def server(spec):
        return answer(spec, total_tok_per_s=100.0 * min(spec.concurrency, 8))

    measured = run(LoadScenario("sweep", sweep=SWEEP), server)
    assert [point.concurrency for point in measured] == [1, 2, 4, 8, 16]


def test_a_sweep_ends_at_its_limit():
    measured = run(
        LoadScenario("sweep", sweep=SWEEP), lambda spec: answer(spec, total_tok_per_s=spec.concurrency * 1.0)
    )
    assert measured[-1].concurrency == 64


def test_a_sweep_ends_where_nothing_answers():
    measured = run(LoadScenario("sweep", sweep=SWEEP), answer)
    assert [point.concurrency for point in measured] == [1]


def test_a_sweep_sends_enough_requests():
    spec = next_points(LoadScenario("sweep", sweep=SWEEP), [])[0]
    assert spec.num_requests == SWEEP.min_requests


def test_an_objective_holds_only_when_every_limit_does():
    spec = PointSpec(128, 64, 100, request_rate=1.0)
    good = answer(spec, ttft_p99_s=0.5, tpot_p99_s=0.05)
    assert holds(good, Slo(1.0, 0.1))
    assert not holds(good, Slo(0.4, 0.1))
    assert not holds(good, Slo(1.0, 0.04))
    assert not holds(answer(spec, ttft_p99_s=0.5), Slo(1.0, 0.1)), "a missing figure holds nothing"
    assert not holds(answer(spec, ttft_p99_s=0.5, tpot_p99_s=0.05, num_errors=3), Slo(1.0, 0.1))
    assert holds(answer(spec, ttft_p99_s=0.5, tpot_p99_s=0.05, num_errors=2), Slo(1.0, 0.1))


@settings(deadline=None)
@given(st.floats(0.05, 1e4), st.floats(0.01, 0.85))
def test_theta_is_found_within_10_percent_in_8_points(capacity, base_s):
    server = Queue(capacity, base_s)
    measured = run(LoadScenario("slo", search=SEARCH), server)
    found, truth = theta_slo(SEARCH, measured), server.theta(1.0)
    assert len(measured) <= 8
    assert found.num_points == len(measured)
    assert found.held_req_per_s <= truth <= found.failed_req_per_s
    assert found.failed_req_per_s <= 1.101 * found.held_req_per_s
    assert abs(found.req_per_s / truth - 1) < 0.1


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6))
def test_noise_moves_theta_by_no_more_than_it_moves_the_latency(seed):
    server = Queue(20.0, 0.2, noise=0.05, seed=seed)
    measured = run(LoadScenario("slo", search=SEARCH), server)
    found = theta_slo(SEARCH, measured)
    assert len(measured) <= 8
    # 5% noise on three repeats moves the mean p99 by about 3%, and the rate there by under 1%; 4 sigma are allowed.
    assert abs(found.req_per_s / server.theta(1.0) - 1) < 0.14


def test_an_objective_out_of_reach_is_said_to_be():
    server = Queue(10.0, base_s=2.0)
    measured = run(LoadScenario("slo", search=SEARCH), server)
    found = theta_slo(SEARCH, measured)
    assert found.req_per_s is None
    assert "no tested rate meets" in found.reason
    assert min(point.request_rate for point in measured if point.request_rate) == pytest.approx(10.0 / 8)
    assert len(measured) <= 8


def test_an_objective_that_always_holds_is_a_lower_bound():
    measured = run(LoadScenario("slo", search=SEARCH), Queue(10.0, base_s=1e-6))
    found = theta_slo(SEARCH, measured)
    assert found.req_per_s == pytest.approx(10.0, rel=0.1)


def test_a_dead_server_ends_the_search():
    measured = run(LoadScenario("slo", search=SEARCH), answer)
    assert len(measured) == 1
    assert theta_slo(SEARCH, measured).reason == "the server completed no request"


def test_poisson_points_last_as_long_as_asked():
    server = Queue(10.0)
    for point in run(LoadScenario("slo", search=SEARCH), server)[1:]:
        assert point.num_requests >= point.request_rate * SEARCH.point_duration_s
        assert point.num_requests >= SEARCH.min_requests


def test_a_scenario_can_sweep_and_search_and_reuses_what_both_measure():
    server = Queue(10.0)
    scenario = LoadScenario("both", (PointSpec(128, 64, 64, concurrency=32),), search=SEARCH)
    measured = run(scenario, server)
    assert [point.name for point in measured].count("c32-128x64") == 1


def test_planning_costs_nothing():
    start = time.process_time()
    for seed in range(50):
        run(LoadScenario("slo", search=SEARCH), Queue(10.0 * math.exp(seed / 10)))
    assert time.process_time() - start < 2.0
