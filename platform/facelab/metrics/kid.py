"""Kernel inception distance (Bińkowski et al., arXiv 1801.01401): the squared MMD of two sets of features."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from facelab.metrics.number import Metric

KERNEL = Metric("KID {}", -1, ".3g")
"""How it is shown."""
SUBSETS, SUBSET_SIZE = 100, 1000
"""As in torch-fidelity and torchmetrics; smaller sets take all of the smaller side."""
CAPACITY = 10 * SUBSET_SIZE
"""Rows of a set that subsets are drawn from: of more, a sample."""


@dataclass(frozen=True)
class KID:
    """A little below 0 is possible: the estimate is unbiased."""

    mean: float
    std: float | None
    """Standard deviation over the subsets; None where each subset is all there is."""
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
    rng = np.random.RandomState(seed % 2**32)  # the legacy generator: torch-fidelity's subsets for the same seed
    values = []
    for _ in range(subsets):
        x, y = (side[rng.choice(len(side), size, replace=False)].double() for side in (real, generated))
        within = sum(k.sum() - k.diagonal().sum() for k in (_kernel(x, x), _kernel(y, y)))
        values.append(float(within / (size * (size - 1)) - 2 * _kernel(x, y).mean()))
    std = float(np.std(values)) if size < max(len(real), len(generated)) else None
    return KID(float(np.mean(values)), std, size)


def _kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


class Sample:
    """A uniform sample of at most `capacity` rows of a stream: those with the smallest keys, which must be random.

    Mergeable, and the same in whatever order and parts the rows come.
    """

    def __init__(self, capacity: int = CAPACITY):
        self.capacity = capacity
        self._keys: list[np.ndarray] = []
        self._rows: list[torch.Tensor] = []
        self._waiting = 0
        self._limit = np.uint64(2**64 - 1)  # the largest key that may still be among the smallest

    def add(self, keys: np.ndarray, rows: torch.Tensor) -> Self:
        """Add rows (n, d) with their keys (n,) uint64."""
        small = keys <= self._limit
        if small.any():
            self._keys.append(keys[small])
            self._rows.append(rows[torch.from_numpy(small)])
            self._waiting += int(small.sum())
        if self._waiting > self.capacity:
            self._shrink()
        return self

    def merge(self, other: "Sample") -> Self:
        """Add the rows that another instance has kept."""
        for keys, rows in zip(other._keys, other._rows, strict=True):
            self.add(keys, rows)
        return self

    def rows(self) -> torch.Tensor:
        """(min(n, capacity), d), in the order of their keys."""
        self._shrink()
        return self._rows[0] if self._rows else torch.zeros(0, 0)

    def keys(self) -> np.ndarray:
        """(min(n, capacity),) uint64, ascending."""
        self._shrink()
        return self._keys[0] if self._keys else np.zeros(0, np.uint64)

    def _shrink(self) -> None:
        self._waiting = 0
        if not self._keys:
            return
        keys, rows = np.concatenate(self._keys), torch.cat(self._rows)
        smallest = np.argsort(keys, kind="stable")[: self.capacity]
        self._keys, self._rows = [keys[smallest]], [rows[smallest]]
        if len(smallest) == self.capacity:
            self._limit = self._keys[0][-1]
