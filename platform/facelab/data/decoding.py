"""An input as images of one size: decoded part by part, its rows then put in order. Where the pixels go is the caller's
to say: into memory, or into files that a node's workers share."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from facelab import storage
from facelab.data import shards
from facelab.data.faces import training_face
from facelab.data.items import Item
from facelab.data.source import Row, Source, Unit, find, kind_of, read
from facelab.data.tables import chunks, require_plain
from facelab.errors import UsageError
from facelab.images import BadImage, decode_tensor

PART_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("hr_id", pa.string()),  # of a face, its own
        ("split", pa.string()),
        ("digest", pa.string()),  # SHA-256 of the encoded face; of a pair, of its sharp one
        ("rejected", pa.string()),
        ("enlarged", pa.bool_()),
    ]
)
"""What is known of each row of a part, in the order of its pixels."""

_FORMAT = [1, PIL.__version__, torch.__version__]
"""What decides the pixels beside an input: our own version, and who decodes and resizes."""
_IMAGES = 256
"""Of a folder, in one part."""
_THREADS = 4


@dataclass(frozen=True)
class Facts:
    """What was found in a whole input."""

    rows: int
    hash: str
    """Of the rows that are kept, before resizing."""
    rejected: int
    """Rows that could not be used."""
    first: str
    """One of them and why; empty where there is none."""
    enlarged: int
    """Kept faces that were smaller than the images."""
    copies: int
    """Left out, as their face is that of another name."""


@dataclass(frozen=True)
class Decoded:
    """An input whose images are there."""

    index: pa.Table
    """id, hr_id, split and digest of the rows that are kept, in the order of their ids; and their `position` among the
    pixels, where those do not lie in that order."""
    pixels: dict[str, np.ndarray]
    """Column -> (rows, 3, H, W) uint8."""
    facts: Facts
    hold: Any = None
    """What keeps the files of the pixels, where they lie in files."""


@dataclass(frozen=True)
class Decoding:
    """What is to be decoded, and to which sizes."""

    source: Source
    shapes: dict[str, tuple[int, int, int]]
    """Column -> (3, H, W): "image" of faces, "hr" and "lr" of pairs."""
    least_side: int = 1
    """Faces whose shorter side has fewer px are rejected."""

    @cached_property
    def parts(self) -> list[Unit]:
        """Each shard, or so many images of a folder."""
        return self.source.units(_IMAGES)

    @cached_property
    def starts(self) -> list[int]:
        """The row at which each part begins; last, the number of rows."""
        return np.cumsum([0, *(sum(item.rows for item in part.items) for part in self.parts)]).tolist()

    @property
    def rows(self) -> int:
        return self.starts[-1]

    @property
    def row_bytes(self) -> int:
        """Pixels of a row."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    def of(self, items: Sequence[Item]) -> "Decoding":
        """The same of some of its shards."""
        return replace(self, source=replace(self.source, items=tuple(items), rows=sum(item.rows for item in items)))

    @property
    def key(self) -> str:
        """SHA-256 of all that decides the pixels."""
        source = self.source
        what = [_FORMAT, source.kind, source.hash, self.shapes, self.least_side, source.contents]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def decode(self, number: int, into: dict[str, np.ndarray]) -> pa.Table:
        """Decode a part into arrays of its rows, as PART_SCHEMA tells.

        Raises:
            UsageError: a damaged or changed shard, or a pair that cannot be used.
        """
        part = self.parts[number]
        columns = _COLUMNS["pairs" if part.kind == "pairs" else "faces"]
        fill = self._pair if part.kind == "pairs" else self._face
        expected, found = self.starts[number + 1] - self.starts[number], []
        with ThreadPoolExecutor(_THREADS) as pool:
            for chunk in chunks(_rows(part, columns, expected), 256):
                places = [{name: array[len(found) + i] for name, array in into.items()} for i in range(len(chunk))]
                found += pool.map(fill, chunk, places)
        return pa.Table.from_pylist(found, schema=PART_SCHEMA)

    def _face(self, row: Row, place: dict[str, np.ndarray]) -> Row:
        known = {"id": row["id"], "hr_id": row["id"], "split": row["split"], "digest": row["sha256"]}
        rejected, enlarged = row["rejected"], False
        try:
            if not rejected:
                image, enlarged = training_face(row["image"], place["image"].shape[-1], self.least_side)
                place["image"][:] = image.numpy()
        except BadImage as error:
            rejected = str(error)
        return known | {"rejected": rejected, "enlarged": enlarged}

    def _pair(self, row: Row, place: dict[str, np.ndarray]) -> Row:
        for name, image in place.items():
            try:
                pixels = decode_tensor(row[name])
            except BadImage as error:
                raise UsageError(f"{row['uri']}: pair {row['id']}: {error}: write the set again") from error
            if pixels.shape != image.shape:
                raise UsageError(
                    f"{row['uri']}: pair {row['id']}: another size than the first's: synthesise them with one --hr-size"
                )
            image[:] = pixels.numpy()
        split = row.get("split") or shards.split_of(row["hr_id"])
        known = {"id": row["id"], "hr_id": row["hr_id"], "split": split, "digest": row["hr_sha256"]}
        return known | {"rejected": "", "enlarged": False}


