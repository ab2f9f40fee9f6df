"""Images and shards of an input, by name; tables of them."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from facelab.data import shards
from facelab.data.tables import write_table


@dataclass(frozen=True)
class Item:
    """A part of an input: an image, wherever it lies, or a shard."""

    name: str
    """Relative to the input; of an image, its id."""
    uri: str
    """The file, or the archive that holds it; empty of what is yet to be made."""
    size: int = 0
    """Bytes, as far as they are known."""
    member: str = ""
    """What archives.read finds it by, where `uri` is an archive."""
    split: str = ""
    """train, val or test, where the recipe knows it; else the rule decides by the name."""
    box: tuple[int, int, int, int] | None = None
    """The face in the image: left, top, right, bottom, px."""
    rows: int = 1
    """Of a shard."""
    sha256: str = ""
    """Of a shard's bytes, by the manifest."""
    splits: Mapping[str, int] = field(default_factory=dict)
    """Of a shard, by the manifest: split -> rows."""
    stamp: str = ""
    """Of an image that was listed: another after every change."""


ITEM_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("uri", pa.binary()),  # a local path need not be UTF-8
        ("size", pa.int64()),
        ("member", pa.string()),
        ("split", pa.string()),
        ("box", pa.list_(pa.int32())),
    ]
)


def read_items(uri: str) -> tuple[Item, ...]:
    """A table of images, as write_items left it."""
    rows = shards.read_shard(uri, ITEM_SCHEMA.names)
    boxes = (tuple(row["box"]) if row["box"] else None for row in rows)
    return tuple(
        Item(**row | {"uri": os.fsdecode(row["uri"]), "box": box}) for row, box in zip(rows, boxes, strict=True)
    )


def write_items(uri: str, items: Iterable[Item]) -> None:
    """A table of images."""
    rows = ({name: getattr(item, name) for name in ITEM_SCHEMA.names} for item in items)
    write_table(uri, [row | {"uri": os.fsencode(row["uri"])} for row in rows], ITEM_SCHEMA)


def cut(items: Iterable[Item], rows: int, size: float = math.inf) -> Iterator[tuple[Item, ...]]:
    """Neighbours, at most so many rows and bytes, but one item at least."""
    part: list[Item] = []
    rows_left, size_left = rows, size
    for item in items:
        if part and (item.rows > rows_left or item.size > size_left):
            yield tuple(part)
            part, rows_left, size_left = [], rows, size
        part.append(item)
        rows_left, size_left = rows_left - item.rows, size_left - item.size
    if part:
        yield tuple(part)
