"""A stage on the clock: opens a charge, gives signs of life from a thread, closes it however the stage ends.

    with Meter(ledger, run_id="r1", stage="quantize", resource=resource, rate=rate, tags=tags) as meter:
        for step in steps:
            ...
            meter.checkpoint()              # the work so far is safe: only what follows can be lost
        meter.usage(output_tokens=41_000)

Left normally the stage is `completed`; by an exception `failed`; by `Preempted`, KeyboardInterrupt or SystemExit
`preempted`. A SIGKILL leaves the charge open: the next start's `Ledger.recover()` finds it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Unpack

from core.errors import UserError
from finops.ledger.charges import Charge, Rate, Resource, Usage

if TYPE_CHECKING:
    from finops.controls.budgets import Reservation
    from finops.ledger.ledger import Ledger

log = logging.getLogger(__name__)


class Preempted(Exception):  # noqa: N818 - the cloud's word, not an error of anybody
    """Raise it inside a metered stage when the machine is reclaimed."""


class Meter:
    """See the module. `charges` has what was recorded, after the block is left."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        run_id: str,
        stage: str,
        resource: Resource,
        rate: Rate,
        tags: Mapping[str, str],
        reservation: Reservation | None = None,
        heartbeat_every_s: float = 10.0,
    ) -> None:
        self._ledger, self._reservation, self._every_s = ledger, reservation, heartbeat_every_s
        self._stage = stage
        self._open = functools.partial(
            ledger.open_charge, run_id=run_id, stage=stage, resource=resource, rate=rate, tags=tags,
            hold_id=reservation.id if reservation else None, heartbeat_every_s=heartbeat_every_s,
        )  # fmt: skip
        self._usage: Usage = {}
        self._stop = threading.Event()
        self._failure: UserError | None = None
        self.charges: list[Charge] = []

    def __enter__(self) -> Meter:
        """Open the charge. Raises `LedgerUnavailableError`: then the stage must not start."""
        self._opened = self._open()
        self._thread = threading.Thread(target=self._beat, name="finops-heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the charge; the stage's own exception goes on."""
        self._stop.set()
        self._thread.join()
        if kind is None:
            status = "completed"
        elif issubclass(kind, (Preempted, KeyboardInterrupt, SystemExit)):
            status = "preempted"
        else:
            status = "failed"
        try:
            self.charges = self._ledger.close_charge(self._opened, status=status, **self._usage)
        except UserError as failure:
            if kind is None:
                raise
            log.error("the charge of stage %s stays open until the next start: %s", self._stage, failure)

    def usage(self, **usage: Unpack[Usage]) -> None:
        """Note what the stage yielded."""
        self._usage.update(usage)

    def checkpoint(self) -> None:
        """Say that the work so far is safe. Raises what `check` raises."""
        self.check()
        self._ledger.heartbeat(self._opened.id, checkpoint=True)

    def check(self) -> None:
        """Raise what the heartbeat failed with (`LedgerUnavailableError`, `ReservationError`): the stage must stop."""
        if self._failure is not None:
            raise self._failure

    def _beat(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self._ledger.heartbeat(self._opened.id)
                if self._reservation is not None:
                    self._reservation.heartbeat()
                self._failure = None
            except UserError as failure:
                self._failure = failure
                log.warning("heartbeat of stage %s: %s", self._stage, failure)
