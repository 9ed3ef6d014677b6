"""What a load scenario measures: points, repeats and limits, checked before anything starts. Pure.

A scenario is a list of points, and for two kinds a search that adds points as it learns: `sweep` raises the
concurrency until the throughput is flat, `slo` searches the largest Poisson rate that meets a latency objective.

>>> scenario = from_config({"name": "one", "num_repeats": 2, "points": [
...     {"concurrency": 1, "input_tokens": 128, "output_tokens": 64, "num_requests": 3}]})
>>> scenario.points[0].name
'c1-128x64'
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from core.errors import ConfigError, closest
from evals.load.summary import Slo

PartT = TypeVar("PartT")


@dataclass(frozen=True)
class PointSpec:
    """One setting of the load generator: fixed lengths, and either a concurrency or a Poisson rate."""

    input_tokens: int
    """Tokens of each prompt."""
    output_tokens: int
    """Tokens generated for each request; the end-of-sequence token is ignored."""
    num_requests: int
    """Requests of one repeat."""
    concurrency: int | None = None
    """Most requests in flight; null: no limit (all requests at once, or as many as a rate or a trace brings)."""
    request_rate: float | None = None
    """Offered requests per second (Poisson arrivals); null sends as fast as `concurrency` allows."""
    prefix_share: float = 0.0
    """Share of each prompt that is common to all requests."""
    trace: str | None = None
    """The recorded traffic that sets lengths and times, by its digest; the lengths above are then its means."""
    trace_speed: float = 1.0
    """How much faster than recorded the trace is replayed."""

    @property
    def name(self) -> str:
        """Made from the setting alone: `c8-128x64`, `rps2.5-128x64`, `c8-512x64-prefix0.5`, `trace-x2-1024x211`."""
        if self.trace is not None:
            load = f"trace-x{self.trace_speed:g}"
        elif self.request_rate is not None:
            load = f"rps{self.request_rate:.4g}"
        else:
            load = f"c{self.concurrency or 'all'}"
        prefix = f"-prefix{self.prefix_share:g}" if self.prefix_share else ""
        return f"{load}-{self.input_tokens}x{self.output_tokens}{prefix}"

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the common prefix."""
        return round(self.prefix_share * self.input_tokens)

    @property
    def is_open_loop(self) -> bool:
        """Whether requests arrive at times of their own, whatever the server does."""
        return self.request_rate is not None or self.trace is not None


@dataclass(frozen=True)
class Sweep:
    """Raise the concurrency (1, 2, 4, ...) until the throughput is flat."""

    input_tokens: int
    output_tokens: int
    max_concurrency: int = 256
    """Where to stop at the latest; more than the server's max_num_seqs only makes a queue."""
    requests_per_slot: int = 2
    """Requests of one repeat for each request in flight; at least `min_requests` in all."""
    min_requests: int = 4
    flat_gain: float = 0.05
    """A doubling that adds less than this share of throughput ends the sweep."""


@dataclass(frozen=True)
class SloSearch:
    """Search theta_slo, the largest Poisson rate that meets the objective, by bisection."""

    input_tokens: int
    output_tokens: int
    slo_ttft_p99_s: float | None = None
    """Limit on the 99th percentile of the time to first token, in seconds; null sets none."""
    slo_tpot_p99_s: float | None = None
    """Limit on the 99th percentile of the time per output token, in seconds; null sets none."""
    capacity_concurrency: int = 32
    """Requests in flight at the first point, whose rate is the search's upper end."""
    point_duration_s: float = 30.0
    """Arrivals last about this long at each rate; shorter ones hide a queue that grows."""
    min_requests: int = 30
    max_requests: int = 2000
    tolerance: float = 0.1
    """The search ends when the failing rate is at most this share above the rate that meets the objective."""
    max_points: int = 8
    """Most load points, the first one included."""

    @property
    def slo(self) -> Slo:
        """The objective."""
        return Slo(self.slo_ttft_p99_s, self.slo_tpot_p99_s)


@dataclass(frozen=True)
class TraceReplay:
    """Replay recorded traffic: arrival times and lengths from a CSV."""

    path: str
    """The CSV, with the columns of `evals.load.trace`; a relative path starts at the repository's root."""
    num_requests: int = 100
    """The first so many requests that fit."""
    speed: float = 1.0
    """How much faster than recorded they arrive; 0.1 is ten times slower."""
    max_tokens: int = 2048
    """Requests of more tokens, input and output together, are passed over and counted."""


@dataclass(frozen=True)
class LoadScenario:
    """What to measure, how often, and for which mix of lengths the headline stands."""

    name: str
    """Name of this choice: part of the metric names `load/<name>/...`."""
    points: tuple[PointSpec, ...] = ()
    """Points that are always measured, in this order."""
    sweep: Sweep | None = None
    """Adds points of rising concurrency."""
    search: SloSearch | None = None
    """Adds points of a bisection for theta_slo."""
    trace: TraceReplay | None = None
    """Adds one point that replays recorded traffic."""
    num_repeats: int = 3
    """Repeats of each point, each with prompts of its own; intervals need at least 2."""
    mix: tuple[int, int] | None = None
    """Input and output tokens of the mix that headline prices speak of; null takes the first point's."""
    request_timeout_s: float = 300.0
    """A request that has not ended by then counts as failed."""
    warmup_output_tokens: int = 16
    """Each point starts with one discarded round of `concurrency` requests of at most this many output tokens."""


