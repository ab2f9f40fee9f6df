"""Kernel inception distance (Bińkowski et al., arXiv 1801.01401): the squared MMD of two sets of features."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

SUBSETS, SUBSET_SIZE = 100, 1000
"""As in torch-fidelity and torchmetrics; smaller sets take all of the smaller side."""


@dataclass(frozen=True)
class KID:
    """Mean and standard deviation over the subsets. A little below 0 is possible: the estimate is unbiased."""

    mean: float
    std: float
    subset_size: int


def kid(
    real: torch.Tensor,
    generated: torch.Tensor,
    *,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> KID:
    """Unbiased MMD² with the kernel (xᵀy/d + 1)³, over random subsets of both sides, (n, d) features each.

    Raises:
        ValueError: fewer than two rows on a side.
    """
    if min(len(real), len(generated)) < 2:
        raise ValueError(f"KID needs at least 2 images on each side, not {len(real)} and {len(generated)}")
    size = min(subset_size, len(real), len(generated))
    rng = np.random.RandomState(seed)  # the legacy generator: torch-fidelity's subsets for the same seed
    values = []
    for _ in range(subsets):
        x, y = (side[rng.choice(len(side), size, replace=False)].double() for side in (real, generated))
        within = sum(k.sum() - k.diagonal().sum() for k in (_kernel(x, x), _kernel(y, y)))
        values.append(float(within / (size * (size - 1)) - 2 * _kernel(x, y).mean()))
    return KID(float(np.mean(values)), float(np.std(values)), size)


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


class Sample:
    """A uniform sample of at most `capacity` rows of a stream: those with the smallest keys, which must be random.

    Mergeable, and the same in whatever order and parts the rows come.
    """

    def __init__(self, capacity: int = 10 * SUBSET_SIZE):
        self.capacity = capacity
        self._keys = np.zeros(0, np.uint64)
        self._rows = torch.zeros(0, 0)

    def add(self, keys: np.ndarray, rows: torch.Tensor) -> Self:
        """Add rows (n, d) with their keys (n,) uint64."""
        self._keys = np.concatenate([self._keys, keys])
        self._rows = torch.cat([self._rows, rows]) if self._rows.numel() else rows.clone()
        if len(self._keys) > 2 * self.capacity:
            self._shrink()
        return self

    def merge(self, other: "Sample") -> Self:
        """Add the rows that another instance has kept."""
        return self.add(other._keys, other._rows) if len(other._keys) else self

    def rows(self) -> torch.Tensor:
        """(min(n, capacity), d), in the order of their keys."""
        self._shrink()
        return self._rows

    def _shrink(self) -> None:
        smallest = np.argsort(self._keys, kind="stable")[: self.capacity]
        self._keys, self._rows = self._keys[smallest], self._rows[smallest]
