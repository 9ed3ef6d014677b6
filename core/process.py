"""Child processes that never outlive us: every heavy tool (vLLM, lm-eval, llm-compressor) runs through here.

Each child runs below `core/supervise.py`, which ends the child and all that it started as soon as this process is
gone, whatever ended it. Output goes to a log file; a failure shows the log's last lines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from core.errors import ToolError

SUPERVISOR = Path(__file__).with_name("supervise.py")
POLL_S = 0.1


class ChildProcess:
    """A running command and the log that it writes. A context manager: leaving it ends the command."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        grace_s: float = 5.0,
    ) -> None:
        """Start `command` with `env` (the whole environment; None: ours) and its output appended to `log`."""
        self.log = log
        self.command = [str(part) for part in command]
        log.parent.mkdir(parents=True, exist_ok=True)
        lifeline, self._hold = os.pipe()
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", SUPERVISOR, str(lifeline), str(grace_s), "--", *self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=None if env is None else dict(env),
                    cwd=cwd,
                    pass_fds=(lifeline,),
                    start_new_session=True,
                )
        finally:
            os.close(lifeline)

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int:
        """Wait for the end and return the exit code. Raises `subprocess.TimeoutExpired`."""
        return self._process.wait(timeout_s)

    def stop(self) -> None:
        """End the command and all that it started; does nothing when it has ended."""
        if self._hold >= 0:
            os.close(self._hold)
            self._hold = -1
        self._process.wait()

    def __enter__(self) -> ChildProcess:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the command."""
        self.stop()


class LogReader:
    """Gives the complete lines that a growing log has gained since the last call. A carriage return ends a line too."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._offset = log.stat().st_size if log.exists() else 0
        self._rest = b""

    def new_lines(self) -> list[str]:
        """The lines written since the last call."""
        with self._log.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        return [line.decode(errors="replace") for line in lines if line.strip()]


def run_logged(
    command: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    meanwhile: Callable[[], object] | None = None,
    timeout_s: float | None = None,
    grace_s: float = 5.0,
    name: str = "",
) -> None:
    """Run a command to its end, its output in `log`; `on_line` sees every line of output soon after it was written.

    `meanwhile` is called once the command has been started, and ends it if it raises. `name` is what messages call it;
    by default its module or script.

    Raises:
        ToolError: it failed, or ran longer than `timeout_s`; the message ends with the log's last lines.

    """
    log.parent.mkdir(parents=True, exist_ok=True)
    log.touch()
    reader = LogReader(log)
    started = time.monotonic()
    name = name or name_of([str(part) for part in command])
    with ChildProcess(command, log=log, env=env, cwd=cwd, grace_s=grace_s) as child:
        if meanwhile is not None:
            meanwhile()
        while True:
            code = child.poll()
            if on_line is not None:
                for line in reader.new_lines():
                    on_line(line)
            if code is not None:
                break
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise ToolError(f"{name} took longer than {timeout_s:.0f} s and was ended", log)
            time.sleep(POLL_S)
    if code != 0:
        ended = f"was killed by signal {code - 128}" if code > 128 else f"failed with exit code {code}"
        hint = " (out of memory?)" if code == 137 else ""
        raise ToolError(f"{name} {ended}{hint}", log)


def name_of(command: Sequence[str]) -> str:
    """What to call a command in a message: its module or script."""
    if "-m" in command:
        return command[command.index("-m") + 1]
    return Path(command[1] if len(command) > 1 and command[1].endswith(".py") else command[0]).name
