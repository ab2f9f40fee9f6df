"""The one sender of what a training spools, in the driver: in order, once, and however long MLflow is away."""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import mlflow
from mlflow.entities import Metric
from PIL import Image

from facelab import storage
from facelab.config import without_secret
from facelab.errors import UsageError, one_line
from facelab.tracking.client import client_of
from facelab.tracking.spool import points, segments

_BATCH = 1000  # MLflow's limit for one log_batch
_EVERY_S = 5.0
_PAUSES = (2.0, 5.0, 10.0, 20.0, 30.0)
"""Seconds before a tracker that is away is tried again; then the last of them each time."""
_PASSING = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED")
_CARRIERS = ("requests", "urllib3", "sqlalchemy", "boto3", "botocore")


SAMPLES = "samples"
"""Folder, and name of the images, of what a training shows after each epoch."""
NEWEST = "samples.png"
"""The last of them."""


def epoch_of(name: str) -> int:
    """Of epoch-0012.png: 12."""
    return int(Path(name).stem.rpartition("-")[2])


class TrackerAway(Exception):
    """MLflow, its database or its artifact store did not answer for longer than one wanted to wait."""


def is_away(error: Exception) -> bool:
    """Whether an error says that MLflow, its database or its artifact store does not answer: that may pass."""
    if isinstance(error, mlflow.MlflowException):
        return error.error_code in _PASSING
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CARRIERS


def reason_of(error: Exception) -> str:
    """In one line, without secrets."""
    return without_secret(one_line(str(error)))[:200]


def patiently(uri: str, act: Callable[[], Any], deadline: float) -> Any:
    """What `act` gives, tried again until it does.

    Args:
        uri: MLflow's, for the message.
        deadline: on time.monotonic's clock.

    Raises:
        TrackerAway: not before the deadline.
    """
    tries = 0
    while True:
        try:
            return act()
        except Exception as error:
            if not is_away(error):
                raise
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            left = deadline - time.monotonic()
            if left < pause:
                raise TrackerAway(f"MLflow at {without_secret(uri)} is away ({reason_of(error)})") from error
            if not tries:
                print(
                    f"MLflow at {without_secret(uri)} is away ({reason_of(error)}): waiting for it, up to "
                    f"{left / 60:.0f} min",
                    file=sys.stderr,
                )
            tries += 1
            time.sleep(pause)


class Delivery:
    """Sends what lies in a spool to an MLflow run.

    Points keep the time at which they were told, and MLflow's databases hold (key, time, step, value) once, whatever is
    sent again: so a sender that dies between sending and writing down what it sent leaves no double.
    """

    def __init__(self, uri: str, run_id: str, output: str, committed: Callable[[], int]):
        """
        Args:
            committed: the newest step of which there is a checkpoint; what is told of later ones may come again.
        """
        self.uri, self.run_id, self.output, self.committed = uri, run_id, output, committed
        self._record: dict[str, Any] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True, name="delivery")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """No more is sent from the side; `send` has the rest.

        Raises:
            Exception: what ended the sending, other than a tracker that is away.
        """
        assert self._thread is not None
        self._stop.set()
        self._thread.join()
        if self._failed is not None:
            raise self._failed

    def _run(self) -> None:
        tries, pause = 0, _EVERY_S
        while not self._stop.wait(pause):
            try:
                self.send(lambda: self._stop.is_set())
                if tries:
                    print(f"MLflow at {without_secret(self.uri)} takes numbers again", file=sys.stderr)
                tries, pause = 0, _EVERY_S
            except Exception as error:
                # Also what it refuses, such as a run that somebody deleted: no reason to end a training.
                if not is_away(error) and not isinstance(error, (UsageError, mlflow.MlflowException)):
                    self._failed = error
                    return
                if not tries:
                    print(
                        f"MLflow at {without_secret(self.uri)} takes nothing ({reason_of(error)}): the training goes "
                        f"on; its numbers wait in {self.output}/history",
                        file=sys.stderr,
                    )
                pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
                tries += 1

    def send(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """All that is there and not yet sent, until it is enough.

        Raises:
            StoreError, MlflowException: what was not sent will be the next time.
        """
        done = self._sent()
        there = segments(self.output)
        new = [segment for segment in there if segment.name not in done["segments"]]
        names = {segment.name for segment in there}
        # Of a checkpoint that was damaged: its steps were told, and then made and told again.
        after = max((last for name, last in done["segments"].items() if name not in names), default=-1)
        committed = self.committed() if new else 0
        client = client_of(self.uri)
        for segment in new:
            if segment.last > committed or is_enough():
                break
            found = [Metric(p.name, p.value, p.time, p.step) for p in points(segment, after)]
            for start in range(0, len(found), _BATCH):
                client.log_batch(self.run_id, metrics=found[start : start + _BATCH])
            done["segments"][segment.name] = segment.last
            self._keep(done)
        pictures = storage.list_files(storage.join(self.output, SAMPLES), (".png",))
        for name, uri in pictures:
            if is_enough():
                break
            if name not in done["pictures"]:
                self._picture(client, name, storage.read_bytes(uri), newest=name == pictures[-1][0])
                done["pictures"].append(name)
                self._keep(done)

    def _picture(self, client: mlflow.MlflowClient, name: str, data: bytes, newest: bool) -> None:
        """As a file; as an image, as which MLflow's charts have it; the newest also where MLflow's page that compares
        runs looks for what it puts side by side."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(name).name
            file.write_bytes(data)
            client.log_artifact(self.run_id, str(file), SAMPLES)
            with Image.open(file) as picture:
                client.log_image(self.run_id, picture, key=SAMPLES, step=epoch_of(name))
            if newest:
                client.log_artifact(self.run_id, str(file.rename(file.with_name(NEWEST))))

    def _sent(self) -> dict[str, Any]:
        """What was sent to this run before, perhaps by a driver that died."""
        place = storage.join(self.output, "history", "sent.json")
        if not self._record and storage.exists(place):
            self._record = json.loads(storage.read_bytes(place))
        if self._record.get("run_id") != self.run_id:
            self._record = {"run_id": self.run_id, "segments": {}, "pictures": []}
        return self._record

    def _keep(self, done: dict[str, Any]) -> None:
        storage.write_text(storage.join(self.output, "history", "sent.json"), json.dumps(done))
