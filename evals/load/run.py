"""Measure a load scenario against a served model, with vLLM's own benchmark client in the serving environment.

One client process makes all runs (importing vLLM takes about 10 s); where a scenario searches, it waits for the next
job. Every repeat leaves one raw file in `workdir/raw`, named after all that can change the measurement on one machine:
a scenario that was interrupted goes on where it stopped. With a folder of `known` results, scenarios share them: a
point that another one has measured on the same target is not measured again, and more repeats add to those there are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from core.errors import ConfigError, ToolError
from core.files import digest_file, link_or_copy, read_json, write_atomic, write_json
from core.jobs import LOCAL, Job, Launcher
from evals.load.arguments import client_runs, raw_names
from evals.load.client import ClientJob, ClientRun
from evals.load.counters import COUNTERS, UNAVAILABLE, machine_counters, server_counters
from evals.load.monitor import Monitor
from evals.load.scenario import LoadScenario, PointSpec, TraceReplay
from evals.load.search import next_points, theta_slo
from evals.load.summary import METRICS, BenchmarkResult, RawRun, Slo, num_timeouts, summarise
from evals.load.trace import Arrival, choose, read_trace, trace_lines, trace_path
from evals.types import LoadConditions, LoadPoint, LoadReport, Target

CLIENT = Path(__file__).with_name("client.py")
RAN = "load-client: ran "
FINISHED = "load-client: finished job "


def run_load(
    target: Target,
    scenario: LoadScenario,
    client_python: Path,
    workdir: Path,
    seed: int,
    *,
    launcher: Launcher = LOCAL,
    env: Mapping[str, str] | None = None,
    slo: Slo | None = None,
    machine: LoadConditions | None = None,
    on_run: Callable[[int, int], None] | None = None,
    known: Path | None = None,
) -> LoadReport:
    """Measure every point of a scenario `num_repeats` times.

    Args:
        target: the served model.
        scenario: the points and how often each is measured.
        client_python: the serving environment's interpreter.
        workdir: keeps raw results (`raw/`), the client's log and its jobs; give the same folder again to resume.
        seed: seed of the prompts; the same for baseline and variant.
        launcher: where the client runs: on the machine that the target is asked from.
        env: the client's whole environment (HF_HUB_OFFLINE and the like); None takes ours.
        slo: counts the requests that meet it (goodput); None takes the scenario's, if it has one.
        machine: what it runs on, kept in the report.
        on_run: told (repeats done, repeats known of so far) after each repeat.
        known: results of other scenarios on this machine with these tools; those that fit are taken, ours are added.

    The report's `machine` also says when the oldest of its repeats ended.

    Raises:
        ToolError: the client failed. Requests that fail are no error: they are counted in the report.
        ConfigError: the trace cannot be replayed.

    """
    if slo is None and scenario.search is not None:
        slo = scenario.search.slo
    conditions = machine or LoadConditions()
    session = _Session(target, scenario, workdir, seed, conditions, slo=slo, on_run=on_run, known=known)
    if session.plan_next():
        with Monitor(f"{target.url}/metrics") as session.monitor:
            launcher.run(client_job(client_python, workdir, client_environment(env)), on_line=session.see)
    if not session.is_complete:
        raise ToolError("the load client ended before the scenario was complete", workdir / "client.log")
    theta = None if scenario.search is None else theta_slo(scenario.search, session.measured)
    return LoadReport(scenario.name, tuple(session.measured), session.conditions, scenario.mix, theta)


def client_environment(env: Mapping[str, str] | None) -> dict[str, str]:
    """The client's whole environment, from that of its server; None takes ours."""
    # PYTHONHASHSEED: vLLM's replay of traces draws prompts from Python's hash of a text.
    return {**(os.environ if env is None else env), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}


