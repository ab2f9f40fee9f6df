"""Rows -> tensors of one size, all in memory: faces, and aligned pairs."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from facelab.data import shards
from facelab.data.source import Row, Source, find, kind_of
from facelab.data.tables import chunks
from facelab.errors import UsageError
from facelab.images import decode_tensor, training_image


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

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, split: str) -> "FaceSet":
        """The "train", "val" or "test" part."""
        keep = _positions(self.splits, split)
        ids, digests, splits = ([values[i] for i in keep] for values in (self.ids, self.digests, self.splits))
        return FaceSet(ids, self.images[keep], digests, splits, self.hash, self.rejected)


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

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, split: str) -> "PairSet":
        """The "train", "val" or "test" part."""
        keep = _positions(self.splits, split)
        ids, hr_ids, splits = ([values[i] for i in keep] for values in (self.ids, self.hr_ids, self.splits))
        return PairSet(ids, hr_ids, splits, self.hr[keep], self.lr[keep], self.hash)


def _positions(splits: list[str], split: str) -> list[int]:
    return [i for i, own in enumerate(splits) if own == split]


def load_faces(uri: str, size: int, *, progress: bool = False) -> FaceSet:
    """All faces of face shards or of a folder of images, as (N, 3, size, size) uint8.

    Raises:
        UsageError: nothing usable there.
    """
    source = find(uri, "faces")
    rejected, first = 0, ""
    row_hash = shards.RowHash()

    def load(row: Row) -> tuple[str, str, str, torch.Tensor]:
        return row["id"], row["sha256"], row["split"], training_image(row["image"], size)

    faces = []
    rows = _shown(source, source.read(["id", "image", "split", "sha256"]), "face", progress)
    with ThreadPoolExecutor(4) as pool:
        for chunk in chunks(rows, 256):
            usable = [row for row in chunk if not row["rejected"]]
            for row in usable:
                row_hash.add({"id": row["id"], "sha256": row["sha256"]})
            for row in chunk:
                if row["rejected"]:
                    rejected += 1
                    first = first or f"{row['id']}: {row['rejected']}"
            faces += pool.map(load, usable)
    if not faces:
        reason = f"; the first of {rejected} rejected files: {first}" if first else ""
        raise UsageError(f"{uri}: no usable face{reason}")
    faces.sort(key=lambda face: face[0])
    ids, digests, splits, images = zip(*faces, strict=True)
    return FaceSet(list(ids), torch.stack(images), list(digests), list(splits), row_hash.hexdigest(), rejected)


def load_pairs(uri: str, *, progress: bool = False) -> PairSet:
    """All pairs of a shard set.

    Raises:
        UsageError: no pairs there, or of different sizes.
    """
    if kind_of(uri, "pairs") == "folder":
        raise UsageError(f"{uri}: no pair shards: make them with `python -m jobs.synthesize`")
    source = find(uri, "pairs")
    pairs = []
    for row in _shown(source, source.read(["id", "hr_id", "hr", "lr", "split"]), "pair", progress):
        hr, lr = (decode_tensor(row[key]) for key in ("hr", "lr"))
        pairs.append((row["id"], row["hr_id"], row.get("split") or shards.split_of(row["hr_id"]), hr, lr))
    if not pairs:
        raise UsageError(f"{uri}: an empty set of pairs")
    pairs.sort(key=lambda pair: pair[0])
    ids, hr_ids, splits, hr, lr = zip(*pairs, strict=True)
    sizes = {(h.shape, low.shape) for h, low in zip(hr, lr, strict=True)}
    if len(sizes) > 1:
        raise UsageError(f"{uri}: pairs of {len(sizes)} different sizes: synthesise them with one --hr-size")
    return PairSet(list(ids), list(hr_ids), list(splits), torch.stack(hr), torch.stack(lr), source.hash)


def _shown(source: Source, rows: Iterable[Row], unit: str, progress: bool) -> Any:
    return tqdm(rows, f"reading {source.uri}", unit=unit, total=source.rows, disable=not progress, leave=False)
