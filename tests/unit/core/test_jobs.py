"""Jobs with real processes: results, errors, what earlier attempts left, environments."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from core.environments import CODE
from core.errors import ConfigError, ParsimonyError, PlanError, Problem, StoreError, ToolError, UserError
from core.files import plain, read_json
from core.jobs import Job, LocalLauncher, command_of, environment_of, error_of, error_to_json, usage

WORKER = """
import os, signal, sys, time
from pathlib import Path
from core.errors import ConfigError, ParsimonyError, PlanError, Problem

class OwnError(ParsimonyError):
    exit_code = 7

def work(payload):
    print("step 1", flush=True)
    return {"twice": 2 * payload["number"], "where": os.getcwd(), "flag": os.environ.get("FLAG"), "rank": rank()}

def rank():
    return int(os.environ.get("RANK", "0"))

def nothing(payload):
    return None

def refuses(payload):
    raise ConfigError("suite.tasks=x: no such task")

def refuses_a_plan(payload):
    raise PlanError([Problem("a.b", "will not do")])

def own(payload):
    raise OwnError("it diverged at step 3")

def defect(payload):
    raise KeyError("a defect")

def killed(payload):
    os.kill(os.getpid(), signal.SIGKILL)

def half(payload):
    Path(sys.argv[3]).write_text("{")
    sys.exit(3)

def first_only(payload):
    (Path(payload["folder"]) / f"rank-{rank()}").write_text(os.environ["WORLD_SIZE"])
    return {"rank": rank()}

def waits(payload):
    def stop(number, frame):
        time.sleep(0.4)
        Path("written").write_text("on SIGTERM")
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    print("waiting", flush=True)
    time.sleep(60)
"""
SCRIPT = """
import json, os, sys
job = json.load(open(sys.argv[1]))
json.dump({"number": job["number"], "environment": dict(os.environ)}, open(sys.argv[2], "w"))
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job of a worker that only its own module path finds."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a_worker.py").write_text(WORKER)
    environment = {"PYTHONPATH": str(tmp_path / "lib"), "FLAG": "up"}
    return Job("a_worker:work", {"number": 21, "folder": tmp_path}, tmp_path / "work", environment=environment)