def client_job(python: Path, workdir: Path, environment: Mapping[str, str], idle_limit_s: float | None = None) -> Job:
    """The client's process. A script: the serving environment has nothing of ours.

    `idle_limit_s` is how long it waits for its next job, where servers start between two of them.
    """
    idle = {} if idle_limit_s is None else {"idle_limit_s": idle_limit_s}
    return Job(
        str(CLIENT),
        {"folder": workdir, **idle},
        workdir,
        log="client.log",
        job_file="client-job.json",
        result_file="client-result.json",
        python=python,
        environment=environment,
        inherit=False,
    )


class _Session:
    """One scenario on its way: what has been measured, and the job that the client works on."""

    def __init__(
        self,
        target: Target,
        scenario: LoadScenario,
        workdir: Path,
        seed: int,
        conditions: LoadConditions,
        *,
        slo: Slo | None,
        on_run: Callable[[int, int], None] | None,
        known: Path | None,
    ) -> None:
        self.target, self.scenario, self.seed, self.slo, self.on_run = target, scenario, seed, slo, on_run
        self.known = known
        self.workdir, self.raw, self.jobs = workdir, workdir / "raw", workdir / "jobs"
        self.measured: list[LoadPoint] = []
        self.conditions = conditions
        self.monitor: Monitor | None = None
        self.is_complete = False
        self._pending: list[PointSpec] = []
        self._num_jobs = self._num_done = self._num_known = 0
        self._arrivals: list[Arrival] = []
        self._trace_point = None if scenario.trace is None else self._read_trace(scenario.trace)
        shutil.rmtree(self.jobs, ignore_errors=True)

    def plan_next(self) -> bool:
        """Take in what is measured and write the client's next job; False when nothing is left to run."""
        while True:
            for point in self._pending:
                self.measured.append(
                    read_point(self.target, self.scenario, point, self.seed, raw=self.raw, slo=self.slo)
                )
                self._note_age(point)
            self._pending = list(next_points(self.scenario, self.measured))
            if not self._pending and self._trace_point is not None:
                self._pending, self._trace_point = [self._trace_point], None
            if not self._pending:
                self.is_complete = True
                write_atomic(self.jobs / "end", "")
                return False
            if runs := self._runs():
                self._num_jobs += 1
                job: ClientJob = {
                    "request_timeout_s": self.scenario.request_timeout_s,
                    "metrics_url": f"{self.target.url}/metrics",
                    "runs": runs,
                }
                write_json(self.jobs / f"{self._num_jobs:04d}.json", job)
                return True

    def _runs(self) -> list[ClientRun]:
        if self.known is not None:
            for name in [name for point in self._pending for name in self._names(point)]:
                if (self.known / name).exists():
                    share(self.known / name, self.raw / name)
        have = {path.name for path in self.raw.glob("*.json")}
        runs = [
            run
            for point in self._pending
            for run in client_runs(
                self.target, self.scenario, point, self.seed, have=have, trace_file=self._write_trace
            )
        ]
        repeats = len(self._pending) * self.scenario.num_repeats
        self._num_known += repeats
        self._num_done += repeats - sum(run["result"] is not None for run in runs)
        return runs

    def see(self, line: str) -> None:
        """Follow the client: keep the machine's figures beside each result, and answer a finished job with the next."""
        if line.startswith(RAN) and not line.endswith("warm-up"):
            result = self.raw / line.removeprefix(RAN).strip()
            self._keep_counters(result)
            if self.known is not None:
                share(result, self.known / result.name)
            self._num_done += 1
            if self.on_run is not None:
                self.on_run(self._num_done, self._num_known)
        elif line.startswith(FINISHED):
            self.plan_next()

    def _names(self, point: PointSpec) -> list[str]:
        return raw_names(self.target, self.scenario, point, self.seed)

    def _note_age(self, point: PointSpec) -> None:
        times = [(self.raw / name).stat().st_mtime for name in self._names(point)]
        ended_at = datetime.fromtimestamp(min(times), UTC).isoformat(timespec="seconds")
        oldest = min(ended_at, self.conditions.oldest_result_at or ended_at)
        self.conditions = replace(self.conditions, oldest_result_at=oldest)

    def _keep_counters(self, result: Path) -> None:
        """Write `<result>.counters` from the samples of its time; these are lost when this process ends."""
        run: RawRun = read_json(result)
        start_s, end_s = window(run)
        samples = [] if self.monitor is None else [*self.monitor.samples, self.monitor.look()]
        figures = server_counters(run["metrics_before"], run["metrics_after"]) | machine_counters(
            samples, start_s, end_s
        )
        write_json(result.with_suffix(".counters"), figures)

    def _read_trace(self, replay: TraceReplay) -> PointSpec:
        spec, self._arrivals, num_passed = trace_point(replay)
        self.conditions = replace(self.conditions, trace_file=replay.path, trace_requests_passed_over=num_passed)
        return spec

    def _write_trace(self, seed: int) -> Path:
        assert self.scenario.trace is not None
        return write_trace(self.workdir, self._arrivals, self.scenario.trace.speed, seed)


