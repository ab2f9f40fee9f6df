"""Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500), from streamed float64 moments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.linalg.lapack import dpstrf  # pyrefly: ignore  (made at import)

GROUPS = 10
"""Parts of a set that intervals and the extrapolation are computed from."""
_T_95 = 2.262  # 97.5 % quantile of Student's t with GROUPS - 1 degrees of freedom


class Moments:
    """Count, mean and scatter matrix of features: what a set needs to be compared, whatever its size.

    Two are merged by Chan et al.'s update, which keeps its digits where sums of squares would lose them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)  # (d,)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)  # (d, d): Σ (x − mean)(x − mean)ᵀ

    def add(self, features: torch.Tensor) -> Self:
        """Add rows (n, d)."""
        if features.ndim != 2:
            raise ValueError(f"features are (n, d), not {tuple(features.shape)}")
        x = features.detach().to("cpu", torch.float64)
        if len(x):
            mean = x.mean(dim=0)
            self._plus(len(x), mean, (x - mean).T @ (x - mean))
        return self

    def merge(self, other: "Moments") -> Self:
        """Add the rows that another instance has seen."""
        if other.count:
            self._plus(other.count, other.mean, other.scatter)
        return self

    def _plus(self, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> None:
        if not self.count:
            self.count, self.mean, self.scatter = count, mean.clone(), scatter.clone()
            return
        if mean.shape != self.mean.shape:
            raise ValueError(f"features of {len(mean)} and {len(self.mean)} dimensions cannot be mixed")
        whole, gap = self.count + count, mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(gap, gap, alpha=self.count * count / whole)
        self.mean += gap * (count / whole)
        self.count = whole

    def covariance(self) -> torch.Tensor:
        """(d, d), unbiased."""
        return self.scatter / (self.count - 1)


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    whole = Moments()
    for part in parts:
        whole.merge(part)
    return whole


class Reference:
    """One side of a distance, factorised once: F (d, r) with F Fᵀ = Σ, by a pivoted Cholesky decomposition, which also
    takes the singular covariance of a small set."""

    def __init__(self, moments: Moments, name: str = "real"):
        _require_two(moments, name)
        self.moments, self.covariance = moments, moments.covariance()
        packed, pivots, rank, _ = dpstrf(self.covariance.numpy(), lower=1)
        factor = np.zeros((len(packed), rank))
        factor[pivots - 1] = np.tril(packed)[:, :rank]
        self.factor = torch.from_numpy(factor)

    def distance(self, other: Moments, name: str = "generated") -> float:
        """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½).

        The trace of the root is the sum of the roots of the eigenvalues of Fᵀ Σ2 F, which is symmetric. Of these at
        most min(n1, n2) − 1 differ from zero; the rest is rounding, whose roots would add up.

        Raises:
            ValueError: fewer than two images on a side, or other dimensions.
        """
        _require_two(other, name)
        if other.mean.shape != self.moments.mean.shape:
            raise ValueError(
                f"features of {len(self.moments.mean)} and {len(other.mean)} dimensions cannot be compared"
            )
        covariance = other.covariance()
        eigenvalues = torch.linalg.eigvalsh(self.factor.T @ covariance @ self.factor).clamp(min=0)  # ascending
        rank = min(self.moments.count, other.count) - 1
        root = eigenvalues[max(len(eigenvalues) - rank, 0) :].sqrt().sum()
        gap = (self.moments.mean - other.mean).square().sum()
        return float((gap + self.covariance.trace() + covariance.trace() - 2 * root).clamp(min=0))


def _require_two(moments: Moments, name: str) -> None:
    if moments.count < 2:
        raise ValueError(f"a Fréchet distance needs at least 2 {name} images, not {moments.count}")


class FrechetDistance:
    """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½), without holding the features."""

    def __init__(self) -> None:
        self.real, self.generated = Moments(), Moments()

    def update(self, features: torch.Tensor, real: bool) -> None:
        """Add features (n, d) of either side."""
        (self.real if real else self.generated).add(features)

    def merge(self, other: "FrechetDistance") -> Self:
        """Add the features that another instance has seen, in place."""
        self.real.merge(other.real)
        self.generated.merge(other.generated)
        return self

    def compute(self) -> float:
        """The distance.

        Raises:
            ValueError: fewer than two images on a side.
        """
        return Reference(self.real).distance(self.generated)


@dataclass(frozen=True)
class FrechetEstimate:
    """A distance and how far it can be trusted."""

    value: float
    """All images; what pytorch-fid would give. It falls as N grows."""
    low: float | None
    """95 % interval of a distance at this N: delete-a-group jackknife over the judged images, the reference as given;
    None where a part would have fewer than 2 images."""
    high: float | None
    infinity: float | None
    """Extrapolated to infinitely many judged images (Chong & Forsyth, arXiv 1911.07023); None where a fifth of them
    are no more than the dimensions, as the distance is not linear in 1/N there."""
    warning: str | None
    """Why the number must not be taken for more than it is."""


def estimate(reference: Reference, groups: Sequence[Moments]) -> FrechetEstimate:
    """The distance of a set, given as GROUPS equal parts drawn without regard to content.

    Raises:
        ValueError: fewer than two images on a side.
    """
    whole = merged(groups)
    value, dims = reference.distance(whole), len(whole.mean)
    low = high = infinity = None
    if whole.count - max(g.count for g in groups) >= 2 and min(g.count for g in groups):
        without = np.array([reference.distance(merged([g for g in groups if g is not left])) for left in groups])
        error = float(np.sqrt((GROUPS - 1) / GROUPS * np.square(without - without.mean()).sum()))
        low, high = value - _T_95 * error, value + _T_95 * error
    if whole.count // 5 > dims:
        points = [(float(whole.count), value)]
        for parts in (2, 5):  # each size uses every image once
            size = GROUPS // parts
            pieces = [merged(groups[i : i + size]) for i in range(0, GROUPS, size)]
            points.append((whole.count / parts, float(np.mean([reference.distance(piece) for piece in pieces]))))
        counts, distances = zip(*points, strict=True)
        infinity = float(np.polyfit(1 / np.array(counts), distances, 1)[1])
    fewest = min(whole.count, reference.moments.count)
    warning = (
        f"{fewest} images are fewer than the {dims} dimensions: comparable at this N only" if fewest <= dims else None
    )
    return FrechetEstimate(value, low, high, infinity, warning)


@torch.no_grad()
def frechet_distance(
    extract: Callable[[torch.Tensor], torch.Tensor], real: torch.Tensor, generated: torch.Tensor
) -> float:
    """Fréchet distance of two sets of images, (N, 3, H, W) uint8 each; `extract` gives their features (B, d).

    Raises:
        ValueError: fewer than two images on a side.
    """
    distance = FrechetDistance()
    for images, is_real in ((real, True), (generated, False)):
        for part in images.split(64):
            distance.update(extract(part), real=is_real)
    return distance.compute()
