"""Checkpoints on their way to storage, in a thread, while the training goes on."""

import threading
import time
from collections.abc import Callable
from typing import Self

from facelab.errors import StoreError
from facelab.trained import checkpoint

_PAUSES = (5.0, 15.0, 30.0)
"""Seconds before a store that failed is tried again; then the last of them each time."""
_LAST_S = 60.0
"""So long a training that fails waits for what is being written."""
PATIENCE_S = 1800.0
"""So long a store may fail before the training does."""


class Saver:
    """Writes snapshots one after another; of those that wait, only the newest.

    A store that fails is tried again for half an hour, with what is newest then, and the training goes on; a disk does
    not mend itself and ends the run at once. The last whole checkpoint is as it was.
    """

    def __init__(self, place: str, keep: int, note: Callable[[str], None]):
        """
        Args:
            keep: so many checkpoints.
            note: tells the user.
        """
        self.place, self.keep, self.note = place, keep, note
        self._waiting: tuple[checkpoint.Checkpoint, list[Callable[[], None]]] | None = None
        self._changed = threading.Condition()
        self._closing = self._writing = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True, name="checkpoints")
        self._thread.start()

    def save(self, snapshot: checkpoint.Checkpoint, first: Callable[[], None]) -> None:
        """Write a snapshot soon; `first` is called just before, in the thread, and again if that fails.

        Raises:
            StoreError: an earlier one could not be written.
        """
        with self._changed:
            self._raise()
            before = self._waiting[1] if self._waiting else []
            self._waiting = snapshot, [*before, first]
            self._changed.notify_all()

    def wait(self) -> None:
        """Until all is written.

        Raises:
            StoreError: it cannot be.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error or (self._waiting is None and not self._writing))
            self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Wait until all is written; but a training that fails, or is interrupted, is not held up for long.

        Raises:
            StoreError: it cannot be.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        ends_well = error is None or isinstance(error, SystemExit)
        self._thread.join(None if ends_well else _LAST_S if isinstance(error, Exception) else 0)
        if ends_well:
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._write(*job)
        except BaseException as error:  # raised by who saves next, or waits for the end
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _next(self) -> tuple[checkpoint.Checkpoint, list[Callable[[], None]]] | None:
        with self._changed:
            self._writing = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            job, self._waiting = self._waiting, None
            self._writing = job is not None
            return job

    def _write(self, snapshot: checkpoint.Checkpoint, firsts: list[Callable[[], None]]) -> None:
        began, tries = time.monotonic(), 0
        while True:
            try:
                while firsts:
                    firsts[0]()
                    firsts.pop(0)
                checkpoint.write(self.place, snapshot)
                if tries:
                    self.note(f"checkpoint of step {snapshot.step}: written now")
                break
            except StoreError as error:
                if not self.place.startswith("s3://") or time.monotonic() - began > PATIENCE_S:
                    raise
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                self.note(f"checkpoint of step {snapshot.step}: {error}; the training goes on, again in {pause:g} s")
                tries += 1
            time.sleep(pause)
            with self._changed:
                if self._waiting is not None:  # newer
                    snapshot, later = self._waiting
                    firsts, self._waiting = firsts + later, None
        try:
            checkpoint.prune(self.place, self.keep)
        except StoreError as error:  # the next one will
            self.note(f"older checkpoints could not be deleted: {error}")
