"""The driver: jobs written, results read, resumption. The client is replaced by one that writes raw files."""

import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from core.errors import ToolError
from core.jobs import command_of, environment_of
from evals.load.run import CLIENT, run_load
from evals.load.scenario import from_config
from evals.load.summary import Slo
from evals.types import Target
from tests.unit.evals.test_load_summary import bench

TARGET = Target("http://127.0.0.1:1", "m", Path("/models/m"), {}, "digest")
SCENARIO = from_config(
    {
        "name": "two",
        "num_repeats": 2,
        "points": [
            {"concurrency": 1, "input_tokens": 10, "output_tokens": 5, "num_requests": 2},
            {"concurrency": 8, "input_tokens": 10, "output_tokens": 5, "num_requests": 2},
        ],
    }
)


class FakeClient:
    """Writes a raw file for every run of the job, until it fails after `limit` results."""

    def __init__(self, result=None, limit=None):
        self.result, self.limit, self.jobs, self.ran = result or bench(), limit, [], []

    def run(self, job, *, on_line=None, meanwhile=None):
        self.jobs.append(job)
        folder = Path(job.payload["folder"])
        number = 1
        while (path := folder / "jobs" / f"{number:04d}.json").exists():
            for run in json.loads(path.read_text())["runs"]:
                if run["result"] is not None:
                    if self.limit is not None and len(self.ran) >= self.limit:
                        raise ToolError("the client was killed")
                    self.write(folder / "raw" / run["result"], run["arguments"])
                    self.ran.append(run["result"])
                on_line(f"load-client: ran {run['result'] or 'warm-up'}")
            on_line(f"load-client: finished job {number:04d}")
            number += 1
        assert (folder / "jobs" / "end").exists()
        return {"num_jobs": number - 1}

    def write(self, path, arguments):
        path.parent.mkdir(exist_ok=True)
        now = time.monotonic()
        bench = self.result(arguments) if callable(self.result) else self.result
        run = {"bench": bench, "started_monotonic_s": now - 2, "ended_monotonic_s": now}
        run |= {"metrics_before": [], "metrics_after": ["vllm:num_preemptions_total 3.0"]}
        path.write_text(json.dumps(run))


class Idle:
    """Ends at once."""

    def run(self, job, **_):
        return {"num_jobs": 0}


def test_a_scenario_is_measured_in_one_client_process(tmp_path):
    client, seen = FakeClient(), []
    report = run_load(
        TARGET,
        SCENARIO,
        Path("/serve/python"),
        tmp_path,
        0,
        launcher=client,
        env={"HF_HUB_OFFLINE": "1"},
        on_run=lambda done, of: seen.append((done, of)),
    )
    (job,) = client.jobs
    assert command_of(job, tmp_path / "job", tmp_path / "out") == [
        Path("/serve/python"),
        "-P",
        str(CLIENT),
        tmp_path / "job",
        tmp_path / "out",
    ]
    environment = environment_of(job, {"PATH": "/bin", "PYTHONPATH": "/ours"})
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert not {"PATH", "PYTHONPATH"} & environment.keys()
    assert [point.name for point in report.points] == ["c1-10x5", "c8-10x5"]
    assert all(len(point.repeats) == 2 for point in report.points)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_killed_scenario_goes_on_where_it_stopped(tmp_path):
    first, second, third = FakeClient(limit=3), FakeClient(), FakeClient()
    with pytest.raises(ToolError):
        run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=first)
    report = run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=second)
    assert (len(first.ran), len(second.ran)) == (3, 1)
    assert set(first.ran).isdisjoint(second.ran)
    assert run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=third) == report
    assert third.jobs == []


def test_a_client_that_leaves_a_hole_is_an_error(tmp_path):
    with pytest.raises(ToolError, match="before the scenario was complete"):
        run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=Idle())


def test_failed_requests_are_counted_and_explained(tmp_path):
    failing = bench(errors=["Traceback\nConnectionError: refused", "timeout: no whole answer within 1 s"])
    report = run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=FakeClient(failing))
    point = report.points[0]
    assert (point.num_errors, point.num_timeouts) == (4, 2)
    assert point.missing["output_tok_per_s"] == "every request failed: ConnectionError: refused"


def test_goodput_can_be_asked_of_recorded_runs(tmp_path):
    run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=FakeClient())
    again = run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, launcher=FakeClient(limit=0), slo=Slo(ttft_s=0.15))
    assert again.points[0].repeats[0]["goodput_req_per_s"] == 0.5
    assert "goodput_req_per_s" not in again.points[0].missing


def test_scenarios_share_what_they_have_measured(tmp_path):
    known, first, more, other = tmp_path / "known", FakeClient(), FakeClient(), FakeClient(limit=0)
    before = run_load(TARGET, SCENARIO, Path("p"), tmp_path / "a", 0, launcher=first, known=known)
    longer = dataclasses.replace(SCENARIO, name="longer", num_repeats=3, points=SCENARIO.points[1:])
    report = run_load(TARGET, longer, Path("p"), tmp_path / "b", 0, launcher=more, known=known)
    assert [name.partition("-")[0] + name[-8:-5] for name in more.ran] == ["c8-r2"], "two of three repeats are known"
    assert len(report.points[0].repeats) == 3
    assert report.points[0].counters[0]["num_preemptions"] == 3.0, "with their counters"
    again = run_load(TARGET, SCENARIO, Path("p"), tmp_path / "c", 0, launcher=other, known=known)
    assert again.points == before.points
    assert other.jobs == []
    elsewhere = dataclasses.replace(TARGET, digest="another model")
    assert run_load(elsewhere, longer, Path("p"), tmp_path / "d", 0, launcher=(run := FakeClient()), known=known)
    assert len(run.ran) == 3, "another target's results are not taken"


def test_a_report_is_as_old_as_its_oldest_repeat(tmp_path):
    known = tmp_path / "known"
    run_load(TARGET, SCENARIO, Path("p"), tmp_path / "a", 0, launcher=FakeClient(), known=known)
    os.utime(next(known.glob("c8*r1.json")), (86_400, 86_400))
    report = run_load(TARGET, SCENARIO, Path("p"), tmp_path / "b", 0, launcher=FakeClient(limit=0), known=known)
    assert report.machine.oldest_result_at == "1970-01-02T00:00:00+00:00"
