"""What people see: stage progress, tables, messages. Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from core.store import StageHook, StageRef, StageResult

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


_to_stderr = False
"""Whether standard output is kept for a program that reads the result."""


def to_stderr(on: bool = True) -> None:
    """From here on what people see goes to standard error; standard output is `result`'s alone."""
    global _to_stderr  # noqa: PLW0603 - one process has one standard output
    _to_stderr = on


def stream() -> TextIO:
    """Where people read."""
    return sys.stderr if _to_stderr else sys.stdout


def say(text: str = "") -> None:
    """One line for the user."""
    out = stream()
    out.write(text + "\n")
    out.flush()


def result(text: str) -> None:
    """The result for a program, on standard output; nothing unless it was asked for (`to_stderr`)."""
    if _to_stderr:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def duration(seconds: float) -> str:
    """A duration as people write it.

    >>> duration(4.21), duration(83), duration(7260)
    ('4.2 s', '1 min 23 s', '2 h 1 min')
    >>> duration(9.97), duration(59.6), duration(1259.8), duration(3599.7)
    ('10 s', '1 min 0 s', '21 min 0 s', '1 h 0 min')
    """
    if round(seconds, 1) < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class ProgressBars(StageHook):
    """Shows stages while they are made: a bar on a terminal, lines elsewhere.

    Args:
        name: what the variants are variants of; stands before their labels.
        expected_s: a stage's expected duration in seconds, or None.

    """

    def __init__(self, name: str = "", expected_s: Callable[[StageRef], float | None] = lambda ref: None) -> None:
        self._name, self._expected_s = name, expected_s
        self._started: dict[str, float] = {}
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def title(self, ref: StageRef) -> str:
        """How a stage is called: `model/variant: stage`."""
        return f"{self._name}/{ref.label}: {ref.stage}" if ref.label else ref.stage

    def started(self, ref: StageRef) -> None:
        """Show that it has begun, and how long such a stage takes."""
        expected = self._expected_s(ref)
        about = f" (about {duration(expected)})" if expected is not None else ""
        self._started[ref.key] = time.monotonic()
        if stream().isatty():
            self._open_bar(self.title(ref) + about)
        else:
            say(f"{self.title(ref)} ...{about}")

    def progressed(self, ref: StageRef, done: int, total: int) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None and total:
            self._progress.update(self._task, completed=done, total=total)

    def finished(self, ref: StageRef, found: StageResult) -> None:
        """Say how long it took."""
        self._close_bar()
        say(f"{self.title(ref)}: done in {duration(time.monotonic() - self._started.pop(ref.key))}")

    def failed(self, ref: StageRef, error: BaseException) -> None:
        """Take the bar away."""
        self._started.pop(ref.key, None)
        self._close_bar()

    def reused(self, ref: StageRef, found: StageResult) -> None:
        """Say so where it belongs to a variant."""
        if ref.label:
            say(f"{self.title(ref)}: reused")

    def waiting(self, ref: StageRef) -> None:
        """Say whom we wait for."""
        say(f"{self.title(ref)}: another run is making it; waiting")

    def _open_bar(self, title: str) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        console = RichConsole(file=stream())
        self._progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
        self._progress.start()
        self._task = self._progress.add_task(title, total=None)

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: drawn on a terminal, aligned text elsewhere."""
    if stream().isatty():
        from rich.console import Console as RichConsole
        from rich.table import Table

        drawn = Table(*header, title=title)
        for row in rows:
            drawn.add_row(*row)
        RichConsole(file=stream()).print(drawn)
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    say(title)
    for row in [header, ["-" * width for width in widths], *rows]:
        say("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
