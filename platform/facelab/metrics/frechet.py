"""Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500), from streamed float64 moments."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from scipy.linalg import eigh
from scipy.linalg.blas import dsymm, dsyr, dsyrk  # pyrefly: ignore  (made at import)
from scipy.linalg.lapack import dpotrf, dpstrf, dsygst  # pyrefly: ignore

from facelab.metrics.intervals import jackknife
from facelab.metrics.number import Metric

FID = Metric("FID", -1, ".2f")
FD = Metric("FD {}", -1, ".4g")
"""How it is shown: FID over the features that the word means, FD over any other."""
GROUPS = 10
"""Parts of a set that intervals and the extrapolation are computed from."""
NOT_FINITE = "features of some images are not finite"
"""Why a distance is nan."""


class Moments:
    """Count, mean and scatter matrix of features: what a set needs to be compared, whatever its size.

    Two are merged by Chan et al.'s update, which keeps its digits where sums of squares would lose them.
    """

    _BUFFER = 1024  # rows folded in together: a batch alone would pass over the whole matrix for a few rows

    def __init__(self) -> None:
        self._buffer: list[torch.Tensor] = []
        self._count, self._waiting = 0, 0
        self._mean = np.zeros(0)  # (d,)
        self._scatter = np.zeros((0, 0), order="F")

    @classmethod
    def of(cls, count: int, mean: np.ndarray, scatter: np.ndarray) -> Self:
        """Those of rows that another instance has seen, by what it tells of them."""
        moments = cls()
        moments._count, moments._mean, moments._scatter = count, mean, scatter
        return moments

    @property
    def count(self) -> int:
        """Rows added."""
        return self._count + self._waiting

    @property
    def mean(self) -> np.ndarray:
        """(d,) float64."""
        self._fold()
        return self._mean

    @property
    def scatter(self) -> np.ndarray:
        """(d, d) float64: Σ (x − mean)(x − mean)ᵀ, of which only the lower triangle is filled, as LAPACK wants it."""
        self._fold()
        return self._scatter

    @property
    def spread(self) -> float:
        """Trace of the unbiased covariance; not finite where a feature is not."""
        return float(self.scatter.trace()) / (self.count - 1)

    def add(self, features: torch.Tensor) -> Self:
        """Add rows (n, d)."""
        if features.ndim != 2:
            raise ValueError(f"features are (n, d), not {tuple(features.shape)}")
        known = self._buffer[0].shape[1] if self._buffer else len(self._mean)
        if known and features.shape[1] != known:
            raise ValueError(f"features of {features.shape[1]} and {known} dimensions cannot be mixed")
        if len(features):
            self._buffer.append(features.detach().to("cpu", copy=True))  # the caller may use its tensor again
            self._waiting += len(features)
        if self._waiting >= self._BUFFER:
            self._fold()
        return self

    def merge(self, other: "Moments") -> Self:
        """Add the rows that another instance has seen."""
        other._fold()
        self._fold()
        if not other._count:
            return self
        if not self._count:
            self._start(len(other._mean))
        if other._mean.shape != self._mean.shape:
            raise ValueError(f"features of {len(other._mean)} and {len(self._mean)} dimensions cannot be mixed")
        self._scatter += other._scatter
        self._shift(other._count, other._mean)
        return self

    def _start(self, dims: int) -> None:
        self._mean, self._scatter = np.zeros(dims), np.zeros((dims, dims), order="F")

    def _fold(self) -> None:
        """Take in the waiting rows: their own scatter, then the shift between the two means."""
        if not self._buffer:
            return
        x = torch.cat(self._buffer).double().numpy()
        self._buffer, self._waiting = [], 0
        if not self._count:
            self._start(x.shape[1])
        mean = x.mean(axis=0)
        x -= mean
        self._scatter = dsyrk(1.0, x.T, beta=1.0, c=self._scatter, lower=1, overwrite_c=1)
        self._shift(len(x), mean)

    def _shift(self, count: int, mean: np.ndarray) -> None:
        whole, gap = self._count + count, mean - self._mean
        self._scatter = dsyr(self._count * count / whole, gap, a=self._scatter, lower=1, overwrite_a=1)
        self._mean = self._mean + gap * (count / whole)
        self._count = whole


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of all parts together."""
    whole = Moments()
    for part in parts:
        whole.merge(part)
    return whole


