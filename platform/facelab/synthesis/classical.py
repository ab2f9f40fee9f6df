"""The strong classical degrader: blur, resize, noise and JPEG, twice, then a sinc filter, by random draws.

Real-ESRGAN's second-order process (Wang et al., 2107.10833; constants of options/train_realesrgan_x4plus.yml), which
refines BSRGAN's (Zhang et al., 2103.14006). A peer of the learnt degraders: it has seen no real face, but was shaped by
people who had. Blurs are in px of the sharp face, as there: the constants are for x4.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special

from facelab.filters import convolve, interpolated, jpeg, quantised
from facelab.seeding import seed_for
from facelab.synthesis.degrader import Degraded, Degrader


@dataclass(frozen=True)
class _Order:
    """Ranges of one round."""

    blur: float
    """Probability of a blur."""
    sigma: tuple[float, float]
    """Of the Gaussian kernels, px."""
    resize: tuple[float, float, float]
    """Probabilities of enlarging, shrinking, and keeping the size."""
    factors: tuple[float, float]
    """Smallest and largest resize factor."""
    gaussian: tuple[float, float]
    """Standard deviation of Gaussian noise, grey levels."""
    poisson: tuple[float, float]
    """Scale of Poisson noise."""


_FIRST = _Order(1.0, (0.2, 3.0), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3.0))
_SECOND = _Order(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5))
_SINC, _FINAL_SINC = 0.1, 0.8  # probabilities, in each round's blur and at the end
_GREY = 0.4  # of noise that is equal in the three channels
_JPEG = (30, 95)
_SMALLEST = 8  # px: a factor of 0.15 on a face of 64 px, twice, would leave nothing


class Classical(Degrader):
    """The process as a degrader of pairs."""

    name = "classical"

    def degrade(self, hr: torch.Tensor, digests: list[str], variant: int) -> Degraded:
        low = []
        for face, digest in zip(hr, digests, strict=True):
            rng = np.random.default_rng(seed_for(self.seed, "classical", digest, variant))
            low.append(torch.from_numpy(degrade_classically(face.permute(1, 2, 0).numpy(), self.scale, rng)))
        return torch.stack(low).permute(0, 3, 1, 2), [[] for _ in digests]


def degrade_classically(face: np.ndarray, scale: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 -> (H/scale, W/scale, 3) uint8, by one random draw of every step."""
    low = (face.shape[0] // scale, face.shape[1] // scale)
    image = _round(face.astype(np.float64), _FIRST, (face.shape[0], face.shape[1]), rng)
    image = jpeg(quantised(image), int(rng.integers(*_JPEG, endpoint=True))).astype(np.float64)
    image = _round(image, _SECOND, low, rng)
    # Back to the LR size with a sinc filter, before or after the second JPEG: ringing and blocks in either order.
    sinc_first = rng.random() < 0.5
    if sinc_first:
        image = _last_sinc(_resized(image, low, rng), rng)
    image = jpeg(quantised(image), int(rng.integers(*_JPEG, endpoint=True))).astype(np.float64)
    if not sinc_first:
        image = _last_sinc(_resized(image, low, rng), rng)
    return quantised(image)


def _round(image: np.ndarray, order: _Order, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Blur, resize to `size` times a random factor, noise."""
    if rng.random() < order.blur:
        kernel = _sinc_kernel(rng) if rng.random() < _SINC else _gaussian_kernel(order.sigma, rng)
        image = convolve(image, kernel, border="mirror")
    low, high = order.factors
    how = rng.choice(3, p=order.resize)
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[how]
    image = _resized(image, (max(round(size[0] * factor), _SMALLEST), max(round(size[1] * factor), _SMALLEST)), rng)
    return _noisy(image, order, rng)


def _resized(image: np.ndarray, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """By area, bilinear or bicubic interpolation without antialiasing, as OpenCV and many cameras do."""
    return interpolated(image, size, str(rng.choice(["area", "bilinear", "bicubic"])))


def _noisy(image: np.ndarray, order: _Order, rng: np.random.Generator) -> np.ndarray:
    """Gaussian or Poisson noise, of colour or grey."""
    channels = 1 if rng.random() < _GREY else 3
    shape = (*image.shape[:2], channels)
    if rng.random() < 0.5:
        return image + rng.uniform(*order.gaussian) * rng.normal(size=shape)
    clean = np.clip(image, 0, 255) / 255
    if channels == 1:
        clean = clean @ np.array([[0.299], [0.587], [0.114]])
    counts = 2 ** np.ceil(np.log2(len(np.unique(quantised(clean * 255)))))  # as many photons as there are grey levels
    return image + rng.uniform(*order.poisson) * 255 * (rng.poisson(clean * counts) / counts - clean)


def _grid(radius: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    return y, x


def _gaussian_kernel(sigma: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Plain, generalised (heavier or lighter tails) or plateau-shaped; round or, less often, stretched."""
    y, x = _grid(int(rng.integers(3, 11)))
    shape = rng.choice(3, p=[0.7, 0.15, 0.15])
    s1, angle = rng.uniform(*sigma), rng.uniform(-np.pi, np.pi)
    s2 = s1 if rng.random() < (0.45 / 0.7 if shape == 0 else 0.8) else rng.uniform(*sigma)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = (u / s1) ** 2 + (v / s2) ** 2
    if shape == 0:
        return np.exp(-0.5 * distance)
    if shape == 1:
        return np.exp(-0.5 * distance ** _exponent(0.5, 4, rng))
    return 1 / (1 + distance ** _exponent(1, 2, rng))


def _exponent(low: float, high: float, rng: np.random.Generator) -> float:
    """Below 1 as often as above."""
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def _sinc_kernel(rng: np.random.Generator, gentle: bool = False) -> np.ndarray:
    """A circular low pass with a hard edge in frequency, which leaves ringing; `gentle` keeps the lower third."""
    radius = int(rng.integers(3, 11))
    cutoff = rng.uniform(np.pi / 3 if gentle or radius < 6 else np.pi / 5, np.pi)
    y, x = _grid(radius)
    r = np.hypot(x, y)
    r[radius, radius] = 1
    kernel = cutoff * special.j1(cutoff * r) / (2 * np.pi * r)
    kernel[radius, radius] = cutoff**2 / (4 * np.pi)
    return kernel


def _last_sinc(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return convolve(image, _sinc_kernel(rng, gentle=True), border="mirror") if rng.random() < _FINAL_SINC else image
