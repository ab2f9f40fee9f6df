"""What jobs.evaluate wrote of one model, as a page needs it: its numbers, those of each image, and its pictures."""

import io
import json
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from facelab import storage
from facelab.data import shards
from facelab.data.tables import require_plain
from facelab.errors import StoreError, UsageError
from facelab.images import decode_tensor
from facelab.metrics.catalogue import metric
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.reports.page import PictureRow
from facelab.reports.table import Row

Pictures = dict[tuple, dict[str, torch.Tensor]]
"""An image's id and the pixels that went in -> its lr, sr and, where there is truth, hr: (3, h, w) uint8 each. In two
sets of faces, an id may stand for two people."""


@dataclass(frozen=True)
class Result:
    """What jobs.evaluate wrote of one model."""

    row: Row
    per_image: dict[str, dict[str, float]]
    """Metric -> id -> value, of the test faces for which it is defined."""
    pictures: dict[str, Pictures]
    """Role -> what the evaluation kept of it."""

    @property
    def name(self) -> str:
        return self.row.name

    def finite(self, name: str) -> list[float]:
        """The values of a metric that a plot can show."""
        return [value for value in self.per_image.get(name, {}).values() if math.isfinite(value)]


def read_json(place: str, uri: str) -> dict[str, Any]:
    """The object in a file that jobs.evaluate wrote.

    Args:
        uri: by which the user knows the evaluation.

    Raises:
        UsageError: no such file, or something else in it.
    """
    try:
        found = json.loads(storage.read_bytes(place))
        if not isinstance(found, dict):
            raise ValueError("an object is expected")
        return found
    except StoreError:
        raise
    except UsageError as error:
        name = place.rsplit("/", 1)[1]
        raise UsageError(f"{uri}: no {name} there: give the --output of jobs.evaluate, or runs:/ID") from error
    except ValueError as error:
        raise UsageError(f"{place}: damaged ({error}): evaluate again") from error


def result_of(name: str, folder: str | None, uri: str, summary: dict[str, Any]) -> Result:
    """An evaluation under the name that it has in a table.

    Args:
        folder: where its files are; None of a summary by itself.
        uri: by which the user knows it.

    Raises:
        UsageError: not what jobs.evaluate writes.
    """
    if not metric_names(summary):
        raise UsageError(f"{uri}: its numbers have no protocol: give the --output of jobs.evaluate")
    try:
        for number in metric_names(summary):
            metric(number), Number.of(number, summary)
        if not all(isinstance(summary.get(count, 0), int) for count in ("n", "n_real")):
            raise TypeError("n and n_real count images")
        if folder is None:
            return Result(Row(name, summary), {}, {})
        return Result(Row(name, summary, _protocols_of(folder, uri)), per_image(folder), _pictures(folder))
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise UsageError(f"{uri}: not what jobs.evaluate writes ({said}): evaluate again") from error


def _protocols_of(folder: str, uri: str) -> dict[str, dict[str, Any]]:
    place = storage.join(folder, "protocol.json")
    found = read_json(place, uri) if storage.exists(place) else {}
    if not all(isinstance(protocol, dict) for protocol in found.values()):
        raise TypeError("protocol.json: an object for each number is expected")
    return found


def per_image(folder: str) -> dict[str, dict[str, float]]:
    """Metric -> id -> value, of the test faces of an evaluation for which it is defined; none where it kept none."""
    place = storage.join(folder, "per_image.parquet")
    if not storage.exists(place):
        return {}
    data = storage.read_bytes(place)
    require_plain(place, pq.read_schema(io.BytesIO(data)))
    table = pq.read_table(io.BytesIO(data), filters=[("role", "=", "test")]).to_pydict()
    return {
        column: {i: v for i, v in zip(table["id"], table[column], strict=True) if v is not None and not math.isnan(v)}
        for column in table.keys() - {"role", "id"}
    }


def _pictures(folder: str) -> dict[str, Pictures]:
    place = storage.join(folder, "examples.parquet")
    found: dict[str, Pictures] = defaultdict(dict)
    for example in shards.read_shard(place, ["role", "id", "lr", "sr", "hr"]) if storage.exists(place) else []:
        images = {key: decode_tensor(example[key]) for key in ("lr", "sr")}
        if example["hr"] is not None:
            images["hr"] = decode_tensor(example["hr"])
        given = ((x.shape, x.numpy().tobytes()) for key, x in images.items() if key != "sr")
        found[example["role"]][example["id"], *given] = images
    return found


def shared_pictures(kept: dict[str, Pictures]) -> list[PictureRow]:
    """Input, each method, and truth where there is one, of the images that every evaluation kept."""
    first = next(iter(kept.values()), {})
    shared = [image for image in first if all(image in found for found in kept.values())]
    rows: list[PictureRow] = [("input", [first[image]["lr"] for image in shared])]
    rows += [(name, [found[image]["sr"] for image in shared]) for name, found in kept.items()]
    rows.append(("truth", [first[image]["hr"] for image in shared if "hr" in first[image]]))
    return [(label, images) for label, images in rows if len(images)]