def failure(job: Job, kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        LocalLauncher().run(job)
    assert type(raised.value) is kind
    assert not (job.folder / job.result_file).exists()
    return str(raised.value)


def test_a_job_returns_what_its_worker_measured_and_keeps_it(job: Job) -> None:
    lines: list[str] = []
    calls: list[bool] = []
    result = LocalLauncher().run(job, on_line=lines.append, meanwhile=lambda: calls.append(True))
    assert result == {"twice": 42, "where": str(job.folder), "flag": "up", "rank": 0}
    assert lines == ["step 1"]
    assert calls == [True]
    assert read_json(job.folder / "measured.json") == result
    assert read_json(job.folder / "job.json") == {"number": 21, "folder": str(job.folder.parent)}
    assert sorted(path.name for path in job.folder.iterdir()) == ["job.json", "measured.json", "worker.log"]


def test_a_workers_time_counts_from_before_its_libraries_are_loaded(tmp_path: Path) -> None:
    (tmp_path / "slow_worker.py").write_text(
        "import time\ntime.sleep(0.5)\nfrom core.jobs import STARTED, usage\n"
        "def work(payload):\n    return usage(STARTED)\n"
    )
    job = Job("slow_worker:work", {}, tmp_path / "work", environment={"PYTHONPATH": str(tmp_path)})
    assert LocalLauncher().run(job)["wall_s"] >= 0.5


def test_a_job_is_data(job: Job) -> None:
    assert json.loads(json.dumps(plain(job)))["program"] == "a_worker:work"


def test_an_earlier_attempts_result_is_never_taken(job: Job) -> None:
    LocalLauncher().run(job)
    message = failure(replace(job, program="a_worker:nothing"), ToolError)
    assert "a_worker nothing ended without a result" in message
    LocalLauncher().run(job)
    assert "failed with exit code 1" in failure(replace(job, program="a_worker:defect"), ToolError)
    LocalLauncher().run(job)
    assert "exit code 3" in failure(replace(job, program="a_worker:half"), ToolError)
    LocalLauncher().run(job)
    assert LocalLauncher().run(replace(job, payload={"number": 1}))["twice"] == 2


def test_what_killed_attempts_left_is_removed(job: Job) -> None:
    job.folder.mkdir()
    for name in (".measured.json.0123", ".measured.json.0123.error", "..measured.json.0123.77.tmp"):
        (job.folder / name).write_text("{")
    LocalLauncher().run(job)
    assert sorted(path.name for path in job.folder.iterdir()) == ["job.json", "measured.json", "worker.log"]


def test_a_late_result_of_an_earlier_attempt_is_not_taken(job: Job) -> None:
    """An orphan writes to its own attempt's name, under which nobody looks."""

    def orphan_writes() -> None:
        (job.folder / ".measured.json.0123").write_text('{"twice": -1}')
        (job.folder / "measured.json").write_text('{"twice": -1}')

    assert LocalLauncher().run(job, meanwhile=orphan_writes)["twice"] == 42
    assert read_json(job.folder / "measured.json")["twice"] == 42
    with pytest.raises(ToolError, match="without a result"):
        LocalLauncher().run(replace(job, program="a_worker:nothing"), meanwhile=orphan_writes)


def test_an_earlier_attempts_error_is_not_this_ones(job: Job) -> None:
    assert "no such task" in failure(replace(job, program="a_worker:refuses"), ConfigError)
    assert "a defect" in failure(replace(job, program="a_worker:defect"), ToolError)


def test_the_users_errors_come_back_as_they_were(job: Job) -> None:
    assert failure(replace(job, program="a_worker:refuses"), ConfigError) == "suite.tasks=x: no such task"
    assert "a.b: will not do" in failure(replace(job, program="a_worker:refuses_a_plan"), UserError)
    message = failure(replace(job, program="a_worker:own"), ToolError)
    assert message == "a_worker own stopped: it diverged at step 3"


def test_other_failures_end_with_the_log(job: Job) -> None:
    message = failure(replace(job, program="a_worker:defect", log="make.log"), ToolError)
    assert message.startswith("a_worker defect failed with exit code 1")
    assert str(job.folder / "make.log") in message
    assert message.endswith("KeyError: 'a defect'")
    assert "killed by signal 9 (out of memory?)" in failure(replace(job, program="a_worker:killed"), ToolError)


def test_what_stands_beside_it_ends_it(job: Job) -> None:
    def fails() -> None:
        raise ToolError("the server did not start")

    started = time.monotonic()
    with pytest.raises(ToolError, match="did not start"):
        LocalLauncher().run(replace(job, program="a_worker:waits", grace_s=0.1), meanwhile=fails)
    assert time.monotonic() - started < 20


def test_the_grace_period_is_the_jobs(job: Job) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    for grace_s, is_written in ((0.05, False), (10.0, True)):
        with pytest.raises(KeyboardInterrupt):
            LocalLauncher().run(replace(job, program="a_worker:waits", grace_s=grace_s), on_line=interrupt)
        assert (job.folder / "written").exists() == is_written


def test_several_processes_have_the_first_ones_result(job: Job) -> None:
    pytest.importorskip("torch")
    assert LocalLauncher().run(replace(job, program="a_worker:first_only", processes=2)) == {"rank": 0}
    assert {(job.folder.parent / f"rank-{rank}").read_text() for rank in (0, 1)} == {"2"}


def test_a_script_gets_nothing_of_ours(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "1")
    script = job.folder.parent / "client.py"
    script.write_text(SCRIPT)
    (script.parent / "json.py").write_text("raise ImportError('a file beside the script was taken for a package')")
    alone = replace(job, program=str(script), environment={"GIVEN": "1"}, inherit=False, python=Path(sys.executable))
    result = LocalLauncher().run(alone)
    assert result["number"] == 21
    assert result["environment"]["GIVEN"] == "1"
    assert not {"OURS", "PYTHONPATH"} & result["environment"].keys()
    assert alone.name == "client.py"


@pytest.mark.parametrize(
    ("gpus", "given", "seen"),
    [
        (None, None, None),
        (None, "3", "3"),
        (0, None, ""),
        (0, "1,2", ""),
        (1, None, "0"),
        (1, "5,6", "5"),
        (1, "", ""),
        (4, "MIG-a", "MIG-a"),
    ],
)
def test_a_job_sees_at_most_its_gpus(job: Job, gpus: int | None, given: str | None, seen: str | None) -> None:
    ours = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert environment_of(replace(job, gpus=gpus), ours).get("CUDA_VISIBLE_DEVICES") == seen


def test_the_module_path_is_ours_and_the_jobs(job: Job) -> None:
    found = environment_of(job, {"PYTHONPATH": "/other", "HOME": "/home"})
    assert found["PYTHONPATH"] == os.pathsep.join([str(CODE), job.environment["PYTHONPATH"]])
    assert found["HOME"] == "/home"
    assert environment_of(replace(job, environment={}), {"PYTHONPATH": "/other"})["PYTHONPATH"] == str(CODE)


def test_command_lines(job: Job) -> None:
    tail = ["-m", "core.jobs", "a_worker:work", Path("j"), Path("r")]
    assert command_of(job, Path("j"), Path("r"))[1:] == tail
    several = command_of(replace(job, processes=3), Path("j"), Path("r"))
    assert several[1:5] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    assert several[5:] == tail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConfigError("x"), ConfigError),
        (StoreError("x"), StoreError),
        (PlanError([Problem("a", "b")]), UserError),
        (ToolError("x"), ToolError),
        (ParsimonyError("x"), ToolError),
    ],
)
def test_errors_travel_as_data(error: ParsimonyError, kind: type[ParsimonyError]) -> None:
    found = error_of(json.loads(json.dumps(error_to_json(error))), "worker")
    assert type(found) is kind
    assert str(error) in str(found)


def test_usage_counts_time_and_memory() -> None:
    found = usage(time.monotonic() - 2)
    assert 2 <= found["wall_s"] < 60
    assert found["peak_host_bytes"] > 2**20


def test_a_killed_launcher_leaves_no_worker(job: Job) -> None:
    child = os.fork()
    if child == 0:  # the process that asks, killed while its worker works
        threading.Timer(30, os._exit, [1]).start()
        LocalLauncher().run(replace(job, program="a_worker:waits", grace_s=5))
        os._exit(0)
    log = job.folder / "worker.log"
    deadline = time.monotonic() + 20
    while not (log.exists() and "waiting" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while not (job.folder / "written").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (job.folder / "written").read_text() == "on SIGTERM"
