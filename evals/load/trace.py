"""Recorded traffic: when requests arrived and how long they were, from a CSV. Pure but for reading that file.

The columns are those of the Azure LLM inference traces: TIMESTAMP, ContextTokens, GeneratedTokens. The prompts are not
in a trace; random tokens of the recorded number stand in for them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from core.environments import CODE
from core.errors import ConfigError

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
CHUNK_TOKENS = 16
"""Tokens of a prompt that share one hash in vLLM's trace format; every hash of ours is new: no prefix is shared."""


@dataclass(frozen=True)
class Arrival:
    """One request of a trace."""

    arrival_s: float
    """Seconds after the first request of the file."""
    input_tokens: int
    output_tokens: int


def trace_path(name: str) -> Path:
    """The file of a trace: one of the product's own (`evals/load/data/...`), else one of the user's."""
    packaged = CODE / name
    return packaged if packaged.is_file() else Path(name)


def read_trace(path: Path) -> list[Arrival]:
    """All requests of a trace, in the order of time.

    Raises:
        ConfigError: the file cannot be read or a row cannot be replayed; names the line and the reason.

    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"load.trace.path: {path} cannot be read: {error}") from error
    reader = csv.DictReader(text.splitlines())
    absent = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if absent:
        raise ConfigError(f"load.trace.path: {path} has no column {', '.join(absent)}; needed: {', '.join(COLUMNS)}")
    arrivals: list[Arrival] = []
    first: datetime | None = None
    for row in reader:
        try:
            time, inputs, outputs = (row[column] or "" for column in COLUMNS)
            moment = _moment(time)
            first = first or moment
            arrival = Arrival((moment - first).total_seconds(), int(inputs), int(outputs))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"load.trace.path: {path}, line {reader.line_num}: {error}") from error
        _check(arrival, arrivals, f"load.trace.path: {path}, line {reader.line_num}")
        arrivals.append(arrival)
    if not arrivals:
        raise ConfigError(f"load.trace.path: {path} has no request")
    return arrivals


def _moment(text: str) -> datetime:
    """A time with up to seven digits of a second, of which Python keeps six."""
    whole, dot, fraction = text.partition(".")
    return datetime.fromisoformat(whole + (dot + fraction[:6].ljust(6, "0") if dot else ""))


def _check(arrival: Arrival, earlier: Sequence[Arrival], where: str) -> None:
    if arrival.input_tokens < 1 or arrival.output_tokens < 1:
        raise ConfigError(
            f"{where}: {arrival.input_tokens} input and {arrival.output_tokens} output tokens; at least 1"
        )
    if earlier and arrival.arrival_s < earlier[-1].arrival_s:
        raise ConfigError(f"{where}: arrives before the line above it; sort the file by time")


def choose(arrivals: Sequence[Arrival], num_requests: int, max_tokens: int | None) -> tuple[list[Arrival], int]:
    """The first requests that fit into the model's length, with times from zero, and how many were passed over.

    >>> choose([Arrival(5.0, 10, 5), Arrival(6.0, 999, 5), Arrival(8.0, 20, 5)], 2, 100)[0][1]
    Arrival(arrival_s=3.0, input_tokens=20, output_tokens=5)
    """
    chosen: list[Arrival] = []
    num_passed = 0
    for arrival in arrivals:
        if len(chosen) == num_requests:
            break
        if max_tokens is not None and arrival.input_tokens + arrival.output_tokens > max_tokens:
            num_passed += 1
            continue
        chosen.append(arrival)
    if not chosen:
        return [], num_passed
    start = chosen[0].arrival_s
    return [Arrival(item.arrival_s - start, item.input_tokens, item.output_tokens) for item in chosen], num_passed


def trace_lines(arrivals: Sequence[Arrival], speed: float, seed: int) -> str:
    """The requests in the form that vLLM's `timed_trace` data set reads; `seed` makes the prompts."""
    lines = []
    for index, arrival in enumerate(arrivals):
        num_chunks = -(-arrival.input_tokens // CHUNK_TOKENS)
        lines.append(
            json.dumps(
                {
                    "timestamp": arrival.arrival_s / speed,
                    "input_length": arrival.input_tokens,
                    "output_length": arrival.output_tokens,
                    "hash_ids": [f"{seed}/{index}/{chunk}" for chunk in range(num_chunks)],
                }
            )
        )
    return "\n".join(lines) + "\n"