def trace_point(replay: TraceReplay) -> tuple[PointSpec, list[Arrival], int]:
    """The load point that replays a trace, its requests, and how many were passed over.

    Raises:
        ConfigError: the trace cannot be read, or no request of it is short enough.

    """
    path = trace_path(replay.path)
    arrivals, num_passed = choose(read_trace(path), replay.num_requests, replay.max_tokens)
    count = len(arrivals)
    if not count:
        raise ConfigError(f"load.trace.max_tokens: no request of {path} has at most {replay.max_tokens} tokens")
    spec = PointSpec(
        input_tokens=round(sum(arrival.input_tokens for arrival in arrivals) / count),
        output_tokens=round(sum(arrival.output_tokens for arrival in arrivals) / count),
        num_requests=count,
        trace=f"{digest_file(path)[:16]}/{replay.num_requests}/{replay.max_tokens}",
        trace_speed=replay.speed,
    )
    return spec, arrivals, num_passed


def write_trace(workdir: Path, arrivals: Sequence[Arrival], speed: float, seed: int) -> Path:
    """A file of a trace's requests with prompts of this seed; returns its path."""
    file = workdir / "traces" / f"{seed}.jsonl"
    write_atomic(file, trace_lines(arrivals, speed, seed))
    return file


def share(result: Path, other: Path) -> None:
    """Give a repeat's result, and the counters beside it, a second name; the counters first, so that none is missed."""
    if (counters := result.with_suffix(".counters")).exists():
        link_or_copy(counters, other.with_suffix(".counters"))
    link_or_copy(result, other)


def window(run: RawRun) -> tuple[float, float]:
    """Start and end of a run's requests on the monotonic clock, without the client's preparation."""
    starts = run["bench"].get("start_times")
    start_s = min(starts) if starts else run["started_monotonic_s"]
    return start_s, min(start_s + run["bench"]["duration"], run["ended_monotonic_s"])


def read_point(
    target: Target, scenario: LoadScenario, point: PointSpec, seed: int, *, raw: Path, slo: Slo | None = None
) -> LoadPoint:
    """Summarize the raw files of one point.

    Raises:
        ToolError: the client ended without having written one of them.

    """
    paths = [raw / name for name in raw_names(target, scenario, point, seed)]
    for path in paths:
        if not path.exists():
            raise ToolError(f"the load client ended without a result: {path}", raw.parent / "client.log")
    benches: list[BenchmarkResult] = [read_json(path)["bench"] for path in paths]
    repeats = tuple(summarise(bench, slo) for bench in benches)
    kept = [path.with_suffix(".counters") for path in paths]
    counters = tuple(read_json(path) if path.exists() else dict.fromkeys(COUNTERS) for path in kept)
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
        trace=point.trace,
        counters=counters,
        missing=_reasons(repeats, benches) | _unavailable(counters),
    )


def _reasons(repeats: Sequence[Mapping[str, float | None]], benches: Sequence[BenchmarkResult]) -> dict[str, str]:
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


def _unavailable(counters: Sequence[Mapping[str, float | None]]) -> dict[str, str]:
    """Why a counter is None in every repeat."""
    return {
        name: reason for name, reason in UNAVAILABLE.items() if all(repeat.get(name) is None for repeat in counters)
    }
