"""An input, whatever it is made of: a folder of images, face shards or pair shards -> units -> rows. The one reader."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from facelab import storage
from facelab.data import shards
from facelab.data.faces import read_face
from facelab.data.tables import chunks
from facelab.errors import UsageError
from facelab.images import IMAGE_SUFFIXES, BadImage

Row = dict[str, Any]
"""Columns of a shard, and `rejected`: why the row cannot be used, else empty."""


@dataclass(frozen=True)
class Item:
    """A file of an input: an image, or a shard."""

    name: str
    """Relative to the input."""
    uri: str
    """Empty of what is yet to be made."""


@dataclass(frozen=True)
class Unit:
    """A part of an input that is worked on and committed as one: a shard, or some images."""

    source: str
    """URI of the whole, or what its rows name as their source."""
    kind: str
    """folder, faces, pairs, or drawn."""
    items: tuple[Item, ...]

    @cached_property
    def name(self) -> str:
        """20 hexadecimal digits, a function of the items' names alone."""
        return hashlib.sha256("\n".join(item.name for item in self.items).encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Source:
    """An input that was found."""

    uri: str
    kind: str
    """folder, faces or pairs."""
    items: tuple[Item, ...]
    rows: int
    """Images of a folder, or rows by the manifest."""
    hash: str = ""
    """Of the rows alone, by the manifest."""

    def units(self, images: int) -> list[Unit]:
        """Each shard, or so many images in the order of the items: a function of the input alone."""
        size = images if self.kind == "folder" else 1
        return [Unit(self.uri, self.kind, tuple(part)) for part in chunks(self.items, size)]

    def read(self, columns: Sequence[str]) -> Iterator[Row]:
        """Every row.

        Raises:
            UsageError: a damaged shard, or, at the end, rows are missing.
        """
        count = 0
        for unit in self.units(1):
            for row in read(unit, columns):
                count += 1
                yield row
        shards.require_rows(self.uri, self.kind, count, self.rows)

    def ids(self) -> Iterator[str]:
        """The ids of all rows, without fetching their images."""
        for item in self.items:
            yield from [item.name] if self.kind == "folder" else shards.read_columns(item.uri, ["id"])[0]


def kind_of(uri: str, *kinds: str) -> str:
    """What `uri` holds: shards of one of `kinds`, or "folder".

    Raises:
        UsageError: nothing there, or shards of another kind.
    """
    manifest = _manifest(uri, kinds)
    return "folder" if manifest is None else manifest.kind


def _manifest(uri: str, kinds: tuple[str, ...]) -> shards.Manifest | None:
    _require_folder(uri)
    manifest = shards.read_manifest(uri)
    if manifest is not None and manifest.kind not in kinds:
        raise UsageError(f"{uri}: holds {manifest.kind}, but {' or '.join(kinds)} are wanted here")
    return manifest


def find(uri: str, *kinds: str) -> Source:
    """An input of shards of one of `kinds`, or of a folder of images.

    Raises:
        UsageError: nothing usable there.
    """
    manifest = _manifest(uri, kinds)
    if manifest is None:
        return find_images(uri)
    items = tuple(Item(place.rsplit("/", 1)[1], place) for place in shards.shard_uris(uri))
    if not items:
        shards.require_rows(uri, manifest.kind, 0, manifest.rows)
        raise UsageError(f"{uri}: an empty set of {manifest.kind}")
    return Source(uri, manifest.kind, items, manifest.rows, manifest.hash)


def find_images(uri: str) -> Source:
    """Every image below a folder, in the order of their names.

    Raises:
        UsageError: none there.
    """
    _require_folder(uri)
    files = tuple(Item(name, place) for name, place in storage.list_files(uri, IMAGE_SUFFIXES))
    if len({item.name for item in files}) < len(files):
        raise UsageError(f"{uri}: two files have one name when the bytes that are no UTF-8 are spelt out: rename one")
    if not files:
        raise UsageError(f"{uri}: no images ({', '.join(IMAGE_SUFFIXES)}) below this folder")
    return Source(uri, "folder", files, len(files))


def _require_folder(uri: str) -> None:
    what = "not found" if not storage.exists(uri) else "is a file" if storage.is_file(uri) else None
    if what:
        raise UsageError(f"{uri}: {what}: give a folder of images or the output of a facelab job")


def read(unit: Unit, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a unit.

    Args:
        columns: of shards; of a folder, those of FACE_SCHEMA. A rejected image has its id alone.

    Raises:
        UsageError: a damaged shard, or a store that cannot be reached.
    """
    for item in unit.items:
        if unit.kind != "folder":
            yield from (row | {"rejected": ""} for row in shards.read_shard(item.uri, columns))
            continue
        try:
            row = read_face(item.name, item.uri, unit.source)
            yield {column: row[column] for column in columns} | {"rejected": ""}
        except BadImage as error:
            yield dict.fromkeys(columns) | {"id": item.name, "rejected": str(error)}
