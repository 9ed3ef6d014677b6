"""The process of one task, and what becomes of it when this one is told to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from core.environments import CODE
from core.errors import ToolError
from core.files import read_json, write_json
from core.process import ChildProcess, LogReader
from pipeline.config import DistillConfig
from pipeline.distill.preemption import InterruptedTrainingError

POLL_S = 0.2
PROGRESS = ("step ", "sequence ", "going on ", "checkpoint ")
"""How the lines begin that people see."""
EXIT_MARGIN_S = 5.0
"""Seconds beyond the grace period until a worker that does not end is killed."""


def run_worker(
    task: str,
    job: Mapping[str, Any],
    folder: Path,
    config: DistillConfig,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a task in a process of its own. SIGTERM reaches it, and it has its grace period to write a checkpoint.

    Raises:
        InterruptedTrainingError: SIGTERM ended it.
        ToolError: it failed; the message ends with its log.

    """
    write_json(folder / "job.json", job)
    error_file = folder / "measured.error.json"
    error_file.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(CODE), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    log = folder / f"{task}.log"
    log.touch()
    reader = LogReader(log)
    command = worker_command(task, folder, config.train.num_processes)
    grace_s = config.spot.grace_s + EXIT_MARGIN_S
    with (
        _sigterm_raises(),
        ChildProcess(command, log=log, env=environment, cwd=folder, grace_s=grace_s) as child,
    ):
        while (code := child.poll()) is None:
            tell(reader, on_line)
            time.sleep(POLL_S)
    tell(reader, on_line)
    if code == 0:
        return
    error = read_json(error_file) if error_file.exists() else None
    if error is not None and error["kind"] == InterruptedTrainingError.__name__:
        raise InterruptedTrainingError(f"{error['message']}; the same command goes on from there")
    if error is not None:
        raise ToolError(f"distillation stopped: {error['message']}")
    hint = " (out of memory?)" if code == 128 + signal.SIGKILL else ""
    raise ToolError(f"pipeline.distill.worker {task} failed with exit code {code}{hint}", log)


def tell(reader: LogReader, on_line: Callable[[str], None]) -> None:
    """Pass on the new lines of progress; the libraries' own lines stay in the log."""
    for line in reader.new_lines():
        if line.startswith(PROGRESS):
            on_line(line)


def worker_command(task: str, folder: Path, num_processes: int) -> list[str | Path]:
    """The worker's command line; several processes run below torch's launcher."""
    program: list[str | Path] = ["-m", "pipeline.distill.worker", task, folder / "job.json", folder / "measured.json"]
    if task != "train" or num_processes == 1:
        return [sys.executable, *program]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_processes}"]
    return [sys.executable, *launcher, *program]


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds this process, so that it waits until the worker has written its checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise InterruptedTrainingError(
            "SIGTERM: the training had its grace period for a checkpoint; the same command goes on from there"
        )

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
