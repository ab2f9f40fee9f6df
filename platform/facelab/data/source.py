"""An input, whatever it is made of: images in a folder or in archives, face shards, pair shards -> units -> rows. The
one reader."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from facelab import storage
from facelab.data import archives, shards
from facelab.data.faces import face_row, read_file
from facelab.data.items import Item, read_items
from facelab.data.manifest import Manifest, read_manifest, require_shards
from facelab.data.tables import chunks
from facelab.errors import UsageError
from facelab.images import IMAGE_SUFFIXES, BadImage, read_image

Row = dict[str, Any]
"""Columns of a shard, and `rejected`: why the row cannot be used, else empty."""


@dataclass(frozen=True)
class Unit:
    """A part of an input that is worked on and committed as one: some shards, or some images."""

    source: str
    """URI of the whole, or what its rows name as their source."""
    kind: str
    """folder (of images, wherever they lie), faces, pairs, or drawn."""
    items: tuple[Item, ...] = ()
    """Empty where they are listed."""
    name: str = ""
    """Of a unit that is committed, 20 hexadecimal digits: see ShardSet.unit_name."""
    rows: int = 0
    """Of its items together."""
    listed: str = ""
    """URI of the table of its items: too many for a driver."""

    def load(self) -> tuple[Item, ...]:
        """The items, wherever they are."""
        return self.items or read_items(self.listed)


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

    @property
    def contents(self) -> list[list[Any]]:
        """Name, bytes and SHA-256 of each shard; a folder has no manifest, and its files are known by name, size and
        stamp. Another list after every change; of shards, the same wherever they lie."""
        return [[item.name, item.size, item.sha256 or item.stamp] for item in self.items]

    def units(self, images: int) -> list[Unit]:
        """Each shard, or so many images: a function of the input alone."""
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
    manifest = manifest_of(uri, *kinds)
    return "folder" if manifest is None else manifest.kind


def manifest_of(uri: str, *kinds: str) -> Manifest | None:
    """Of shards of one of `kinds`; None of a folder.

    Raises:
        UsageError: nothing there, or shards of another kind.
    """
    require_folder(uri)
    manifest = read_manifest(uri)
    if manifest is not None and manifest.kind not in kinds:
        raise UsageError(f"{uri}: holds {manifest.kind}, but {' or '.join(kinds)} are wanted here")
    return manifest


def find(uri: str, *kinds: str) -> Source:
    """An input of shards of one of `kinds`, or of a folder of images.

    Raises:
        UsageError: nothing usable there.
    """
    manifest = manifest_of(uri, *kinds)
    if manifest is None:
        return find_images(uri)
    if not manifest.shards:
        raise UsageError(f"{uri}: an empty set of {manifest.kind}")
    require_shards(uri, manifest)
    return Source(uri, manifest.kind, shard_items(uri, manifest), manifest.rows, manifest.hash)


def shard_items(uri: str, manifest: Manifest) -> tuple[Item, ...]:
    """The shards of a set, as its manifest has them."""
    return tuple(
        Item(s.name, storage.join(uri, s.name), s.bytes, rows=s.rows, sha256=s.sha256, splits=s.splits)
        for s in manifest.shards
    )


def find_images(uri: str) -> Source:
    """Every image below a folder, in the order of their names.

    Raises:
        UsageError: none there.
    """
    items = tuple(sorted(scan_images(uri), key=lambda item: item.name))
    return Source(uri, "folder", items, len(items))


def scan_images(uri: str) -> Iterator[Item]:
    """The same little by little, in the order of storage.scan."""
    require_folder(uri)
    spelt, any_found = set(), False
    for found in storage.scan(uri, IMAGE_SUFFIXES):
        any_found = True
        if "\\" in found.name:  # as bytes that are no UTF-8 are spelt out
            if found.name in spelt:
                raise UsageError(
                    f"{uri}: two files have one name when the bytes that are no UTF-8 are spelt out: rename one"
                )
            spelt.add(found.name)
        yield Item(found.name, found.uri, found.size, stamp=found.stamp)
    if not any_found:
        raise UsageError(f"{uri}: no images ({', '.join(IMAGE_SUFFIXES)}) below this folder")


def require_folder(uri: str) -> None:
    """
    Raises:
        UsageError: nothing there, or a file.
    """
    what = "not found" if not storage.exists(uri) else "is a file" if storage.is_file(uri) else None
    if what:
        raise UsageError(
            f"{uri}: {what}: give a folder of images or the output of a facelab job (of an archive, jobs.prepare makes "
            "one: --recipe zip, tar, webdataset or parquet)"
        )


def read(unit: Unit, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a unit.

    Args:
        columns: of shards; of images, those of FACE_SCHEMA. A rejected image has its id alone.

    Raises:
        UsageError: a damaged shard, or a store that cannot be reached.
    """
    if unit.kind != "folder":
        for item in unit.load():
            yield from (row | {"rejected": ""} for row in shards.read_shard(item.uri, columns, item.sha256))
        return
    items = unit.load()
    shown, image = None, None
    for item, data in zip(items, _contents(items), strict=True):
        try:
            if isinstance(data, BadImage):
                raise data
            if data is not shown:  # the faces of one photograph are neighbours: it is decoded once
                shown, image = data, read_image(data)
            row = face_row(item.name, data, unit.source, item.split, item.box, image)
            yield {column: row[column] for column in columns} | {"rejected": ""}
        except BadImage as error:
            yield dict.fromkeys(columns) | {"id": item.name, "rejected": str(error)}


def _contents(items: Sequence[Item]) -> Iterator[bytes | BadImage]:
    """The file or member of each, or why it has none; neighbours of one file have one and the same."""
    for archived, some in groupby(items, lambda item: bool(item.member)):
        if archived:
            yield from archives.read(list(some))
            continue
        for uri, same in groupby(some, lambda item: item.uri):
            try:
                data = read_file(uri)
            except BadImage as error:
                data = error
            yield from (data for _ in same)
