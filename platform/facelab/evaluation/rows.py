"""The images of an evaluation as one stream of rows: test faces with truth, real faces, reference faces."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from facelab.data import shards
from facelab.data.items import Item
from facelab.data.source import Source, Unit, find, read
from facelab.seeding import seed_for

if TYPE_CHECKING:  # the metrics' libraries take seconds to import, in every task that reads
    from facelab.evaluation.config import EvaluateConfig


@dataclass(frozen=True)
class RoleUnit(Unit):
    """A part of an input, and what an evaluation takes it for."""

    role: str = ""
    """test, real or reference."""


@dataclass(frozen=True)
class ImageSet:
    """One input of an evaluation."""

    role: str
    """test, real or reference."""
    source: Source

    @property
    def uri(self) -> str:
        return self.source.uri

    @property
    def kind(self) -> str:
        """folder, faces or pairs."""
        return self.source.kind

    @property
    def rows(self) -> int:
        """Files, or rows by the manifest."""
        return self.source.rows

    @property
    def lr_kind(self) -> str:
        """Where the low-resolution images come from."""
        return "real" if self.role == "real" else "pairs" if self.kind == "pairs" else "bicubic"

    def unit(self, items: Sequence[Item]) -> RoleUnit:
        return RoleUnit(self.uri, self.kind, tuple(items), role=self.role)

    def units(self, images: int) -> list[RoleUnit]:
        """Each shard, or so many images."""
        return [self.unit(unit.items) for unit in self.source.units(images)]

    def ids(self) -> Iterator[str]:
        """Ids of all rows, without fetching their images."""
        return self.source.ids()

    def faces(self) -> Iterator[str]:
        """One id for each face, of its first variant."""
        return (identifier for identifier in self.ids() if is_first_variant(self.kind, identifier))


def image_sets(config: "EvaluateConfig") -> dict[str, ImageSet]:
    """The sets that a config names, by role.

    Raises:
        UsageError: nothing usable there.
    """
    named = {"test": config.test, "real": config.real, "reference": config.reference}
    return {role: _image_set(role, uri) for role, uri in named.items() if uri}


def _image_set(role: str, uri: str) -> ImageSet:
    return ImageSet(role, find(uri, *(("faces", "pairs") if role == "test" else ("faces",))))


def read_rows(unit: RoleUnit) -> Iterator[dict[str, Any]]:
    """Rows of role, id, hr and lr (encoded, empty where there is none), rejected (the reason, else empty)."""
    for row in read(unit, ("id", "hr", "lr") if unit.kind == "pairs" else ("id", "image")):
        if unit.kind == "pairs":
            images = {"hr": row["hr"], "lr": row["lr"]}
        else:  # the image is low-resolution itself, or its LR is made of it
            image, none = row["image"] or b"", b""
            images = {"hr": none, "lr": image} if unit.role == "real" else {"hr": image, "lr": none}
        yield {"role": unit.role, "id": row["id"], **images, "rejected": row["rejected"]}


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
