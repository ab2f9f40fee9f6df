"""What a training tells of itself, beside its checkpoints: a Parquet file below OUTPUT/history for each of them, and
pictures. It outlives the worker that wrote it and a tracker that is away; it has every step, where MLflow has means."""

import hashlib
import io
import json
import math
import time
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from facelab import storage
from facelab.errors import UsageError
from facelab.images import encode_png

_MOST_POINTS = 2000
"""Of a curve in MLflow, about: means over as many steps as that takes."""
_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("time", pa.int64()),
        ("name", pa.dictionary(pa.int32(), pa.string())),
        ("value", pa.float64()),
    ]
)


class Segment(NamedTuple):
    """One file of a spool."""

    name: str
    last: int
    """The latest step that it tells of."""
    uri: str


def segments(output: str) -> list[Segment]:
    """What was written so far, by their last steps."""
    found = storage.list_files(storage.join(output, "history"), (".parquet",))
    return [Segment(name, int(name.partition("-")[0]), uri) for name, uri in found]


class Spool:
    """For the training loop, on rank 0: the logger that MLflow's numbers come from. See training/history.py for when a
    file counts: once a checkpoint of its last step was written."""

    def __init__(self, output: str):
        self.output = output
        self._rows: list[tuple[int, int, str, float]] = []
        self._pictures: list[tuple[str, np.ndarray]] = []
        self._every = 1

    def begin(self, step: int, total: int) -> None:
        """The training goes on after this step, to `total`: what was told of later ones will come again."""
        self._every = max(math.ceil(total / _MOST_POINTS), 1)
        for segment in segments(self.output):
            if segment.last > step:
                storage.delete(segment.uri)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keep until flush; inf and nan are left out, as MLflow's databases differ in what they make of them."""
        now = int(time.time() * 1000)
        self._rows += [(step, now, name, float(value)) for name, value in values.items() if np.isfinite(value)]

    def image(self, name: str, picture: np.ndarray) -> None:
        self._pictures.append((name, picture))

    def flush(self) -> None:
        """Write all that was told since the last time; if that fails, the next one does.

        Raises:
            StoreError: it fails.
        """
        while self._pictures:
            name, picture = self._pictures[0]
            storage.write_bytes(storage.join(self.output, name), encode_png(picture))
            self._pictures.pop(0)
        if self._rows:
            columns = [pa.array(column) for column in zip(*self._rows, strict=True)]
            columns[2] = columns[2].dictionary_encode()
            table = pa.Table.from_arrays(columns, schema=_SCHEMA)
            buffer = io.BytesIO()
            pq.write_table(table.replace_schema_metadata({"every": str(self._every)}), buffer)
            # By its content: of a write that was carried out though it seemed to fail, the next is no double.
            digest = hashlib.sha256(json.dumps(self._rows).encode()).hexdigest()[:8]
            last = max(step for step, *_ in self._rows)
            storage.write_bytes(storage.join(self.output, "history", f"{last:09d}-{digest}.parquet"), buffer.getvalue())
            self._rows = []


class Point(NamedTuple):
    """Of a curve."""

    name: str
    value: float
    time: int
    """Milliseconds since 1970."""
    step: int


def points(segment: Segment, after: int) -> list[Point]:
    """What a tracker is told of a file: train/… as means over some steps, each with the last one's step and time.

    Args:
        after: steps up to this one are left out.
    """
    table = pq.read_table(io.BytesIO(storage.read_bytes(segment.uri)))
    if table.schema != _SCHEMA:  # of other types, the values of some could run code
        raise UsageError(f"{segment.uri}: no history of a training: delete it")
    every = int(table.schema.metadata[b"every"])
    found: list[Point] = []
    windows: dict[tuple[str, int], list[tuple[int, int, float]]] = {}
    for row in table.to_pylist():
        if row["step"] <= after:
            continue
        if row["name"].startswith("train/"):
            window = windows.setdefault((row["name"], (row["step"] - 1) // every), [])
            window.append((row["step"], row["time"], row["value"]))
        else:
            found.append(Point(row["name"], row["value"], row["time"], row["step"]))
    for (name, _), rows in windows.items():
        step, when, _ = rows[-1]
        found.append(Point(name, sum(value for *_, value in rows) / len(rows), when, step))
    return sorted(found, key=lambda point: point.step)
