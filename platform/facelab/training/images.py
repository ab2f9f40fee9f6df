"""The images of a training: out of the node's cache, as a whole or in windows; and the next step's, made in time."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from facelab.data.decoding import Decoded, Decoding, faces_of, pairs_of
from facelab.data.tensors import FaceSet, ImageSet, PairSet, require_few_rejected
from facelab.data.windows import Streamed, Windows, load_some, streamed
from facelab.training.batches import batch_indices
from facelab.training.config import TrainConfig

Images = dict[str, torch.Tensor]
"""Column -> (n, 3, H, W) uint8: "image" of faces, "hr" and "lr" of pairs."""


def load_training_faces(
    config: TrainConfig, uri: str, stream: str, *, sharp: bool, progress: bool
) -> FaceSet | Streamed:
    """The faces of one input, at its size and within its limits.

    Args:
        stream: as of `take`.

    Raises:
        UsageError: see load_faces, Cache.open and windows.streamed.
    """
    size = config.hr_size if sharp else config.lr_size
    decoding = faces_of(uri, size, config.least_side(size, sharp=sharp))
    found = _load(config, decoding, stream, progress)
    return found if isinstance(found, Streamed) else FaceSet(found)


def load_training_pairs(config: TrainConfig, uri: str, stream: str, *, progress: bool) -> PairSet | Streamed:
    """The pairs of one input; arguments and errors as above."""
    found = _load(config, pairs_of(uri), stream, progress)
    return found if isinstance(found, Streamed) else PairSet(found)


def _load(config: TrainConfig, decoding: Decoding, stream: str, progress: bool) -> Decoded | Streamed:
    cache, most = config.image_cache, config.max_rejected
    if not cache.fits(decoding):
        order, some = (config.seed, stream), config.validation_images
        return streamed(cache, decoding, order=order, some=some, max_rejected=most, progress=progress)
    decoded = cache.open(decoding, progress=progress)
    require_few_rejected(decoding.source.uri, decoded, most)
    return decoded


def load_watched_pairs(config: TrainConfig, uri: str, *, progress: bool) -> PairSet:
    """Pairs that are only looked at: all, or, where the cache would not hold them, enough."""
    cache, decoding = config.image_cache, pairs_of(uri)
    if not cache.fits(decoding):
        return PairSet(load_some(cache, decoding, {"": config.validation_images}, progress=progress).decoded)
    return PairSet(cache.open(decoding, progress=progress))


@dataclass(frozen=True)
class OnDevice:
    """A small set's images in the memory of a GPU."""

    images: Images

    def __len__(self) -> int:
        return len(next(iter(self.images.values())))

    def images_of(self, rows: torch.Tensor) -> Images:
        return {name: images[rows] for name, images in self.images.items()}


TrainingImages = ImageSet | Windows | OnDevice
"""Wherever they lie."""


def order_of(**read: TrainingImages | None) -> str:
    """What decides the order of these images beside seed and step."""
    windows = [f"{k} in windows of {v.most_rows} images" for k, v in read.items() if isinstance(v, Windows)]
    return ", ".join(windows) or "whole sets"


def on_device(data: TrainingImages, device: torch.device, gibibytes: float) -> TrainingImages:
    """The same images; on a GPU, if they take no more of its memory than that. Written without a GPU to run it on."""
    if device.type != "cuda" or not isinstance(data, ImageSet):
        return data
    row = sum(image.numel() for image in data.first(1).values())
    if len(data) * row > gibibytes * 2**30:
        return data
    return OnDevice({name: images.to(device) for name, images in data.images_of(slice(None)).items()})


def take(
    data: TrainingImages,
    batch_size: int,
    step: int,
    *,
    seed: int,
    stream: str,
    rank: int = 0,
    world_size: int = 1,
) -> Images:
    """The images of a rank at a step. Arguments as of batch_indices; windows have their seed and stream from
    load_training_faces or load_training_pairs, and are given the same."""
    if isinstance(data, Windows):
        assert data.order == (seed, stream)
        return data.take(batch_size, step, rank, world_size)
    indices = batch_indices(len(data), batch_size, step, seed=seed, stream=stream, rank=rank, world_size=world_size)
    return data.images_of(indices)


def to_device(images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copied while the device computes, where that is a GPU."""
    if device.type != "cuda" or images.is_cuda:
        return images.to(device)
    return images.pin_memory().to(device, non_blocking=True)


T = TypeVar("T")


class Ahead(Generic[T]):
    """Makes the batch of the next step in a thread while the present one is trained on.

    Args:
        make: step -> batch; a function of the step alone, which draws nothing from torch's own generator.
    """

    def __init__(self, make: Callable[[int], T]):
        self.make = make
        self._thread = ThreadPoolExecutor(1, "batch")
        self._next: tuple[int, Future[T]] | None = None
        self.waited = 0.0
        """Seconds that steps waited so far."""

    def __call__(self, step: int) -> T:
        """The batch of a step; whatever was raised for it is raised here."""
        if self._next is None or self._next[0] != step:
            self._next = step, self._thread.submit(self.make, step)
        began = time.perf_counter()
        batch = self._next[1].result()
        self.waited += time.perf_counter() - began
        self._next = step + 1, self._thread.submit(self.make, step + 1)
        return batch

    def close(self, *read: TrainingImages | None) -> None:
        """Make no more, and delete the windows of what was read: the training is over."""
        windows = [data for data in read if isinstance(data, Windows)]
        for each in windows:
            each.stop()  # else the thread might wait for one
        self._thread.shutdown(cancel_futures=True)
        for each in windows:
            each.delete()