_COLUMNS = {
    "faces": ("id", "image", "split", "sha256"),
    "pairs": ("id", "hr_id", "hr", "lr", "split", "hr_sha256"),
}


def faces_of(uri: str, size: int, least_side: int = 1) -> Decoding:
    """Face shards, or a folder of images, as images of `size` px.

    Raises:
        UsageError: nothing usable there.
    """
    return _checked(Decoding(find(uri, "faces"), {"image": (3, size, size)}, least_side))


def pairs_of(uri: str) -> Decoding:
    """Pair shards, at the sizes of their first row.

    Raises:
        UsageError: no pairs there, or a damaged shard.
    """
    if kind_of(uri, "pairs") == "folder":
        raise UsageError(f"{uri}: no pair shards: make them with `python -m jobs.synthesize`")
    source = find(uri, "pairs")
    return _checked(Decoding(source, _sizes(source.items[0].uri)))


def _checked(decoding: Decoding) -> Decoding:
    source = decoding.source
    shards.require_rows(source.uri, source.kind, decoding.rows, source.rows)
    return decoding


def _sizes(uri: str) -> dict[str, tuple[int, int, int]]:
    """Of the first pair of a shard, without fetching much more than that."""
    filesystem, path = storage.resolve(uri)
    with storage.explained(uri):
        try:
            shard = pq.ParquetFile(path, filesystem=filesystem, buffer_size=2**16)
            batch = next(shard.iter_batches(1, columns=["hr", "lr"]))
            require_plain(uri, batch.schema)
            (pair,) = batch.to_pylist()
            return {name: tuple(decode_tensor(data).shape) for name, data in pair.items()}  # pyrefly: ignore
        except BadImage as error:
            raise UsageError(f"{uri}: its first pair: {error}: write the set again") from error
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "errno", None) is not None:  # the store's, not Arrow's
                raise
            raise UsageError(f"{uri}: damaged shard ({str(error).splitlines()[0]}): write the set again") from error


def _rows(part: Unit, columns: Sequence[str], expected: int) -> Iterator[Row]:
    """The rows of a part, with the URI of their shard.

    Raises:
        UsageError: not as many as expected; more are never given.
    """
    uri = part.items[0].uri if part.kind != "folder" else part.source
    count = 0
    for count, row in enumerate(read(part, columns), 1):
        if count <= expected:
            yield row | {"uri": uri}
    shards.require_rows(uri, part.kind, count, expected)


def in_order(decoding: Decoding, parts: Sequence[pa.Table]) -> tuple[pa.Table, Facts]:
    """The index of a whole input from what is known of its parts. Of rows with equal faces, those of the first name are
    kept: under two names, a face could be trained and validated on."""
    table = pa.concat_tables(parts)
    table = table.append_column("position", pa.array(np.arange(len(table))))
    rejected = table.filter(pc.field("rejected") != "")
    usable = table.filter(pc.field("rejected") == "").sort_by("hr_id")
    names, faces = _numbered(usable["hr_id"]), _numbered(usable["digest"])
    owners = np.full(len(usable), len(usable))  # of each face, its first name
    np.minimum.at(owners, faces, names)
    kept = usable.filter(pa.array(owners[faces] == names)).sort_by("id").combine_chunks()
    facts = Facts(
        rows=len(table),
        hash=decoding.source.hash if decoding.source.kind == "pairs" else _hash(kept),
        rejected=len(rejected),
        first="".join(f"{row['id']}: {row['rejected']}" for row in rejected.slice(0, 1).to_pylist()),
        enlarged=int(kept["enlarged"].to_numpy().sum()),
        copies=len(usable) - len(kept),
    )
    return kept.select(["id", "hr_id", "split", "digest", "position"]), facts


def _numbered(values: pa.ChunkedArray) -> np.ndarray:
    """Equal values have equal numbers, from 0 in the order of their first appearance."""
    return values.combine_chunks().dictionary_encode().indices.to_numpy()


def _hash(faces: pa.Table) -> str:
    row_hash = shards.RowHash()
    for batch in faces.select(["id", "digest"]).to_batches(4096):
        for row in batch.to_pylist():
            row_hash.add({"id": row["id"], "sha256": row["digest"]})
    return row_hash.hexdigest()
