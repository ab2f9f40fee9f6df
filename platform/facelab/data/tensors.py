"""Faces as training images: folders or face shards -> uint8 tensors; pair shards -> aligned HR and LR tensors."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from facelab import storage
from facelab.data import shards
from facelab.errors import UsageError
from facelab.images import IMAGE_SUFFIXES, BadImage, decode, decode_tensor, encode_png, is_plain, training_image

MIN_SIDE = 12
"""Shorter sides are rejected: nothing of a face is left (px)."""


@dataclass(frozen=True)
class FaceSet:
    """Faces of one size, in the order of their ids."""

    ids: list[str]
    images: torch.Tensor
    """(N, 3, size, size) uint8."""
    digests: list[str]
    """SHA-256 of each encoded image: what a face *is*, whatever its name."""
    hash: str
    """Of the rows alone, before resizing."""
    rejected: int
    """Files set aside because they could not be used."""

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, split: str) -> "FaceSet":
        """The "train" or "val" part, by hash of the ids."""
        keep = [i for i, identifier in enumerate(self.ids) if shards.split_of(identifier) == split]
        return FaceSet(
            [self.ids[i] for i in keep],
            self.images[keep],
            [self.digests[i] for i in keep],
            self.hash,
            self.rejected,
        )


@dataclass(frozen=True)
class PairSet:
    """Aligned pairs, in the order of their ids."""

    ids: list[str]
    hr_ids: list[str]
    hr: torch.Tensor
    """(N, 3, H, W) uint8."""
    lr: torch.Tensor
    """(N, 3, H/scale, W/scale) uint8."""
    hash: str

    def __len__(self) -> int:
        return len(self.ids)

    def subset(self, split: str) -> "PairSet":
        """The "train" or "val" part, by hash of the *HR* id: variants of a face never straddle the two."""
        keep = [i for i, identifier in enumerate(self.hr_ids) if shards.split_of(identifier) == split]
        return PairSet(
            [self.ids[i] for i in keep], [self.hr_ids[i] for i in keep], self.hr[keep], self.lr[keep], self.hash
        )


def face_row(identifier: str, data: bytes, source: str, min_side: int = MIN_SIDE) -> dict[str, Any]:
    """A row of FACE_SCHEMA from an image file's bytes.

    Plain 8-bit RGB files are kept byte for byte; anything else becomes PNG, so that readers meet nothing odd.

    Raises:
        BadImage: with the reason for the rejected table.
    """
    image = decode(data)
    height, width = image.shape[:2]
    if min(height, width) < min_side:
        raise BadImage(f"too small: {width}x{height} px, shorter side under {min_side}")
    if not is_plain(data):
        data = encode_png(image)
    digest = hashlib.sha256(data).hexdigest()
    return dict(
        id=identifier,
        image=data,
        height=height,
        width=width,
        source=source,
        split=shards.split_of(identifier),
        sha256=digest,
    )


def is_shard_set(uri: str, kind: str) -> bool:
    """Whether `uri` holds shards of this kind; False for a folder of images.

    Raises:
        UsageError: nothing there, or shards of the other kind.
    """
    _require_folder(uri)
    manifest = shards.read_manifest(uri)
    if manifest is None:
        return False
    if manifest.kind != kind:
        raise UsageError(f"{uri}: holds {manifest.kind}, but {kind} are wanted here")
    return True


def _require_folder(uri: str) -> None:
    what = "not found" if not storage.exists(uri) else "is a file" if storage.is_file(uri) else None
    if what:
        raise UsageError(f"{uri}: {what}: give a folder of images or the output of a facelab job")


def image_files(uri: str) -> list[tuple[str, str]]:
    """(relative path, URI) of every image below a folder.

    Raises:
        UsageError: none there.
    """
    _require_folder(uri)
    files = storage.list_files(uri, IMAGE_SUFFIXES)
    if not files:
        raise UsageError(f"{uri}: no images ({', '.join(IMAGE_SUFFIXES)}) below this folder")
    return files


def read_face(name: str, uri: str, source: str, min_side: int = MIN_SIDE) -> dict[str, Any]:
    """The face row of one image file.

    Raises:
        BadImage: the reason why it cannot be used.
    """
    try:
        data = storage.read_bytes(uri)
    except UsageError as error:
        if isinstance(error.__cause__, (PermissionError, FileNotFoundError)):  # this file; other errors mean the store
            raise BadImage(f"unreadable: {type(error.__cause__).__name__}") from error
        raise
    return face_row(name, data, source, min_side)


def iterate_faces(uri: str, rejected: Callable[[str, str], None]) -> Iterator[dict[str, Any]]:
    """Face rows of a shard set, or of a plain folder of images; `rejected(id, reason)` hears of each bad file."""
    if is_shard_set(uri, "faces"):
        yield from shards.read_rows(uri, shards.FACE_SCHEMA.names)
        return
    for name, file in image_files(uri):
        try:
            row = read_face(name, file, uri)
        except BadImage as error:
            rejected(name, str(error))
        else:
            yield row


def load_faces(uri: str, size: int, *, progress: bool = False) -> FaceSet:
    """All faces of a URI as (N, 3, size, size) uint8.

    Raises:
        UsageError: nothing usable there.
    """
    bad: list[tuple[str, str]] = []
    row_hash = shards.RowHash()

    def load(row: dict[str, Any]) -> tuple[str, str, torch.Tensor]:
        return row["id"], row["sha256"], training_image(row["image"], size)

    faces = []
    rows = tqdm(
        iterate_faces(uri, lambda name, reason: bad.append((name, reason))),
        f"reading {uri}",
        unit="face",
        disable=not progress,
        leave=False,
    )
    with ThreadPoolExecutor(4) as pool:
        for chunk in _chunks(rows, 256):
            for row in chunk:
                row_hash.add({"id": row["id"], "sha256": row["sha256"]})
            faces += pool.map(load, chunk)
    if not faces:
        reason = f"; the first of {len(bad)} rejected files: {bad[0][0]}: {bad[0][1]}" if bad else ""
        raise UsageError(f"{uri}: no usable face{reason}")
    faces.sort(key=lambda face: face[0])
    ids, digests, images = zip(*faces, strict=True)
    return FaceSet(list(ids), torch.stack(images), list(digests), row_hash.hexdigest(), len(bad))


def load_pairs(uri: str, *, progress: bool = False) -> PairSet:
    """All pairs of a shard set.

    Raises:
        UsageError: no pairs there, or of different sizes.
    """
    if not is_shard_set(uri, "pairs"):
        raise UsageError(f"{uri}: no pair shards: make them with `python -m jobs.synthesize`")
    manifest = shards.read_manifest(uri)
    assert manifest is not None
    pairs = []
    rows = shards.read_rows(uri, ["id", "hr_id", "hr", "lr"])
    for row in tqdm(rows, f"reading {uri}", unit="pair", total=manifest.rows, disable=not progress, leave=False):
        hr, lr = (decode_tensor(row[key]) for key in ("hr", "lr"))
        pairs.append((row["id"], row["hr_id"], hr, lr))
    if not pairs:
        raise UsageError(f"{uri}: an empty set of pairs")
    pairs.sort(key=lambda pair: pair[0])
    ids, hr_ids, hr, lr = zip(*pairs, strict=True)
    sizes = {(h.shape, low.shape) for h, low in zip(hr, lr, strict=True)}
    if len(sizes) > 1:
        raise UsageError(f"{uri}: pairs of {len(sizes)} different sizes: synthesise them with one --hr-size")
    return PairSet(list(ids), list(hr_ids), torch.stack(hr), torch.stack(lr), manifest.hash)


def _chunks(rows: Any, size: int) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
