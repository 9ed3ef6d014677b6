"""Preemption: the signal that a machine is taken back, and a record of what each interruption cost.

Training time is counted over all attempts. `useful_s` of a checkpoint is the time that led to it; what an attempt spent
beyond its last checkpoint, and on starting again, is lost work. It is charged like the rest, and shown.

    attempts.json, beside the checkpoints: one entry per attempt, brought up to date every `heartbeat_s`
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import FrameType
from typing import TypedDict

from core.errors import ParsimonyError, Problem
from pipeline.config import PreemptionConfig
from pipeline.distill.checkpoint import CheckpointStore, Meta
from pipeline.distill.student_size import ADAM_BYTES

ATTEMPTS = "attempts.json"
INTERRUPTED = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM ended."""
PROBE_BYTES = 16 * 2**20
SPOT = "spot"
"""The purchase option of machines that the provider may take back."""


class InterruptedTrainingError(ParsimonyError):
    """SIGTERM ended the training; the message says from where it goes on."""

    exit_code = INTERRUPTED


class StopSignal:
    """SIGTERM, remembered; raised at once only where the training's state cannot be torn."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._raise = False
        self.received_at: float | None = None

    def install(self) -> None:
        """Take over SIGTERM; the main thread only."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received_at is None:
            self.received_at = time.monotonic()
        if self._raise:
            self._raise = False
            raise InterruptedTrainingError("SIGTERM")

    @property
    def received(self) -> bool:
        """Whether the machine is about to go."""
        return self.received_at is not None

    @property
    def left_s(self) -> float:
        """Seconds left of the grace period; all of it before the signal."""
        if self.received_at is None:
            return self._grace_s
        return self._grace_s - (time.monotonic() - self.received_at)

    def __enter__(self) -> StopSignal:
        """From here on the signal raises at once.

        Raises:
            InterruptedTrainingError: it has arrived already.

        """
        self._raise = True
        if self.received:
            self._raise = False
            raise InterruptedTrainingError("SIGTERM")
        return self

    def __exit__(self, *_: object) -> None:
        """From here on the signal is only remembered."""
        self._raise = False


def grace_problem(preemption: PreemptionConfig, num_parameters: int, bytes_per_s: float) -> Problem | None:
    """Whether a checkpoint of the student can be written within the grace period.

    Args:
        preemption: the settings (`distill.spot`, the key's name).
        num_parameters: of the student.
        bytes_per_s: write speed to the place, measured.

    """
    needed_s = num_parameters * ADAM_BYTES / bytes_per_s
    if not preemption.save_on_sigterm or needed_s < preemption.grace_s:
        return None
    mib = num_parameters * ADAM_BYTES / 2**20
    message = (
        f"{preemption.grace_s:.3g} s is shorter than a checkpoint takes: {mib:.0f} MiB at the "
        f"{bytes_per_s / 2**20:.0f} MiB/s that were measured are about {needed_s:.2g} s"
    )
    ways = (
        "distill.spot.grace_s= what your provider gives (AWS 120, Google and Azure 30, Slurm by --signal)",
        "distill.spot.url= of a faster place",
        "distill.spot.save_on_sigterm=false relies on the checkpoints every distill.spot.every_steps",
    )
    return Problem("distill.spot.grace_s", message, ways)


@dataclass
class Attempt:
    """One process's part of a run."""

    number: int
    purchase_option: str
    usd_per_hour: str | None
    """USD per hour of the machine, as decimal text; None where the price is not known."""
    resumed_step: int
    step: int
    """Steps done, as of the last heartbeat."""
    elapsed_s: float = 0.0
    """Since the process started, as of the last heartbeat."""
    ended: str = "running"
    """running, finished, sigterm, or killed (found so by the next attempt)."""
    lost_steps: int = 0
    """Steps done that the next attempt had to do again."""
    lost_s: float = 0.0
    """Time that led to no checkpoint, with the next attempt's start."""

    @property
    def usd(self) -> Decimal | None:
        """The attempt's price."""
        return _usd(self.elapsed_s, self.usd_per_hour)

    @property
    def lost_usd(self) -> Decimal | None:
        """The price of what was lost."""
        return _usd(self.lost_s, self.usd_per_hour)


class Interruption(TypedDict):
    """An attempt that another one had to follow."""

    attempt: int
    ended: str
    lost_steps: int
    lost_s: float
    lost_usd: Decimal | None


class AttemptTotals(TypedDict):
    """Totals of a run's attempts. An unknown price is None."""

    num_attempts: int
    train_wall_s: float
    train_usd: Decimal | None
    lost_s: float
    lost_steps: int
    lost_usd: Decimal | None
    spot_coverage: float | None
    """Share of the time on spot machines."""
    interruptions: list[Interruption]


