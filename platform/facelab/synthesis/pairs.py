"""A unit of sharp faces -> rows of pairs, in three steps: decode, degrade, encode. Only the second needs a network, and
an actor; the others go on beside it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from facelab.data.faces import training_face
from facelab.data.source import Row, Unit, read
from facelab.images import BadImage, encode_png
from facelab.synthesis.degrader import Degraded, Degrader


@dataclass(frozen=True)
class Faces:
    """The faces of a unit, and what became of them."""

    rows: list[Row]
    """Of the usable ones, without their images: id, split, sha256, enlarged."""
    hr: torch.Tensor
    """(N, 3, H, W) uint8."""
    rejected: list[Row]
    """id and reason."""
    variants: list[Degraded] = field(default_factory=list)
    """The N LR faces of each variant, with their styles."""


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


def decode_unit(unit: Unit, hr_size: int, least_side: int) -> Faces:
    """The faces of a unit at one size; those under `least_side` px are rejected."""
    usable, images, rejected = [], [], []
    for row in read(unit, ("id", "image", "split", "sha256")):
        reason, data = row["rejected"], row.pop("image", None)
        try:
            if not reason:
                image, enlarged = training_face(data, hr_size, least_side)
                images.append(image)
                usable.append(row | {"enlarged": enlarged})
        except BadImage as error:
            reason = str(error)
        if reason:
            rejected.append({"id": row["id"], "rejected": reason})
    hr = torch.stack(images) if images else torch.empty(0, 3, hr_size, hr_size, dtype=torch.uint8)
    return Faces(usable, hr, rejected)


class DegradeFaces:
    """Gives the faces of a unit their low-resolution variants: what an actor does."""

    def __init__(self, degrader: Degrader, variants: int):
        self.degrader, self.variants = degrader, variants

    def to(self, device: torch.device) -> "DegradeFaces":
        self.degrader.to(device)
        return self

    def __call__(self, faces: Faces) -> Faces:
        if not faces.rows:
            return faces
        digests = [row["sha256"] for row in faces.rows]
        made = [self.degrader.degrade(faces.hr, digests, variant) for variant in range(self.variants)]
        side = faces.hr.shape[-1] // self.degrader.scale
        for lr, _ in made:
            assert (lr.shape, lr.dtype) == ((len(digests), 3, side, side), torch.uint8), self.degrader.name
        return replace(faces, variants=made)


def encode_pairs(faces: Faces, origin: Origin) -> Iterator[Row]:
    """Rows of PAIR_SCHEMA, and of what was rejected."""
    yield from faces.rejected
    encoded = [encode_png(image) for image in faces.hr]
    for variant, (lr, styles) in enumerate(faces.variants):
        for face, hr, low, style in zip(faces.rows, encoded, lr, styles, strict=True):
            yield dict(
                id=f"{face['id']}#{variant}",
                hr_id=face["id"],
                variant=variant,
                hr=hr,
                lr=encode_png(low),
                style_ids=[identifier for identifier, _ in style],
                style_weights=[weight for _, weight in style],
                split=face["split"],
                hr_sha256=face["sha256"],
                enlarged=face["enlarged"],
                rejected="",
                **vars(origin),
            )
