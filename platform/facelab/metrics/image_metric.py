"""What a metric of single images declares. A new one is a class in a file of its own and a line in catalogue.py."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch

from facelab.metrics.number import Metric
from facelab.trained.apply import in_fixed_batches


class ImageMetric(ABC):
    """Judges super-resolved images one by one, alone or each beside its truth."""

    shown: ClassVar[Metric]
    """How its columns are shown; {} in the title is for what follows the metric's own name in a column's."""
    options: ClassVar[type | None] = None
    """Config of its own; the command line has it under the metric's name."""
    needs_truth: ClassVar[bool] = True
    """Without need, it also judges the outputs for real faces."""
    is_network: ClassVar[bool] = False
    """A network only sees batches of one size, as it rounds otherwise in others."""
    columns: tuple[str, ...]
    """Its numbers: the metric's name, or that with a qualifier, such as psnr_y."""

    def __init__(self, options: Any = None, crop: int = 0):
        """`options`: an instance of what it declares; `crop`: px off each border, for those that compare pixels."""
        self.crop = crop

    @property
    def least_side(self) -> int:
        """px; images with a smaller side cannot be judged."""
        return 1

    def to(self, device: torch.device) -> Self:
        """Where its network computes, if it has one."""
        return self

    @abstractmethod
    def __call__(self, images: torch.Tensor, truth: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Images, and their truth if it needs that, (B, 3, H, W) uint8 -> column -> (B,); nan where it is undefined."""

    @abstractmethod
    def record(self, column: str) -> dict[str, Any]:
        """Fields of the column's Protocol that are its own: of version, colour, crop, weights and settings those that
        apply."""

    def measure(self, images: torch.Tensor, truth: torch.Tensor | None, size: int) -> dict[str, torch.Tensor]:
        """The same on the CPU and `size` images at a time, so that no image's numbers depend on how many there are."""
        given = (images, truth) if self.needs_truth and truth is not None else (images,)
        if self.is_network:
            return in_fixed_batches(self, *given, size=size)
        parts = [self(*part) for part in zip(*(x.split(size) for x in given), strict=True)]
        return {column: torch.cat([part[column] for part in parts]) for column in self.columns}
