"""A unit of sharp faces -> rows of pairs, in three steps: decode, degrade, encode. Only the second needs a network, and
an actor; the others go on beside it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from facelab.data.faces import training_face
from facelab.data.source import Row, Unit, read
from facelab.images import BadImage, encode_png
from facelab.synthesis.degrader import Degraded, Degrader

_PNG = b"\x89PNG"


@dataclass(frozen=True)
class Faces:
    """The faces of a unit, and which of them cannot be used."""

    rows: list[Row]
    """Of the usable ones: id, split, sha256, enlarged, and hr, the PNG of what is degraded."""
    hr: torch.Tensor
    """(N, 3, H, W) uint8."""
    rejected: list[Row]
    """id and reason."""


@dataclass(frozen=True)
class Variants:
    """What became of them."""

    rows: list[Row]
    variants: list[Degraded]
    """The N LR faces of each variant, with their styles."""
    rejected: list[Row]


@dataclass(frozen=True)
class Origin:
    """What all pairs of a degrader have in common: columns of PAIR_SCHEMA."""

    style_mode: str
    style_bank: str
    seed: int
    model: str

    @classmethod
    def of(cls, degrader: Degrader) -> "Origin":
        return cls(degrader.style_mode, degrader.style_bank, degrader.seed, degrader.name)


def read_faces(unit: Unit) -> Iterator[Row]:
    """The rows of a unit, with what is needed of them."""
    return read(unit, ("id", "image", "height", "width", "split", "sha256"))


def decode_faces(rows: Iterable[Row], hr_size: int, least_side: int) -> Faces:
    """Such rows at one size; those under `least_side` px are rejected."""
    usable, images, rejected = [], [], []
    for row in rows:
        reason = row["rejected"]
        try:
            if not reason:
                image, enlarged = training_face(row["image"], hr_size, least_side)
                images.append(image)
                kept = {name: row[name] for name in ("id", "split", "sha256")}
                usable.append(kept | {"enlarged": enlarged, "hr": _png(row, image)})
        except BadImage as error:
            reason = str(error)
        if reason:
            rejected.append({"id": row["id"], "rejected": reason})
    hr = torch.stack(images) if images else torch.empty(0, 3, hr_size, hr_size, dtype=torch.uint8)
    return Faces(usable, hr, rejected)


def _png(row: Row, image: torch.Tensor) -> bytes:
    """The face's own file where that is a PNG of these pixels: rows of faces have plain files, whatever was found."""
    size = image.shape[-1]
    own = row["image"].startswith(_PNG) and (row["height"], row["width"]) == (size, size)
    return row["image"] if own else encode_png(image)


class DegradeFaces:
    """Gives the faces of a unit their low-resolution variants: what an actor does."""

    def __init__(self, degrader: Degrader, variants: int):
        self.degrader, self.variants = degrader, variants

    def to(self, device: torch.device) -> "DegradeFaces":
        self.degrader.to(device)
        return self

    def __call__(self, faces: Faces) -> Variants:
        digests = [row["sha256"] for row in faces.rows]
        made = [self.degrader.degrade(faces.hr, digests, k) for k in range(self.variants)] if digests else []
        side = faces.hr.shape[-1] // self.degrader.scale
        for lr, _ in made:
            assert (lr.shape, lr.dtype) == ((len(digests), 3, side, side), torch.uint8), self.degrader.name
        return Variants(faces.rows, made, faces.rejected)


def encode_pairs(made: Variants, origin: Origin) -> Iterator[Row]:
    """Rows of PAIR_SCHEMA, and of what was rejected."""
    yield from made.rejected
    for variant, (lr, styles) in enumerate(made.variants):
        for face, low, style in zip(made.rows, lr, styles, strict=True):
            yield dict(
                id=f"{face['id']}#{variant}",
                hr_id=face["id"],
                variant=variant,
                hr=face["hr"],
                lr=encode_png(low),
                style_ids=[identifier for identifier, _ in style],
                style_weights=[weight for _, weight in style],
                split=face["split"],
                hr_sha256=face["sha256"],
                enlarged=face["enlarged"],
                rejected="",
                **vars(origin),
            )
