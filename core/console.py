"""What people see: stage progress, tables, messages. Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

WIDTH_WITHOUT_TERMINAL = 160


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


class Console:
    """Shows the stages of a run while they work."""

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    @contextmanager
    def stage(self, name: str, expected_s: float | None = None) -> Iterator[None]:
        """Show a stage while its block runs; `expected_s` is what such stages took before."""
        title = f"{self.label}: {name}" if self.label else name
        about = f" (about {duration(expected_s)})" if expected_s is not None else ""
        started = time.monotonic()
        if stream().isatty():
            with self._bar(title + about):
                yield
        else:
            say(f"{title} ...{about}")
            yield
        say(f"{title}: done in {duration(time.monotonic() - started)}")

    def advance(self, done: int, total: int) -> None:
        """Move the current stage's bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def reused(self, name: str) -> None:
        """Say that a stage's result was there."""
        say(f"{self.label}: {name}: reused" if self.label else f"{name}: reused")

    @contextmanager
    def _bar(self, title: str) -> Iterator[None]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=RichConsole(file=stream()), transient=True) as progress:
            self._progress, self._task = progress, progress.add_task(title, total=None)
            try:
                yield
            finally:
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
