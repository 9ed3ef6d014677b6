"""What a load scenario measures: points, repeats and limits, checked before anything starts. Pure.

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
from typing import Any

from common.errors import ConfigError, closest


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
    """Most requests in flight; null with a `request_rate`: as many as arrive."""
    request_rate: float | None = None
    """Offered requests per second (Poisson arrivals); null sends as fast as `concurrency` allows."""
    prefix_share: float = 0.0
    """Share of each prompt that is common to all requests."""

    @property
    def name(self) -> str:
        """Made from the setting alone: `c8-128x64`, `rps2.5-128x64`, `c8-512x64-prefix0.5`."""
        load = f"c{self.concurrency or 'all'}" if self.request_rate is None else f"rps{self.request_rate:g}"
        prefix = f"-prefix{self.prefix_share:g}" if self.prefix_share else ""
        return f"{load}-{self.input_tokens}x{self.output_tokens}{prefix}"

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the common prefix."""
        return round(self.prefix_share * self.input_tokens)


@dataclass(frozen=True)
class LoadScenario:
    """What to measure, how often, and for which mix of lengths the headline stands."""

    name: str
    """Name of this choice: part of the metric names `load/<name>/...`."""
    points: tuple[PointSpec, ...]
    """The points, in the order in which they are measured."""
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
    raw_points = values.pop("points", None)
    if not raw_points:
        raise ConfigError("load.points: no load point given; allowed: a list with at least one")
    points = tuple(_point(f"load.points[{index}]", raw) for index, raw in enumerate(raw_points))
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"load.points: '{name}' is listed {names.count(name)} times; list each point once")
    mix = values.pop("mix", None)
    scenario = LoadScenario(points=points, mix=None if mix is None else _mix(mix), **values)
    _check_scenario(scenario)
    return scenario


def _check_scenario(scenario: LoadScenario) -> None:
    _at_least("load.num_repeats", scenario.num_repeats, 1)
    _at_least("load.warmup_output_tokens", scenario.warmup_output_tokens, 1)
    _positive("load.request_timeout_s", scenario.request_timeout_s)
    mixes = {(point.input_tokens, point.output_tokens) for point in scenario.points}
    if scenario.mix is not None and scenario.mix not in mixes:
        known = ", ".join(str(list(mix)) for mix in sorted(mixes))
        raise ConfigError(f"load.mix: no point has {list(scenario.mix)} input and output tokens; there are {known}")


def _point(field: str, raw: Mapping[str, Any]) -> PointSpec:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{field}: {raw!r} is no mapping; write {{concurrency: 8, input_tokens: 128, ...}}")
    _known_keys(field, raw, PointSpec)
    for key in ("input_tokens", "output_tokens", "num_requests"):
        if key not in raw:
            raise ConfigError(f"{field}.{key}: missing; give a whole number of at least 1")
    point = PointSpec(**raw)
    for key in ("input_tokens", "output_tokens", "num_requests"):
        _at_least(f"{field}.{key}", getattr(point, key), 1)
    if point.concurrency is None and point.request_rate is None:
        raise ConfigError(f"{field}: neither concurrency nor request_rate is given; give one of them")
    if point.concurrency is not None:
        _at_least(f"{field}.concurrency", point.concurrency, 1)
    if point.request_rate is not None:
        _positive(f"{field}.request_rate", point.request_rate)
    if not 0 <= point.prefix_share < 1:
        raise ConfigError(f"{field}.prefix_share: {point.prefix_share} is not in [0, 1)")
    return point


def _mix(value: Any) -> tuple[int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(item, int) for item in value):
        raise ConfigError(f"load.mix: {value!r} is not [input_tokens, output_tokens]")
    return int(value[0]), int(value[1])


def _known_keys(field: str, raw: Mapping[str, Any], kind: type) -> None:
    known = [item.name for item in dataclasses.fields(kind)]
    for key in raw:
        if key not in known:
            raise ConfigError(f"{field}.{key}: unknown key{closest(key, known)}; known: {', '.join(known)}")


def _at_least(field: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{field}: {value!r} is not a whole number of at least {least}")


def _positive(field: str, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{field}: {value!r} is not a number above 0")
