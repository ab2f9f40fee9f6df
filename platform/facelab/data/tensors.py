"""Rows -> tensors of one size, all in memory: faces, and aligned pairs."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from tqdm import tqdm

from facelab.data import shards
from facelab.data.faces import FacesConfig, require_usable, training_face
from facelab.data.source import Row, Source, find, kind_of
from facelab.data.tables import chunks
from facelab.errors import UsageError
from facelab.images import BadImage, decode_tensor


@dataclass(frozen=True)
class FaceSet:
    """Faces of one size, in the order of their ids."""

    ids: list[str]
    images: torch.Tensor
    """(N, 3, size, size) uint8."""
    digests: list[str]
    """SHA-256 of each encoded image: what a face *is*, whatever its name."""
    splits: list[str]
    """"train", "val" or "test", as decided when the faces were prepared; of a plain folder, by hash of the id."""
    hash: str
    """Of the rows alone, before resizing."""
    rejected: int
    """Files set aside because they could not be used."""
    enlarged: int = 0
    """Faces that were smaller than the images."""
    copies: int = 0
    """Left out, as their bytes are those of a face with another name."""

    @property
    def counts(self) -> dict[str, int]:
        """For a summary."""
        return {"n_rejected": self.rejected, "n_enlarged": self.enlarged, "n_copies": self.copies}

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, split: str) -> "FaceSet":
        """The "train", "val" or "test" part."""
        keep = _positions(self.splits, split)
        ids, digests, splits = ([values[i] for i in keep] for values in (self.ids, self.digests, self.splits))
        return replace(self, ids=ids, images=self.images[keep], digests=digests, splits=splits)


@dataclass(frozen=True)
class PairSet:
    """Aligned pairs, in the order of their ids."""

    ids: list[str]
    hr_ids: list[str]
    splits: list[str]
    """Those of the sharp faces: variants of a face never straddle two."""
    hr: torch.Tensor
    """(N, 3, H, W) uint8."""
    lr: torch.Tensor
    """(N, 3, H/scale, W/scale) uint8."""
    hash: str
    copies: int = 0
    """Left out, as their sharp face is that of pairs with another name."""

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, split: str) -> "PairSet":
        """The "train", "val" or "test" part."""
        keep = _positions(self.splits, split)
        ids, hr_ids, splits = ([values[i] for i in keep] for values in (self.ids, self.hr_ids, self.splits))
        return replace(self, ids=ids, hr_ids=hr_ids, splits=splits, hr=self.hr[keep], lr=self.lr[keep])


def _positions(splits: list[str], split: str) -> list[int]:
    return [i for i, own in enumerate(splits) if own == split]


def load_faces(uri: str, size: int, *, least_side: int = 1, max_rejected: float = 1, progress: bool = False) -> FaceSet:
    """All faces of face shards or of a folder of images, as (N, 3, size, size) uint8; of equal ones, the first by name.

    Args:
        least_side: faces whose shorter side has fewer px are rejected.

    Raises:
        UsageError: nothing usable there, or more than `max_rejected` of it is not.
    """
    source = find(uri, "faces")
    rejected, first = 0, ""

    def load(row: Row) -> tuple[Row, torch.Tensor | None]:
        try:
            if not row["rejected"]:
                image, row["enlarged"] = training_face(row.pop("image"), size, least_side)
                return row, image
        except BadImage as error:
            row["rejected"] = str(error)
        return row, None

    found: dict[str, tuple[Row, torch.Tensor]] = {}
    rows = _shown(source, source.read(["id", "image", "split", "sha256"]), "face", progress)
    count = copies = 0
    with ThreadPoolExecutor(4) as pool:
        for row, image in (pair for chunk in chunks(rows, 256) for pair in pool.map(load, chunk)):
            count += 1
            if image is None:
                rejected += 1
                first = first or f"{row['id']}: {row['rejected']}"
                continue
            known = found.get(row["sha256"])
            copies += known is not None
            if known is None or row["id"] < known[0]["id"]:
                found[row["sha256"]] = row, image
    require_usable(uri, rejected, count, first, max_rejected)
    faces = sorted(found.values(), key=lambda face: face[0]["id"])
    row_hash = shards.RowHash()
    for row, _ in faces:
        row_hash.add({"id": row["id"], "sha256": row["sha256"]})
    ids, digests, splits = ([row[key] for row, _ in faces] for key in ("id", "sha256", "split"))
    enlarged = sum(row["enlarged"] for row, _ in faces)
    images = torch.stack([image for _, image in faces])
    return FaceSet(ids, images, digests, splits, row_hash.hexdigest(), rejected, enlarged, copies)


def load_faces_for(config: FacesConfig, uri: str, *, sharp: bool, progress: bool = False) -> FaceSet:
    """The faces of one input of a job, at its size and within its limits; errors as of load_faces."""
    size = config.hr_size if sharp else config.lr_size
    least, most = config.least_side(size, sharp=sharp), config.max_rejected
    return load_faces(uri, size, least_side=least, max_rejected=most, progress=progress)


def load_pairs(uri: str, *, progress: bool = False) -> PairSet:
    """All pairs of a shard set; of those with equal sharp faces, the pairs of the first by name.

    Raises:
        UsageError: no pairs there, or of different sizes.
    """
    if kind_of(uri, "pairs") == "folder":
        raise UsageError(f"{uri}: no pair shards: make them with `python -m jobs.synthesize`")
    source = find(uri, "pairs")
    pairs = []
    owners: dict[bytes, str] = {}
    """Digest of a sharp face -> the first of the ids that it has."""
    for row in _shown(source, source.read(["id", "hr_id", "hr", "lr", "split"]), "pair", progress):
        digest = hashlib.sha256(row["hr"]).digest()
        owners[digest] = min(row["hr_id"], owners.get(digest, row["hr_id"]))
        split = row.get("split") or shards.split_of(row["hr_id"])
        try:
            hr, lr = (decode_tensor(row[key]) for key in ("hr", "lr"))
        except BadImage as error:
            raise UsageError(f"{uri}: pair {row['id']}: {error}: write the set again") from error
        pairs.append((row["id"], row["hr_id"], split, hr, lr, digest))
    own = sorted((pair[:-1] for pair in pairs if owners[pair[-1]] == pair[1]), key=lambda pair: pair[0])
    ids, hr_ids, splits, hr, lr = zip(*own, strict=True)
    sizes = {(h.shape, low.shape) for h, low in zip(hr, lr, strict=True)}
    if len(sizes) > 1:
        raise UsageError(f"{uri}: pairs of {len(sizes)} different sizes: synthesise them with one --hr-size")
    copies = len(pairs) - len(own)
    return PairSet(list(ids), list(hr_ids), list(splits), torch.stack(hr), torch.stack(lr), source.hash, copies)


def _shown(source: Source, rows: Iterable[Row], unit: str, progress: bool) -> Any:
    return tqdm(rows, f"reading {source.uri}", unit=unit, total=source.rows, disable=not progress, leave=False)
