"""How many tokens a load scenario sends and asks for, before it runs: the work that its estimate rests on."""

from __future__ import annotations

from evals.load.scenario import LoadScenario, PointSpec, TraceReplay
from evals.load.trace import choose, read_trace, trace_path


def load_tokens(scenario: LoadScenario) -> int:
    """Input and output tokens of all requests of all repeats.

    A sweep is taken to go as far as it may, a search to need all of its points with the fewest requests; a trace's
    requests are read from its file.

    Raises:
        ConfigError: the trace cannot be read.

    """
    one = sum(point.num_requests * (point.input_tokens + point.output_tokens) for point in scenario.points)
    if scenario.trace is not None:
        one += trace_tokens(scenario.trace)
    if scenario.sweep is not None:
        steps = [2**power for power in range(scenario.sweep.max_concurrency.bit_length())]
        requests = sum(max(scenario.sweep.min_requests, scenario.sweep.requests_per_slot * step) for step in steps)
        one += requests * (scenario.sweep.input_tokens + scenario.sweep.output_tokens)
    if scenario.search is not None:
        requests = scenario.search.max_points * scenario.search.min_requests
        one += requests * (scenario.search.input_tokens + scenario.search.output_tokens)
    return one * scenario.num_repeats


def headline_tokens(scenario: LoadScenario) -> int:
    """Input and output tokens of one repeat of the point that the headline's price may rest on: the largest of its mix.

    Raises:
        ConfigError: the trace cannot be read.

    """
    points, sweep = list(scenario.points), scenario.sweep
    if sweep is not None:
        most = max(sweep.min_requests, sweep.requests_per_slot * sweep.max_concurrency)
        points.append(PointSpec(sweep.input_tokens, sweep.output_tokens, most))
    if not points:
        return 0 if scenario.trace is None else trace_tokens(scenario.trace)
    mix = scenario.mix or (points[0].input_tokens, points[0].output_tokens)
    sizes = [point.num_requests for point in points if (point.input_tokens, point.output_tokens) == mix]
    return max(sizes, default=0) * sum(mix)


def trace_tokens(replay: TraceReplay) -> int:
    """Tokens of the requests that a replay sends once."""
    arrivals, _ = choose(read_trace(trace_path(replay.path)), replay.num_requests, replay.max_tokens)
    return sum(arrival.input_tokens + arrival.output_tokens for arrival in arrivals)
