"""A set of shards that is larger than the cache, in the order in which training reads it: windows of whole shards, one
decoded while the one before it is trained on.

In each epoch, the shards come in a seeded order and are cut into windows, and the rows of a window are permuted. Which
rows a step sees follows from seed, step, the size of a window and what the manifest counts, so a position needs no
state but the step, and does not depend on the number of workers. Copies in different shards are not looked for:
jobs.prepare leaves none.
"""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest

import numpy as np
import torch

from facelab.data.cache import Cache
from facelab.data.decoding import Decoding
from facelab.data.items import Item, cut
from facelab.data.tensors import ImageSet, require_few_rejected
from facelab.errors import UsageError
from facelab.seeding import generator_for, seed_for

Place = tuple[int, int]
"""Epoch, and window in it."""
_FIRST = 256
"""Training images that are looked at before the first step, at most."""
_WINDOWS = 3
"""In the cache at a time: the one before, which a slower worker may still be at, the present one, and the next."""


@dataclass(frozen=True)
class Plan:
    """The windows of an epoch."""

    windows: tuple[tuple[Item, ...], ...]
    starts: np.ndarray
    """Training rows before each window."""


class Windows:
    """The training images of a set, step by step; the "train" part of a Streamed set."""

    def __init__(
        self,
        cache: Cache,
        decoding: Decoding,
        order: tuple[int, str],
        max_rejected: float,
        some: ImageSet,
        progress: bool = False,
    ):
        """
        Args:
            order: the seed, and a name that separates independent orders.
            max_rejected: share of a window that may be unusable.
            some: training images to look at before the first step.

        Raises:
            UsageError: a shard that is too large for a window.
        """
        self.cache, self.decoding, self.order = cache, decoding, order
        self.max_rejected, self.some, self.progress = max_rejected, some, progress
        self.train_rows = {item.name: item.splits.get("train", 0) for item in decoding.source.items}
        self._rows = sum(self.train_rows.values())
        self.most_rows = cache.limit // _WINDOWS // decoding.row_bytes
        """Of a window: what decides the order beside the seed."""
        if (most := max(item.rows for item in decoding.source.items)) > self.most_rows:
            least = most * decoding.row_bytes * _WINDOWS / 2**30
            raise UsageError(
                f"{decoding.source.uri}: is read shard by shard, {_WINDOWS} windows in the cache at a time, and its "
                f"largest shard alone needs --cache {least:.3g}: give at least that"
            )
        self.plan = lru_cache(maxsize=2)(self._plan)
        self.permutation = lru_cache(maxsize=4)(self._permutation)
        self._open: dict[Place, Future[ImageSet]] = {}
        self._stop = threading.Event()

    def __len__(self) -> int:
        """Training rows, those that turn out to be unusable among them."""
        return self._rows

    def first(self, count: int) -> dict[str, torch.Tensor]:
        """Column -> at most so many images, (n, 3, H, W) uint8."""
        return self.some.first(count)

    def _plan(self, epoch: int) -> Plan:
        """Whole shards in the epoch's order, at most a third of the cache in each window."""
        used = [item for item in self.decoding.source.items if self.train_rows[item.name]]
        shuffled = sorted(used, key=lambda item: seed_for(*self.order, epoch, item.name))
        windows = tuple(cut(shuffled, self.most_rows))
        rows = [sum(self.train_rows[item.name] for item in window) for window in windows]
        return Plan(windows, np.cumsum([0, *rows]))

    def _permutation(self, place: Place) -> torch.Tensor:
        epoch, number = place
        rows = int(np.diff(self.plan(epoch).starts)[number])
        return torch.randperm(rows, generator=generator_for(*self.order, epoch, "window", number))

    def rows_of(self, positions: np.ndarray) -> Iterator[tuple[Place, torch.Tensor]]:
        """Places in the endless stream of epochs, in ascending order -> windows, and which rows of each."""
        for epoch in np.unique(positions // len(self)).tolist():
            offsets = positions[positions // len(self) == epoch] % len(self)
            starts = self.plan(epoch).starts
            windows = np.searchsorted(starts, offsets, side="right") - 1
            for number in np.unique(windows).tolist():
                inside = offsets[windows == number] - starts[number]
                yield (epoch, number), self.permutation((epoch, number))[inside]

    def take(self, batch_size: int, step: int, rank: int = 0, world_size: int = 1) -> dict[str, torch.Tensor]:
        """The images of a rank at a step: column -> (batch_size / world_size, 3, H, W) uint8. A row that cannot be used
        is replaced by another of its window.

        Raises:
            UsageError: a damaged shard, or too much that cannot be used.
        """
        positions = np.arange(step * batch_size, (step + 1) * batch_size)
        present, _ = next(self.rows_of(positions[:1]))
        self._leave(self._before(present))
        parts = []
        for place, rows in self.rows_of(positions[rank::world_size]):
            images = self._window(place).result()
            parts.append(images.images_of(rows % len(images)))
        self._window(self._after(present))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _after(self, place: Place) -> Place:
        epoch, number = place
        return (epoch, number + 1) if number + 1 < len(self.plan(epoch).windows) else (epoch + 1, 0)

    def _before(self, place: Place) -> Place:
        epoch, number = place
        return (epoch, number - 1) if number or not epoch else (epoch - 1, len(self.plan(epoch - 1).windows) - 1)

    def _window(self, place: Place) -> "Future[ImageSet]":
        """A window; if it is not there, a thread decodes it, for which no end of the process has to wait."""
        if place not in self._open:
            self._open[place] = Future()
            threading.Thread(target=self._build, args=(place, self._open[place]), daemon=True).start()
        return self._open[place]

    def _build(self, place: Place, future: "Future[ImageSet]") -> None:
        try:
            future.set_result(self._read(place))
        except BaseException as error:  # raised by who asks for it
            future.set_exception(error)

    def _read(self, place: Place) -> ImageSet:
        epoch, number = place
        decoding = self.decoding.of(self.plan(epoch).windows[number])
        decoded = self.cache.open(decoding, stop=self._stop)
        require_few_rejected(decoding.source.uri, decoded, self.max_rejected)
        images, expected = ImageSet(decoded).subset("train"), int(np.diff(self.plan(epoch).starts)[number])
        if not 0 < len(images) <= expected:
            raise UsageError(
                f"{decoding.source.uri}: {len(images)} training images in shards where the manifest counts {expected}"
            )
        if self.progress and len(images) < expected:
            print(f"{decoding.source.uri}: {expected - len(images)} of {expected} images of a window cannot be used "
                  f"({decoded.facts.first}): others are shown twice", file=sys.stderr)  # fmt: skip
        return images

    def _leave(self, before: Place) -> None:
        """Give up windows that lie before this one, and delete those that no other worker is at."""
        for place in sorted(self._open):
            if place < before:
                self._delete(self._open.pop(place).result())

    def _delete(self, window: ImageSet) -> None:
        hold = window.decoded.hold
        hold.release()
        self.cache.delete(hold.place)

    def stop(self) -> None:
        """Decode no more: the training is over."""
        self._stop.set()

    def delete(self) -> None:
        """Delete all windows, once nobody takes from them."""
        for window in self._open.values():
            if window.exception() is None:
                self._delete(window.result())
        self._open = {}


@dataclass(frozen=True)
class Streamed:
    """A set too large for the cache: its training images by windows, and some others of its first shards."""

    hash: str
    """Of the rows, by the manifest."""
    rows: int
    train: Windows
    some: ImageSet
    """What the first shards hold, by name."""

    @property
    def counts(self) -> dict[str, int]:
        """For a summary: nothing is counted before it is read."""
        return {}

    def __len__(self) -> int:
        return self.rows

    def subset(self, split: str) -> Windows | ImageSet:
        """The "train" part; of the others, some images."""
        return self.train if split == "train" else self.some.subset(split)


def streamed(
    cache: Cache,
    decoding: Decoding,
    *,
    order: tuple[int, str],
    some: int,
    max_rejected: float = 0,
    progress: bool = False,
) -> Streamed:
    """
    Args:
        order: see Windows.
        some: as many held-out images are wanted, if there are so many.
        max_rejected: see Windows.

    Raises:
        UsageError: a folder of images, or a shard that is too large.
    """
    source = decoding.source
    if source.kind == "folder":
        size = decoding.rows * decoding.row_bytes / 2**30
        raise UsageError(
            f"{source.uri}: a folder that needs {size:.3g} GiB when decoded, more than --cache: give more, or "
            "write it as shards with `python -m jobs.prepare`: those can be read one by one"
        )
    few = load_some(cache, decoding, {"val": some, "train": _FIRST}, progress=progress)
    require_few_rejected(source.uri, few.decoded, max_rejected)
    windows = Windows(cache, decoding, order, max_rejected, few.subset("train"), progress)
    return Streamed(source.hash, source.rows, windows, few)


def load_some(cache: Cache, decoding: Decoding, wanted: dict[str, int], *, progress: bool = False) -> ImageSet:
    """Shards that hold so many images of each of some splits ("": of any), the first by name; fewer of each where they
    would take more than a window."""
    found = decoding.source.items
    chosen: list[list[str]] = []
    for split, count in wanted.items():
        rows = {item.name: item.splits.get(split, 0) if split else item.rows for item in found}
        before = np.cumsum([0, *rows.values()])[:-1]
        chosen.append([name for name, so_far in zip(rows, before, strict=True) if rows[name] and so_far < count])
    items = {item.name: item for item in found}
    in_turn = dict.fromkeys(name for names in zip_longest(*chosen) for name in names if name) or items
    room = cache.limit // _WINDOWS // decoding.row_bytes
    some = next(cut((items[name] for name in in_turn), room))
    return ImageSet(cache.open(decoding.of(some), progress=progress))
