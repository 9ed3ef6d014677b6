"""From a load point to the arguments of vLLM's benchmark client. Pure.

Prompts are random tokens. Every repeat of every point has a seed of its own, so that no prompt is sent twice and the
server's prefix cache cannot answer for it; baseline and variant get the same prompts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Container
from pathlib import Path

from core.files import digest_json
from evals.load.client import ClientRun
from evals.load.scenario import LoadScenario, PointSpec
from evals.load.trace import CHUNK_TOKENS
from evals.types import Target

WARMUP = -1
"""In place of a repeat's index: the discarded round before a point."""
WARMUP_PARALLEL = 8
"""Requests in flight of the discarded round before a point without a limit of its own."""


def run_seed(seed: int, point: PointSpec, repeat: int) -> int:
    """The prompts' seed of one repeat: 32 bits that depend on nothing but the arguments."""
    text = f"{seed}/{point.name}/{point.num_requests}/{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def warmup_point(point: PointSpec, scenario: LoadScenario) -> PointSpec:
    """The discarded round before a point: the same prompts' length and parallelism, few output tokens."""
    parallel = point.concurrency or WARMUP_PARALLEL
    return dataclasses.replace(
        point,
        num_requests=min(point.num_requests, parallel),
        output_tokens=min(point.output_tokens, scenario.warmup_output_tokens),
        concurrency=parallel,
        request_rate=None,
        trace=None,
    )


def bench_arguments(target: Target, point: PointSpec, seed: int, trace_file: Path | None = None) -> list[str]:
    """What `vllm bench serve` is told for one run of a point; the place of the result is added by the client.

    `trace_file` contains the requests of a point that replays a trace (see `evals.load.trace.trace_lines`).
    """
    if trace_file is None:
        suffix, prefix = str(point.input_tokens - point.prefix_tokens), str(point.prefix_tokens)
        data = [
            *("--dataset-name", "random", "--random-input-len", suffix, "--random-prefix-len", prefix),
            *("--random-output-len", str(point.output_tokens), "--random-range-ratio", "0"),
        ]
    else:
        data = ["--dataset-name", "timed_trace", "--dataset-path", str(trace_file)]
        data += ["--timed-trace-chunk-hash-size", str(CHUNK_TOKENS)]
    arguments = [
        *("--backend", "openai", "--endpoint", "/v1/completions", "--base-url", target.url),
        *("--model", target.model_name, "--tokenizer", str(target.tokenizer)),
        *data,
        *("--num-prompts", str(point.num_requests), "--seed", str(seed), "--temperature", "0", "--ignore-eos"),
        *("--percentile-metrics", "ttft,tpot,itl", "--metric-percentiles", "50,99", "--ready-check-timeout-sec", "0"),
        "--disable-tqdm",
    ]
    if point.request_rate is not None:
        arguments += ["--request-rate", repr(float(point.request_rate))]
    if point.concurrency is not None:
        arguments += ["--max-concurrency", str(point.concurrency)]
    return arguments


def raw_name(target: Target, scenario: LoadScenario, point: PointSpec, seed: int, repeat: int) -> str:
    """File name of one repeat's raw result: the point's name and a digest of all that can change the measurement."""
    key = digest_json(
        {
            "target": target.speed_digest or target.digest,
            "point": point,
            "request_timeout_s": scenario.request_timeout_s,
            "warmup_output_tokens": scenario.warmup_output_tokens,
            "seed": seed,
        }
    )
    return f"{point.name}-{key[:12]}-r{repeat}.json"


def raw_names(target: Target, scenario: LoadScenario, point: PointSpec, seed: int) -> list[str]:
    """`raw_name` of every repeat."""
    return [raw_name(target, scenario, point, seed, repeat) for repeat in range(scenario.num_repeats)]


def client_runs(
    target: Target,
    scenario: LoadScenario,
    point: PointSpec,
    seed: int,
    *,
    have: Container[str] = (),
    trace_file: Callable[[int], Path] | None = None,
) -> list[ClientRun]:
    """The client's runs for the repeats of a point that are not yet in `have`, after one discarded round.

    `trace_file` gives the requests of a replayed trace for a repeat's seed.
    """
    runs: list[ClientRun] = []
    for repeat, name in enumerate(raw_names(target, scenario, point, seed)):
        if name not in have:
            prompts_seed = run_seed(seed, point, repeat)
            requests = trace_file(prompts_seed) if trace_file is not None and point.trace is not None else None
            runs.append({"result": name, "arguments": bench_arguments(target, point, prompts_seed, requests)})
    if not runs:
        return []
    warmup = bench_arguments(target, warmup_point(point, scenario), run_seed(seed, point, WARMUP))
    return [{"result": None, "arguments": warmup}, *runs]