@dataclass
class Books:
    """The attempts of a run, kept beside its checkpoints."""

    store: CheckpointStore
    heartbeat_s: float
    attempts: list[Attempt] = field(default_factory=list)
    useful_before_s: float = 0.0
    """Useful time of the checkpoint that this attempt goes on from."""
    started: float = field(default_factory=time.monotonic)
    """When this process started."""
    _training_since: float = 0.0
    _last_beat: float = float("-inf")
    _thread: threading.Thread | None = None

    @classmethod
    def open(
        cls,
        store: CheckpointStore,
        preemption: PreemptionConfig,
        purchase_option: str,
        usd_per_hour: str | None,
        resumed: tuple[int, Meta] | None,
        started: float,
    ) -> Books:
        """Read the attempts so far, settle the one that was cut off, and begin this one.

        `resumed`: the step and the manifest's `meta` of the checkpoint that this attempt goes on from.
        """
        stored = store.get_json(ATTEMPTS) or []
        books = cls(store, preemption.heartbeat_s, [Attempt(**entry) for entry in stored], started=started)
        step = 0
        if resumed is not None:
            step, meta = resumed
            books.useful_before_s = float(meta["useful_s"])
        if books.attempts:
            last = books.attempts[-1]
            last.ended = "killed" if last.ended == "running" else last.ended
            last.lost_steps = max(0, last.step - step)
            total = sum(attempt.elapsed_s for attempt in books.attempts)
            booked = sum(attempt.lost_s for attempt in books.attempts[:-1])
            last.lost_s = max(0.0, total - books.useful_before_s - booked)
        number = len(books.attempts) + 1
        books.attempts.append(Attempt(number, purchase_option, usd_per_hour, step, step))
        return books

    @property
    def current(self) -> Attempt:
        """The attempt of this process."""
        return self.attempts[-1]

    @property
    def useful_s(self) -> float:
        """Training time behind the state as it is now; an attempt's own start counts for the first one only."""
        return self.useful_before_s + (time.monotonic() - self._training_since)

    def begin(self) -> None:
        """The first step is about to run: from here on time is useful; a restart's loading is lost work."""
        now = time.monotonic()
        self._training_since = self.started if len(self.attempts) == 1 else now
        if len(self.attempts) > 1:
            self.attempts[-2].lost_s += now - self.started
        self.beat(self.current.step)

    def beat(self, step: int, *, ended: str = "running", wait: bool = False) -> None:
        """Note how far this attempt is, at most every `heartbeat_s`; beside the training unless `wait`."""
        now = time.monotonic()
        self.current.step, self.current.ended = step, ended
        self.current.elapsed_s = now - self.started
        if not wait and (now - self._last_beat < self.heartbeat_s or (self._thread and self._thread.is_alive())):
            return
        self._last_beat = now
        entries = [dict(vars(attempt)) for attempt in self.attempts]
        if self._thread is not None:
            self._thread.join()
        if wait:
            self.store.put_json(ATTEMPTS, entries)
            return
        self._thread = threading.Thread(target=self._write, args=(entries,), name="heartbeat", daemon=True)
        self._thread.start()

    def _write(self, entries: list[dict[str, object]]) -> None:
        """A heartbeat that cannot be written loses precision, not work; a checkpoint that cannot will complain."""
        with contextlib.suppress(OSError):
            self.store.put_json(ATTEMPTS, entries)


def summary(attempts: Sequence[Attempt]) -> AttemptTotals:
    """Totals of a run: time, price, what was lost, and the share on spot machines. Unknown prices stay None."""
    wall_s = sum(attempt.elapsed_s for attempt in attempts)
    on_spot_s = sum(attempt.elapsed_s for attempt in attempts if attempt.purchase_option == SPOT)
    interruptions: list[Interruption] = [
        {
            "attempt": attempt.number,
            "ended": attempt.ended,
            "lost_steps": attempt.lost_steps,
            "lost_s": attempt.lost_s,
            "lost_usd": attempt.lost_usd,
        }
        for attempt in attempts[:-1]
    ]
    return {
        "num_attempts": len(attempts),
        "train_wall_s": wall_s,
        "train_usd": _total([attempt.usd for attempt in attempts]),
        "lost_s": sum(attempt.lost_s for attempt in attempts),
        "lost_steps": sum(attempt.lost_steps for attempt in attempts),
        "lost_usd": _total([attempt.lost_usd for attempt in attempts]),
        "spot_coverage": on_spot_s / wall_s if wall_s > 0 else None,
        "interruptions": interruptions,
    }


def _usd(seconds: float, usd_per_hour: str | None) -> Decimal | None:
    return None if usd_per_hour is None else Decimal(str(seconds)) * Decimal(usd_per_hour) / 3600


def _total(costs: Sequence[Decimal | None]) -> Decimal | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known, Decimal(0)) if len(known) == len(costs) else None
