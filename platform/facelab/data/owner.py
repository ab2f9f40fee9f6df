"""Who writes a shard set: one job at a time, told from a dead one by its heartbeat."""

import json
import os
import socket
import sys
import threading
import time
import uuid
from typing import Any, Self

from facelab import storage
from facelab.errors import Occupied, StoreError, UsageError

BEAT_S = 5.0
"""Seconds between heartbeats."""
_MISSED = 4
"""A record that so many beats leave as it was is a dead job's. Clocks of two machines are never compared."""


class Owner:
    """The record of the job that writes below a URI: `with Owner(uri) as owner`.

    The store decides between two that come at once, where it knows conditional puts (AWS, MinIO, folders); elsewhere
    the later one wins, and the other stops at its next beat.

    Raises:
        Occupied: at the start, another job is writing there.
    """

    def __init__(self, uri: str):
        self.uri, self.place = uri, storage.join(uri, "owner.json")
        self.record: dict[str, Any] = {
            "token": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "beat": 0,
        }  # fmt: skip
        self._lost = False
        self._wake = threading.Event()

    def __enter__(self) -> Self:
        while not storage.create(self.place, self._text()):
            other = self._read()
            if other and self._is_alive(other):
                raise Occupied(
                    f"{self.uri}: process {other['pid']} on {other['host']} is writing there: wait for it, or stop it; "
                    "or choose another --output"
                )
            if other and (found := self._read()) and found["token"] == other["token"]:
                storage.delete(self.place)
        self._thread = threading.Thread(target=self._beat, daemon=True, name="owner-heartbeat")
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._wake.set()
        self._thread.join()
        try:
            if not self._lost and (found := self._read()) and found["token"] == self.record["token"]:
                storage.delete(self.place)
        except StoreError:
            if error is None:
                raise
            # What ended the job is told instead; the next one finds this record without a heartbeat.

    def check(self) -> None:
        """
        Raises:
            StoreError: the set is another job's now.
        """
        if self._lost:
            raise StoreError(
                f"{self.uri}: another job took over, as if this one had died: its heartbeats did not reach the store"
            )

    def _text(self) -> bytes:
        return json.dumps(self.record).encode()

    def _read(self) -> dict[str, Any] | None:
        try:
            return json.loads(storage.read_bytes(self.place))
        except StoreError:
            raise
        except (UsageError, ValueError):  # deleted just now
            return None

    def _is_alive(self, other: dict[str, Any]) -> bool:
        if other["host"] == self.record["host"] and not _runs(other["pid"]):
            return False
        print(f"{self.uri}: begun by process {other['pid']} on {other['host']}: does it live?", file=sys.stderr)
        for _ in range(_MISSED):
            time.sleep(BEAT_S)
            if (now := self._read()) != other:
                return now is not None
        return False

    def _beat(self) -> None:
        while not self._wake.wait(BEAT_S):
            try:
                found = self._read()
                if found is None or found["token"] != self.record["token"]:
                    self._lost = True
                    return
                self.record["beat"] += 1
                storage.write_bytes(self.place, self._text())
            except StoreError:
                continue  # may pass; if it does not, the job's own writes tell


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True
