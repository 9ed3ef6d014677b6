"""Measure a load scenario against a served model, with vLLM's own benchmark client in the serving environment.

One client process makes all runs (importing vLLM takes about 10 s). Every repeat leaves one raw file in
`workdir/raw`, named after all that can change the measurement: a scenario that was interrupted goes on where it
stopped, and a point that another scenario has measured on the same target is not measured again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from common.errors import ToolError
from common.files import read_json, write_atomic, write_json
from evals.load.job import client_runs, raw_name
from evals.load.scenario import LoadScenario, PointSpec
from evals.load.summary import METRICS, Slo, num_timeouts, summarise
from evals.types import LoadPoint, LoadReport, Target

CLIENT = Path(__file__).with_name("client.py")
RAN = "load-client: ran "
FINISHED = "load-client: finished job "


class RunProcess(Protocol):
    """`common.process.run_logged`."""

    def __call__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Run a command to its end; raises ToolError when it fails."""


def run_load(
    target: Target,
    scenario: LoadScenario,
    client_python: Path,
    workdir: Path,
    seed: int,
    *,
    run_process: RunProcess,
    env: Mapping[str, str] | None = None,
    slo: Slo | None = None,
    machine: Mapping[str, Any] | None = None,
    on_run: Callable[[int, int], None] | None = None,
) -> LoadReport:
    """Measure every point of a scenario `num_repeats` times.

    Args:
        target: the served model.
        scenario: the points and how often each is measured.
        client_python: the serving environment's interpreter.
        workdir: keeps raw results (`raw/`), the client's log and its jobs; give the same folder again to resume.
        seed: seed of the prompts; the same for baseline and variant.
        run_process: `common.process.run_logged`.
        env: the client's whole environment (HF_HUB_OFFLINE and the like); None takes ours.
        slo: counts the requests that hold it (goodput).
        machine: what it runs on, kept in the report.
        on_run: told (number of repeats done, number in all) after each repeat.

    Raises:
        ToolError: the client failed. Requests that fail are no error: they are counted in the report.

    """
    raw = workdir / "raw"
    have = {path.name for path in raw.glob("*.json")}
    runs = [run for point in scenario.points for run in client_runs(target, scenario, point, seed, have)]
    num_all = len(scenario.points) * scenario.num_repeats
    if runs:
        done = num_all - sum(run["result"] is not None for run in runs)

        def watch(line: str) -> None:
            nonlocal done
            if line.startswith(RAN) and not line.endswith("warm-up"):
                done += 1
                if on_run is not None:
                    on_run(done, num_all)

        _write_jobs(target, scenario, runs, workdir)
        # PYTHONHASHSEED: vLLM's replay of traces draws prompts from Python's hash of a text.
        whole_env = {**(os.environ if env is None else env), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
        run_process([client_python, CLIENT, workdir], log=workdir / "client.log", env=whole_env, on_line=watch)
    points = tuple(read_point(target, scenario, point, seed, raw=raw, slo=slo) for point in scenario.points)
    return LoadReport(scenario.name, points, dict(machine or {}), scenario.mix)


def _write_jobs(target: Target, scenario: LoadScenario, runs: list[dict[str, Any]], workdir: Path) -> None:
    """Leave the client's only job where it looks for jobs."""
    jobs = workdir / "jobs"
    shutil.rmtree(jobs, ignore_errors=True)
    job = {
        "request_timeout_s": scenario.request_timeout_s,
        "metrics_url": f"{target.url}/metrics",
        "runs": runs,
    }
    write_json(jobs / "0001.json", job)
    write_atomic(jobs / "end", "")


def read_point(
    target: Target, scenario: LoadScenario, point: PointSpec, seed: int, *, raw: Path, slo: Slo | None = None
) -> LoadPoint:
    """Summarise the raw files of one point.

    Raises:
        ToolError: the client ended without having written one of them.

    """
    names = [raw_name(target, scenario, point, seed, repeat) for repeat in range(scenario.num_repeats)]
    for name in names:
        if not (raw / name).exists():
            raise ToolError(f"the load client ended without a result: {raw / name}", raw.parent / "client.log")
    benches = [read_json(raw / name)["bench"] for name in names]
    repeats = tuple(summarise(bench, slo) for bench in benches)
    return LoadPoint(
        name=point.name,
        concurrency=point.concurrency,
        input_tokens=point.input_tokens,
        output_tokens=point.output_tokens,
        repeats=repeats,
        num_errors=sum(int(bench["failed"]) for bench in benches),
        num_timeouts=sum(num_timeouts(bench) for bench in benches),
        num_requests=point.num_requests,
        request_rate=point.request_rate,
        prefix_share=point.prefix_share,
        missing=_reasons(repeats, benches),
    )


def _reasons(repeats: Sequence[Mapping[str, float | None]], benches: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Why a metric is None in every repeat."""
    reasons = {}
    first_error = next((str(error) for bench in benches for error in bench["errors"] if error), "")
    for metric in METRICS:
        if any(repeat[metric] is not None for repeat in repeats):
            continue
        if metric == "goodput_req_per_s":
            reasons[metric] = "no SLO was given"
        elif all(repeat["num_completed"] == 0 for repeat in repeats):
            last_line = first_error.strip().splitlines()[-1] if first_error.strip() else "no reason given"
            reasons[metric] = f"every request failed: {last_line}"
        else:
            reasons[metric] = "one output token per request: there is no time between tokens"
    return reasons
