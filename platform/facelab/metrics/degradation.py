"""How far one set of low-resolution images is from another, by what degradation does to spectrum and noise.

Training never sees these numbers, neither as a loss nor to choose a checkpoint: they judge.
"""

import torch
import torch.nn.functional as F

from facelab.metrics.number import Metric

DISTANCES = {
    "degradation_distance": Metric("spectral distance {}", -1, ".3f"),
    "highpass_mean_distance": Metric("high-pass mean {}", -1, ".3f"),
    "highpass_variance_distance": Metric("high-pass variance {}", -1, ".1f"),
    "highpass_kurtosis_distance": Metric("high-pass kurtosis {}", -1, ".2f"),
}
"""How each is shown; {} is for whose LR is meant, where that does not go without saying."""


def luma(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> (B, H, W) float64 in 0..255, full range BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    return torch.einsum("bchw,c->bhw", images.double(), weights)


def radial_spectrum(images: torch.Tensor) -> torch.Tensor:
    """a_r for r = 1..h/2: the mean over the images of the mean of log10(|FFT₂(luma)|² + 1) over the ring of
    frequencies whose distance from 0, rounded, is r. (B, 3, h, h) uint8 -> (h/2,)."""
    height, width = images.shape[-2:]
    if height != width:
        raise ValueError(f"square images are wanted, not {height}x{width}")
    power = torch.log10(torch.fft.fft2(luma(images)).abs().square() + 1).mean(dim=0)
    frequency = torch.fft.fftfreq(height, d=1 / height)
    radius = torch.hypot(frequency[:, None], frequency[None, :]).round()
    return torch.stack([power[radius == r].mean() for r in range(1, height // 2 + 1)])


def highpass_moments(images: torch.Tensor) -> dict[str, float]:
    """Mean, variance and kurtosis of luma minus its Gaussian blur (σ 1 px, 5x5), over all pixels of the set."""
    y = luma(images)[:, None]
    axis = torch.arange(-2, 3, dtype=torch.float64)
    line = torch.exp(-axis.square() / 2)
    line = line / line.sum()
    blurred = F.conv2d(F.pad(y, (2,) * 4, mode="reflect"), (line[:, None] * line)[None, None])
    residual = (y - blurred).flatten()
    centred = residual - residual.mean()
    variance = centred.square().mean()
    kurtosis = centred.pow(4).mean() / variance.square().clamp(min=1e-12)
    return {"mean": float(residual.mean()), "variance": float(variance), "kurtosis": float(kurtosis)}


def degradation_distances(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
    """Distances of two sets of LR images, (B, 3, h, h) uint8, to be read beside their floor.

    `degradation_distance` is D(A, B), the mean over r of |a_r − b_r|, in decades of power; `highpass_…_distance` the
    absolute difference of mean (grey levels), variance (grey levels²) and kurtosis of the high-pass residual.
    """
    moments_a, moments_b = highpass_moments(a), highpass_moments(b)
    return {
        "degradation_distance": float((radial_spectrum(a) - radial_spectrum(b)).abs().mean()),
        **{f"highpass_{name}_distance": abs(moments_a[name] - moments_b[name]) for name in moments_a},
    }
