"""The driver: jobs written, results read, resumption. The client is replaced by one that writes raw files."""

import json
import time
from pathlib import Path

import pytest

from common.errors import ToolError
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
        self.result, self.limit, self.commands, self.envs, self.ran = result or bench(), limit, [], [], []

    def __call__(self, command, *, log, env=None, cwd=None, on_line=None, timeout_s=None):
        self.commands.append(command)
        self.envs.append(env)
        folder = Path(command[-1])
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

    def write(self, path, arguments):
        path.parent.mkdir(exist_ok=True)
        now = time.monotonic()
        bench = self.result(arguments) if callable(self.result) else self.result
        run = {"bench": bench, "started_monotonic_s": now - 2, "ended_monotonic_s": now}
        run |= {"metrics_before": [], "metrics_after": ["vllm:num_preemptions_total 3.0"]}
        path.write_text(json.dumps(run))


def test_a_scenario_is_measured_in_one_client_process(tmp_path):
    client, seen = FakeClient(), []
    report = run_load(
        TARGET,
        SCENARIO,
        Path("/serve/python"),
        tmp_path,
        0,
        run_process=client,
        env={"HF_HUB_OFFLINE": "1"},
        on_run=lambda done, of: seen.append((done, of)),
    )
    assert client.commands == [[Path("/serve/python"), CLIENT, tmp_path]]
    assert client.envs[0]["HF_HUB_OFFLINE"] == "1"
    assert "PATH" not in client.envs[0]
    assert [point.name for point in report.points] == ["c1-10x5", "c8-10x5"]
    assert all(len(point.repeats) == 2 for point in report.points)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_killed_scenario_goes_on_where_it_stopped(tmp_path):
    first, second, third = FakeClient(limit=3), FakeClient(), FakeClient()
    with pytest.raises(ToolError):
        run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=first)
    report = run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=second)
    assert (len(first.ran), len(second.ran)) == (3, 1)
    assert set(first.ran).isdisjoint(second.ran)
    assert run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=third) == report
    assert third.commands == []


def test_a_client_that_leaves_a_hole_is_an_error(tmp_path):
    with pytest.raises(ToolError, match="before the scenario was complete"):
        run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=lambda *_, **__: None)


def test_failed_requests_are_counted_and_explained(tmp_path):
    failing = bench(errors=["Traceback\nConnectionError: refused", "timeout: no whole answer within 1 s"])
    report = run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=FakeClient(failing))
    point = report.points[0]
    assert (point.num_errors, point.num_timeouts) == (4, 2)
    assert point.missing["output_tok_per_s"] == "every request failed: ConnectionError: refused"


def test_goodput_can_be_asked_of_recorded_runs(tmp_path):
    run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=FakeClient())
    again = run_load(TARGET, SCENARIO, Path("p"), tmp_path, 0, run_process=FakeClient(limit=0), slo=Slo(ttft_s=0.15))
    assert again.points[0].repeats[0]["goodput_req_per_s"] == 0.5
    assert "goodput_req_per_s" not in again.points[0].missing
