"""The process of one task, and what becomes of it when this one is told to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypedDict

from core.jobs import LOCAL, Job, Launcher
from pipeline.config import DistillConfig
from pipeline.distill.preemption import InterruptedTrainingError

PROGRAMS = {
    "student": "pipeline.distill.worker:cut_student",
    "cache": "pipeline.distill.worker:fill_cache",
    "train": "pipeline.distill.train_worker:train",
}
PROGRESS = ("step ", "sequence ", "going on ", "checkpoint ")
"""How the lines begin that people see."""
EXIT_MARGIN_S = 5.0
"""Seconds beyond the grace period until a worker that does not end is killed."""


class StudentJob(TypedDict):
    """What the `student` task is told."""

    teacher: str
    tokens: str | None
    """`.npy` of token ids; None where nothing needs to be measured."""
    student: dict[str, Any]
    """`config.StudentConfig` as JSON."""
    output: str


class CacheJob(TypedDict):
    """What the `cache` task is told."""

    teacher: str
    rows: str
    """`.npy`, int32, shape (num_rows, length + 1)."""
    output: str
    top_k: int
    temperature: float


class TrainJob(TypedDict):
    """What the `train` task is told."""

    teacher: str
    student: str
    dropped_layers: list[int] | None
    """Of the teacher; None for a student that was not cut from it here."""
    rows: str
    cache: str | None
    """The teacher's cache; None where the teacher is asked live, or not needed."""
    output: str
    work: str
    """The folder of the process."""
    url: str
    """Where checkpoints go."""
    config: Mapping[str, object]
    """`config.DistillConfig` as JSON."""
    seed: int
    end_token: int
    plan_hash: str
    plan: Mapping[str, object]
    purchase_option: str
    usd_per_hour: str | None
    """Decimal text; None where the price is not known."""


def run_worker(
    task: str,
    payload: Mapping[str, object],
    folder: Path,
    config: DistillConfig,
    on_line: Callable[[str], None] = lambda line: None,
    launcher: Launcher = LOCAL,
) -> None:
    """Run a task in a process of its own. SIGTERM reaches it, and it has its grace period to write a checkpoint.

    Raises:
        InterruptedTrainingError: SIGTERM ended it.
        UserError: the worker raised it.
        ToolError: it failed; the message ends with its log.

    """

    def tell(line: str) -> None:
        if line.startswith(PROGRESS):  # the libraries' own lines stay in the log
            on_line(line)

    try:
        with _sigterm_raises():
            launcher.run(job_of(task, payload, folder, config), on_line=tell)
    except InterruptedTrainingError as error:
        raise InterruptedTrainingError(f"{error}; the same command goes on from there") from None


def job_of(task: str, payload: Mapping[str, object], folder: Path, config: DistillConfig) -> Job:
    """The job of one task: `student`, `cache` or `train`; the training may take several processes."""
    return Job(
        PROGRAMS[task],
        payload,
        folder,
        log=f"{task}.log",
        environment={"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        processes=config.train.num_processes if task == "train" else 1,
        grace_s=config.spot.grace_s + EXIT_MARGIN_S,
    )


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM unwinds this process, so that it waits until the worker has written its checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise InterruptedTrainingError("SIGTERM: the training had its grace period for a checkpoint")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
