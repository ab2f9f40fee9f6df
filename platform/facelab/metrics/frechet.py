"""Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500), from streamed float64 moments."""

from typing import Self

import torch
from tqdm import tqdm

from facelab.images import to_float
from models.features import FeatureNetwork


class _Moments:
    """Count, sum and sum of outer products: merging two is adding them."""

    def __init__(self) -> None:
        self.count = 0
        self.total: torch.Tensor | None = None  # (d,)
        self.outer: torch.Tensor | None = None  # (d, d)

    def add(self, features: torch.Tensor) -> None:
        x = features.detach().to("cpu", torch.float64)
        self._plus(len(x), x.sum(dim=0), x.T @ x)

    def merge(self, other: "_Moments") -> None:
        if other.total is not None and other.outer is not None:
            self._plus(other.count, other.total, other.outer)

    def _plus(self, count: int, total: torch.Tensor, outer: torch.Tensor) -> None:
        if self.total is None or self.outer is None:
            self.count, self.total, self.outer = count, total.clone(), outer.clone()
            return
        if total.shape != self.total.shape:
            raise ValueError(f"features of {len(total)} and {len(self.total)} dimensions cannot be mixed")
        self.count += count
        self.total += total
        self.outer += outer

    def mean_and_covariance(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        if self.count < 2 or self.total is None or self.outer is None:
            raise ValueError(f"a Fréchet distance needs at least 2 {name} images, not {self.count}")
        mean = self.total / self.count
        covariance = (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1)
        return mean, covariance


class FrechetDistance:
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½), without holding the features.

    The trace of the root is the sum of the roots of the eigenvalues of Σ1^½ Σ2 Σ1^½, a symmetric matrix: exact where
    scipy's sqrtm of the product is not symmetric, slow and complex for small sets.
    """

    def __init__(self) -> None:
        self._real, self._generated = _Moments(), _Moments()

    def update(self, features: torch.Tensor, real: bool) -> None:
        """Add features (n, d) of either side."""
        if features.ndim != 2:
            raise ValueError(f"features are (n, d), not {tuple(features.shape)}")
        (self._real if real else self._generated).add(features)

    def merge(self, other: "FrechetDistance") -> Self:
        """Add the features that another instance has seen, in place."""
        self._real.merge(other._real)
        self._generated.merge(other._generated)
        return self

    def compute(self) -> float:
        """The distance.

        Raises:
            ValueError: fewer than two images on a side.
        """
        mean_1, cov_1 = self._real.mean_and_covariance("real")
        mean_2, cov_2 = self._generated.mean_and_covariance("generated")
        values, vectors = torch.linalg.eigh(cov_1)
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        eigenvalues = torch.linalg.eigvalsh(root @ cov_2 @ root).clamp(min=0)
        distance = (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * eigenvalues.sqrt().sum()
        return float(distance.clamp(min=0))


@torch.no_grad()
def frechet_distance(
    features: FeatureNetwork, real: torch.Tensor, generated: torch.Tensor, *, progress: bool = False
) -> float:
    """Fréchet distance of two sets of images, (N, 3, H, W) uint8 each, over the pooled last layer of `features`.

    Raises:
        ValueError: fewer than two images on a side.
    """
    distance = FrechetDistance()
    for images, is_real in ((real, True), (generated, False)):
        for part in tqdm(
            images.split(64), f"features of {features.name}", unit="batch", leave=False, disable=not progress
        ):
            distance.update(features.pooled(to_float(part.to(features.mean.device))), real=is_real)
    return distance.compute()