def from_config(config: Mapping[str, Any]) -> LoadScenario:
    """Check a `load=` configuration.

    Raises:
        ConfigError: an unknown key, or a value that cannot be measured; names the key, the value and what is allowed.

    """
    values = dict(config)
    _known_keys("load", values, LoadScenario)
    points = tuple(_point(f"load.points[{index}]", raw) for index, raw in enumerate(values.pop("points", None) or ()))
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"load.points: '{name}' is listed {names.count(name)} times; list each point once")
    sweep = _part("load.sweep", values.pop("sweep", None), Sweep)
    search = _part("load.search", values.pop("search", None), SloSearch)
    trace = _part("load.trace", values.pop("trace", None), TraceReplay)
    mix = values.pop("mix", None)
    scenario = LoadScenario(
        points=points, sweep=sweep, search=search, trace=trace, mix=None if mix is None else _mix(mix), **values
    )
    _check_scenario(scenario)
    return scenario


def describe_load(scenario: LoadScenario) -> str:
    """What a scenario measures, in a line.

    >>> describe_load(from_config({"name": "slo", "search": {
    ...     "input_tokens": 128, "output_tokens": 64, "slo_ttft_p99_s": 2.0}}))
    'slo: bisection for the largest Poisson rate with p99 TTFT <= 2 s, at most 8 points; 3 repeats each'
    """
    parts = [f"{len(scenario.points)} points"] if scenario.points else []
    if scenario.sweep is not None:
        parts.append(f"concurrency 1, 2, 4, ... until it is flat, at most {scenario.sweep.max_concurrency}")
    if scenario.search is not None:
        slo = scenario.search.slo
        limits = [f"p99 {name} <= {limit:g} s" for name, limit in (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s)) if limit]
        most = f"at most {scenario.search.max_points} points"
        parts.append(f"bisection for the largest Poisson rate with {' and '.join(limits)}, {most}")
    if scenario.trace is not None:
        parts.append(f"{scenario.trace.num_requests} recorded requests at {scenario.trace.speed:g} of their speed")
    return f"{scenario.name}: {'; '.join(parts)}; {scenario.num_repeats} repeats each"


def _check_scenario(scenario: LoadScenario) -> None:
    if not (scenario.points or scenario.sweep or scenario.search or scenario.trace):
        raise ConfigError("load.points: nothing to measure; give at least one point, or a sweep, a search or a trace")
    _at_least("load.num_repeats", scenario.num_repeats, 1)
    _at_least("load.warmup_output_tokens", scenario.warmup_output_tokens, 1)
    _positive("load.request_timeout_s", scenario.request_timeout_s)
    mixes = {
        (part.input_tokens, part.output_tokens) for part in (*scenario.points, scenario.sweep, scenario.search) if part
    }
    if scenario.mix is not None and scenario.mix not in mixes:
        known = ", ".join(str(list(mix)) for mix in sorted(mixes))
        raise ConfigError(f"load.mix: no point has {list(scenario.mix)} input and output tokens; there are {known}")
    if scenario.search is not None and not scenario.search.slo:
        raise ConfigError(
            "load.search: no objective; give load.search.slo_ttft_p99_s or load.search.slo_tpot_p99_s, in seconds"
        )


def _point(field: str, raw: Mapping[str, object]) -> PointSpec:
    point = _part(field, raw, PointSpec)
    assert point is not None
    if point.trace is not None:
        raise ConfigError(f"{field}.trace: a point has no trace of its own; give load.trace.path")
    if not {"concurrency", "request_rate"} & set(raw):
        raise ConfigError(f"{field}: neither concurrency nor request_rate is given (concurrency: null is all at once)")
    if not 0 <= point.prefix_share < 1:
        raise ConfigError(f"{field}.prefix_share: {point.prefix_share} is not in [0, 1)")
    return point


def _part(field: str, raw: object, kind: type[PartT]) -> PartT | None:
    """A nested dataclass from a mapping; every number in it must be positive, whole where the field is."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{field}: {raw!r} is no mapping; write {{concurrency: 8, input_tokens: 128, ...}}")
    _known_keys(field, raw, kind)
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        where, value = f"{field}.{item.name}", raw.get(item.name)
        required = item.default is dataclasses.MISSING
        if value is None and required:
            raise ConfigError(f"{where}: missing; give {'a file' if item.type == 'str' else 'a whole number above 0'}")
        if value is None or item.name == "prefix_share":
            continue
        if str(item.type).startswith("int"):
            _at_least(where, value, 1)
        elif str(item.type).startswith("float"):
            _positive(where, value)
    return kind(**raw)


def _mix(value: object) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(item, int) for item in value):
        raise ConfigError(f"load.mix: {value!r} is not [input_tokens, output_tokens]")
    return int(value[0]), int(value[1])


def _known_keys(field: str, raw: Mapping[str, object], kind: type) -> None:
    known = [item.name for item in dataclasses.fields(kind)]
    for key in raw:
        if key not in known:
            raise ConfigError(f"{field}.{key}: unknown key{closest(key, known)}; known: {', '.join(known)}")


def _at_least(field: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{field}: {value!r} is not a whole number of at least {least}")


def _positive(field: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{field}: {value!r} is not a number above 0")
