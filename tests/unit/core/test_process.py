import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import ToolError
from core.process import ChildProcess, run_logged

ROOT = Path(__file__).resolve().parents[3]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_output_goes_to_the_log_and_lines_arrive(tmp_path: Path) -> None:
    lines: list[str] = []
    run_logged(["bash", "-c", r"echo one; printf 'two\rthree\n'"], log=tmp_path / "log", on_line=lines.append)
    assert lines == ["one", "two", "three"]
    assert "one" in (tmp_path / "log").read_text()


def test_a_failure_shows_the_last_lines_of_the_log(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"(?s)exit code 3.*the last word"):
        run_logged(["bash", "-c", "echo the last word; exit 3"], log=tmp_path / "log")


def test_a_killed_command_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="signal 9"):
        run_logged(["bash", "-c", "kill -9 $$"], log=tmp_path / "log")


def test_a_timeout_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="longer than"):
        run_logged(["sleep", "60"], log=tmp_path / "log", timeout_s=0.3)


def test_leaving_the_context_ends_stubborn_grandchildren(tmp_path: Path) -> None:
    script = f"trap '' TERM; (setsid sleep 600 & echo $! > {tmp_path}/pid); sleep 600"
    with ChildProcess(["bash", "-c", script], log=tmp_path / "log", grace_s=0.3):
        assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "")
        grandchild = int((tmp_path / "pid").read_text())
        assert is_running(grandchild)
    assert wait_for(lambda: not is_running(grandchild))


def test_nothing_outlives_a_process_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time; from pathlib import Path; from core.process import ChildProcess\n"
        f"child = ChildProcess(['bash', '-c', 'sleep 600 & echo $! $$ > {tmp_path}/pids; wait'],"
        f" log=Path('{tmp_path}/log'))\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert wait_for(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
        pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
        assert all(is_running(pid) for pid in pids)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert wait_for(lambda: not any(is_running(pid) for pid in pids))
