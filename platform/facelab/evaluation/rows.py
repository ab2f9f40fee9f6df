"""The images of an evaluation as one stream of rows: test faces with truth, real faces, reference faces."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from facelab.data import shards
from facelab.data.tensors import image_files, is_shard_set, read_face
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.images import BadImage
from facelab.seeding import seed_for

Item = dict[str, str]
"""A file or a shard of some role: what one reading task is told."""


@dataclass(frozen=True)
class ImageSet:
    """One input of an evaluation."""

    role: str
    """test, real or reference."""
    uri: str
    kind: str
    """folder, faces or pairs."""
    items: list[Item]
    rows: int
    """Files, or rows by the manifest."""

    @property
    def lr_kind(self) -> str:
        """Where the low-resolution images come from."""
        return "real" if self.role == "real" else "pairs" if self.kind == "pairs" else "bicubic"

    def ids(self) -> Iterator[str]:
        """Ids of all rows, without fetching their images."""
        for item in self.items:
            yield from [item["name"]] if self.kind == "folder" else shards.read_column(item["uri"], "id")

    def faces(self) -> Iterator[str]:
        """One id for each face, of its first variant."""
        return (identifier for identifier in self.ids() if is_first_variant(self.kind, identifier))


def image_sets(config: EvaluateConfig) -> dict[str, ImageSet]:
    """The sets that a config names, by role.

    Raises:
        UsageError: nothing usable there.
    """
    named = {"test": config.test, "real": config.real, "reference": config.reference}
    return {role: _image_set(role, uri) for role, uri in named.items() if uri}


def _image_set(role: str, uri: str) -> ImageSet:
    manifest = shards.read_manifest(uri)
    kind = "pairs" if role == "test" and manifest and manifest.kind == "pairs" else "faces"
    if is_shard_set(uri, kind):
        assert manifest is not None
        files = [("", place) for place in shards.shard_uris(uri)]
        rows = manifest.rows
        if not rows:
            raise UsageError(f"{uri}: an empty set of {kind}")
    else:
        kind, files = "folder", image_files(uri)
        rows = len(files)
    items = [{"role": role, "kind": kind, "source": uri, "name": name, "uri": place} for name, place in files]
    return ImageSet(role, uri, kind, items, rows)


def read_rows(items: Iterable[Item]) -> Iterator[dict[str, Any]]:
    """Rows of role, id, hr and lr (encoded, empty where there is none), rejected (the reason, else empty)."""
    for item in items:
        if item["kind"] == "pairs":
            found = shards.read_shard(item["uri"], ["id", "hr", "lr"])
        elif item["kind"] == "faces":
            found = [_face(item["role"], row) for row in shards.read_shard(item["uri"], ["id", "image"])]
        else:
            try:
                found = [_face(item["role"], read_face(item["name"], item["uri"], item["source"]))]
            except BadImage as error:
                found = [{"id": item["name"], "hr": b"", "lr": b"", "rejected": str(error)}]
        for row in found:
            yield {"role": item["role"], "rejected": ""} | row


def _face(role: str, row: dict[str, Any]) -> dict[str, Any]:
    image, none = row["image"], b""
    return {"id": row["id"], "hr": none if role == "real" else image, "lr": image if role == "real" else none}


def face_of(kind: str, identifier: str) -> str:
    """What the variants of a face have in common: of a pair's id HR_ID#k, HR_ID."""
    return identifier.rpartition("#")[0] if kind == "pairs" else identifier


def is_first_variant(kind: str, identifier: str) -> bool:
    """Whether a row stands for its face where each face counts once."""
    return kind != "pairs" or identifier.endswith("#0")


def draw_key(seed: int, identifier: str) -> int:
    """The place of an image in a random order of its set, which nothing but its id decides."""
    return seed_for(seed, "draw", identifier)


def draw_thresholds(sets: dict[str, ImageSet], seed: int) -> dict[str, int]:
    """For the floor of FD: the largest draw_key of equally many test and real faces, by role; only of the larger set,
    as all of the smaller are taken.

    Raises:
        UsageError: a shard is missing.
    """
    if not {"test", "real"} <= sets.keys():
        return {}
    if sets["test"].kind != "pairs" and sets["test"].rows == sets["real"].rows:
        return {}  # spares the reading of ids
    keys = {}
    for role in ("test", "real"):
        keys[role] = np.fromiter((draw_key(seed, i) for i in sets[role].faces()), np.uint64)
        if sets[role].kind != "pairs":
            shards.require_rows(sets[role].uri, "faces", len(keys[role]), sets[role].rows)
    smaller, larger = sorted(keys, key=lambda role: len(keys[role]))
    count = len(keys[smaller])
    return {} if count == len(keys[larger]) else {larger: int(np.partition(keys[larger], count - 1)[count - 1])}