class Reference:
    """One side of a distance, factorised once: F (d, r) with F Fᵀ = Σ, by a Cholesky decomposition, pivoted where the
    covariance is singular: for a small set, or a channel that is always 0."""

    def __init__(self, moments: Moments, name: str = "real"):
        _require_two(moments, name)
        self.moments, scatter = moments, moments.scatter
        self.factor, self.triangular = np.zeros(0), False
        if not math.isfinite(moments.spread):  # LAPACK would fail
            return
        if moments.count > len(scatter):
            self.factor, fault = dpotrf(scatter, lower=1)
            self.triangular = not fault
        if not self.triangular:
            packed, pivots, rank, _ = dpstrf(scatter, lower=1)
            self.factor = np.zeros((len(packed), rank), order="F")
            self.factor[pivots - 1] = np.tril(packed)[:, :rank]

    def _quadratic(self, scatter: np.ndarray) -> np.ndarray:
        """Fᵀ S F, of whose symmetric result the lower triangle is filled at least."""
        if self.triangular:
            return dsygst(scatter, self.factor, itype=2, lower=1)[0]
        return self.factor.T @ dsymm(1.0, scatter, self.factor, lower=1)

    def distance(self, other: Moments, name: str = "generated") -> float:
        """|μ1 − μ2|² + Tr(Σ1 + Σ2 − 2 (Σ1 Σ2)^½); nan where a feature is not finite.

        The trace of the root is the sum of the roots of the eigenvalues of Fᵀ Σ2 F, which is symmetric. Of these at
        most min(n1, n2) − 1 differ from zero; the rest is rounding, whose roots would add up.

        Raises:
            ValueError: fewer than two images on a side, or other dimensions.
        """
        _require_two(other, name)
        mean, own = other.mean, self.moments.mean
        if mean.shape != own.shape:
            raise ValueError(f"features of {len(own)} and {len(mean)} dimensions cannot be compared")
        if not math.isfinite(self.moments.spread + other.spread):
            return math.nan
        product = self._quadratic(other.scatter)
        eigenvalues = eigh(product, eigvals_only=True, overwrite_a=True, check_finite=False)  # ascending
        rank = min(self.moments.count, other.count) - 1
        roots = np.sqrt(np.maximum(eigenvalues[max(len(eigenvalues) - rank, 0) :], 0))
        root = roots.sum() / np.sqrt((self.moments.count - 1) * (other.count - 1))
        return max(float(np.square(own - mean).sum() + self.moments.spread + other.spread - 2 * root), 0.0)


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
        """The distance. Warns where a side has no more images than dimensions.

        Raises:
            ValueError: fewer than two images on a side.
        """
        reference = Reference(self.real)
        if reason := too_few(self.real, self.generated):
            warnings.warn(f"Fréchet distance: {reason}", stacklevel=2)
        return reference.distance(self.generated)


def too_few(real: Moments, generated: Moments) -> str | None:
    """Why a distance must not be compared with one at another N; None where there are more images than dimensions."""
    fewest, dims = min(real.count, generated.count), len(real.mean)
    if fewest > dims:
        return None
    return f"{fewest} images are no more than the {dims} dimensions: comparable at this N only"


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
    without: tuple[float, ...] = ()
    """The distance of all images but those of each group in turn: what an interval of two sets' difference, or of a
    ratio, is made of, if the sets are of the same faces; empty where there is no interval."""


def estimate(reference: Reference, groups: Sequence[Moments]) -> FrechetEstimate:
    """The distance of a set, given as GROUPS equal parts drawn without regard to content.

    Raises:
        ValueError: fewer than two images on a side.
    """
    whole = merged(groups)
    value, dims = reference.distance(whole), len(whole.mean)
    if math.isnan(value):
        return FrechetEstimate(value, None, None, None, NOT_FINITE)
    low = high = infinity = None
    without: tuple[float, ...] = ()
    if whole.count - max(g.count for g in groups) >= 2 and min(g.count for g in groups):
        without = tuple(reference.distance(merged([g for g in groups if g is not left])) for left in groups)
        low, high = jackknife(value, np.array(without))
    if whole.count // 5 > dims:
        points = [(float(whole.count), value)]
        for parts in (2, 5):  # each size uses every image once
            size = GROUPS // parts
            pieces = [merged(groups[i : i + size]) for i in range(0, GROUPS, size)]
            points.append((whole.count / parts, float(np.mean([reference.distance(piece) for piece in pieces]))))
        counts, distances = zip(*points, strict=True)
        infinity = float(np.polyfit(1 / np.array(counts), distances, 1)[1])
    return FrechetEstimate(value, low, high, infinity, too_few(reference.moments, whole), without)


def frechet_distance(
    extract: Callable[[torch.Tensor], torch.Tensor], real: torch.Tensor, generated: torch.Tensor
) -> float:
    """Fréchet distance of two sets of images, (N, 3, H, W) uint8 each; `extract` gives their features (B, d).

    Raises:
        ValueError: fewer than two images on a side.
    """
    distance = FrechetDistance()
    distance.real, distance.generated = moments_of(extract, real), moments_of(extract, generated)
    return distance.compute()


@torch.no_grad()
def moments_of(extract: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> Moments:
    """Of the features (B, d) that `extract` gives of images (N, 3, H, W), uint8."""
    moments = Moments()
    for part in images.split(64):
        moments.add(extract(part))
    return moments
