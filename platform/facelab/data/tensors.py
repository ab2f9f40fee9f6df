"""Rows as tensors of one size, in memory or out of a node's cache: faces, and aligned pairs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from facelab.data.cache import Cache
from facelab.data.decoding import Decoded, Decoding, faces_of, in_order, pairs_of
from facelab.data.faces import require_usable

Rows = Sequence[int] | np.ndarray | torch.Tensor | slice
"""Which of the images, by their place in a set."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded rows in the order of their ids. Nothing is in memory of a set in a cache but what is asked for."""

    decoded: Decoded
    chosen: np.ndarray | None = None
    """Rows of the index that a subset has; None: all."""

    @property
    def hash(self) -> str:
        """Of all the rows alone, before resizing."""
        return self.decoded.facts.hash

    @property
    def copies(self) -> int:
        """Left out, as their bytes, or their sharp face's, are those of another name."""
        return self.decoded.facts.copies

    def __len__(self) -> int:
        return len(self.decoded.index) if self.chosen is None else len(self.chosen)

    def known(self, column: str) -> pa.ChunkedArray:
        """A column of the index."""
        values = self.decoded.index[column]
        return values if self.chosen is None else values.take(pa.array(self.chosen))

    @cached_property
    def ids(self) -> list[str]:
        return self.known("id").to_pylist()

    @cached_property
    def splits(self) -> list[str]:
        """As decided when the faces were prepared; of a plain folder, by hash of the id. A pair's is its sharp face's:
        variants of a face never straddle two."""
        return self.known("split").to_pylist()

    def subset(self, split: str) -> Self:
        """The "train", "val" or "test" part: a view."""
        rows = pa.table({"split": self.known("split"), "row": np.arange(len(self))})
        keep = rows.filter(pc.field("split") == split)["row"].to_numpy()
        return replace(self, chosen=keep if self.chosen is None else self.chosen[keep])

    def images_of(self, rows: Rows) -> dict[str, torch.Tensor]:
        """Column -> (n, 3, H, W) uint8, of these rows."""
        index = rows if isinstance(rows, slice) else np.asarray(rows, np.int64)
        if self.chosen is not None:
            index = self.chosen[index]
        places = index if self._positions is None else self._positions[index]
        return {name: torch.as_tensor(pixels[places]) for name, pixels in self.decoded.pixels.items()}

    @cached_property
    def _positions(self) -> np.ndarray | None:
        """Of each row of the index, among the pixels; None where they lie in that order."""
        index = self.decoded.index
        return index["position"].combine_chunks().to_numpy() if "position" in index.column_names else None

    def first(self, count: int) -> dict[str, torch.Tensor]:
        """Column -> at most so many images, (n, 3, H, W) uint8."""
        return self.images_of(slice(0, count))

    @cached_property
    def all(self) -> dict[str, torch.Tensor]:
        """Column -> (N, 3, H, W) uint8, in memory."""
        return self.images_of(slice(None))


@dataclass(frozen=True, eq=False)
class FaceSet(ImageSet):
    """Faces of one size."""

    @property
    def images(self) -> torch.Tensor:
        """(N, 3, size, size) uint8, in memory."""
        return self.all["image"]

    @cached_property
    def digests(self) -> list[str]:
        """SHA-256 of each encoded image: what a face *is*, whatever its name."""
        return self.known("digest").to_pylist()

    @property
    def counts(self) -> dict[str, int]:
        """For a summary."""
        facts = self.decoded.facts
        return {"n_rejected": facts.rejected, "n_enlarged": facts.enlarged, "n_copies": facts.copies}


@dataclass(frozen=True, eq=False)
class PairSet(ImageSet):
    """Aligned pairs."""

    @property
    def hr(self) -> torch.Tensor:
        """(N, 3, H, W) uint8, in memory."""
        return self.all["hr"]

    @property
    def lr(self) -> torch.Tensor:
        """(N, 3, H/scale, W/scale) uint8, in memory."""
        return self.all["lr"]

    @cached_property
    def hr_ids(self) -> list[str]:
        return self.known("hr_id").to_pylist()

    @property
    def counts(self) -> dict[str, int]:
        """For a summary."""
        return {"n_copies": self.copies}


def load_faces(
    uri: str,
    size: int,
    *,
    least_side: int = 1,
    max_rejected: float = 1,
    cache: Cache | None = None,
    progress: bool = False,
) -> FaceSet:
    """All faces of face shards or of a folder of images, as (N, 3, size, size) uint8; of equal ones, the first by name.

    Args:
        least_side: faces whose shorter side has fewer px are rejected.
        cache: where they lie, decoded; None: in memory.

    Raises:
        UsageError: nothing usable there, or more than `max_rejected` of it is not.
    """
    decoded = load(faces_of(uri, size, least_side), cache, progress=progress)
    require_few_rejected(uri, decoded, max_rejected)
    return FaceSet(decoded)


def require_few_rejected(uri: str, decoded: Decoded, max_rejected: float) -> None:
    """
    Raises:
        UsageError: nothing is usable, or more than `max_rejected` of it is not.
    """
    require_usable(uri, decoded.facts.rejected, decoded.facts.rows, decoded.facts.first, max_rejected)


def load_pairs(uri: str, *, cache: Cache | None = None, progress: bool = False) -> PairSet:
    """All pairs of a shard set; of those with equal sharp faces, the pairs of the first by name.

    Raises:
        UsageError: no pairs there, or of different sizes.
    """
    return PairSet(load(pairs_of(uri), cache, progress=progress))


def load(decoding: Decoding, cache: Cache | None, *, progress: bool = False) -> Decoded:
    """Decode an input into memory, or have it of a cache; errors as of Cache.open."""
    if cache is not None:
        return cache.open(decoding, progress=progress)
    pixels = {name: np.empty((decoding.rows, *shape), np.uint8) for name, shape in decoding.shapes.items()}
    tables, starts = [], decoding.starts
    title = f"decoding {decoding.source.uri}"
    with tqdm(desc=title, unit="row", total=decoding.rows, disable=not progress, leave=False) as shown:
        for number in range(len(decoding.parts)):
            rows = slice(starts[number], starts[number + 1])
            tables.append(decoding.decode(number, {name: array[rows] for name, array in pixels.items()}))
            shown.update(len(tables[-1]))
    index, facts = in_order(decoding, tables)
    places = index["position"].to_numpy()
    if facts.rows > len(index) or (np.diff(places) != 1).any():
        pixels = {name: array[places] for name, array in pixels.items()}
    return Decoded(index.drop_columns(["position"]), pixels, facts)
