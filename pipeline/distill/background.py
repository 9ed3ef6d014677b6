"""Checkpoints that are written beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.distill.checkpoint import CheckpointError, CheckpointStore, Meta, Written

if TYPE_CHECKING:
    from pipeline.distill.checkpoint import Files


class BackgroundWriter:
    """Writes one checkpoint at a time beside the training."""

    def __init__(self, store: CheckpointStore, on_written: Callable[[Written], None] = lambda one: None) -> None:
        """`on_written` is told of every checkpoint that is whole, from the writing thread."""
        self._store, self._on_written = store, on_written
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.written: list[Written] = []

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def submit(self, step: int, files: Files, meta: Meta) -> None:
        """Start a write, after the one before has ended. `files` must not change until `wait` returns.

        Raises:
            CheckpointError: the write before failed.

        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, files, meta), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the write under way.

        Raises:
            CheckpointError: it failed; names the last good checkpoint.

        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            last = f"step {self.written[-1].step}" if self.written else "none of this attempt"
            raise CheckpointError(
                f"distill.spot.url={self._store.url}: a checkpoint could not be written ({error}); "
                f"last good one: {last}"
            ) from error

    def _write(self, step: int, files: Files, meta: Meta) -> None:
        try:
            self.written.append(self._store.write(step, files, meta))
            self._on_written(self.written[-1])
        except Exception as error:  # shown by the next submit or wait, in the training's own thread
            self._error = error
