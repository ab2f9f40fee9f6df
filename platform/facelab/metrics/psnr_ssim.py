"""PSNR and SSIM as super-resolution papers compute them: on uint8, per image, RGB or BT.601 studio-range Y."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from facelab.metrics.image_metric import ImageMetric
from facelab.metrics.number import Metric
from models.colour import rgb_to_ycbcr

SSIM_WINDOW = 11
"""Side of its Gaussian window, px."""


def psnr(x: torch.Tensor, y: torch.Tensor, *, colour: str = "rgb", crop: int = 0) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB, peak 255, per image; infinite for equal images.

    Args:
        x, y: (B, 3, H, W) uint8.
        colour: "rgb", or "y" for MATLAB's BT.601 luma in 16..235, not rounded.
        crop: px cut off each border.

    Returns:
        (B,) float64.
    """
    a, b = _channels(x, y, colour, crop)
    mean_square = (a - b).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255.0**2 / mean_square)


def ssim(x: torch.Tensor, y: torch.Tensor, *, colour: str = "rgb", crop: int = 0) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004), per image: 11x11 Gaussian of σ 1.5, K1 0.01, K2 0.03, L 255, valid
    region only, mean over the channels. Arguments and result as for `psnr`.

    Raises:
        ValueError: images smaller than the window.
    """
    a, b = _channels(x, y, colour, crop)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least {SSIM_WINDOW} px a side after the crop, not {tuple(a.shape[-2:])}")
    channels = a.shape[1]
    axis = torch.arange(-5, 6, dtype=torch.float64, device=a.device)
    line = torch.exp(-axis.square() / (2 * 1.5**2))
    line = line / line.sum()
    window = (line[:, None] * line).expand(channels, 1, 11, 11)

    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(image, window, groups=channels)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _channels(x: torch.Tensor, y: torch.Tensor, colour: str, crop: int) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dtype != torch.uint8 or y.dtype != torch.uint8:
        raise ValueError(f"uint8 images are compared, not {x.dtype} and {y.dtype}: round them first")
    if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
        raise ValueError(
            f"two batches (B, 3, H, W) of one shape are compared, not {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if colour not in ("rgb", "y"):
        raise ValueError(f"colour is 'rgb' or 'y', not {colour!r}")
    if crop < 0 or 2 * crop >= min(x.shape[-2:]):
        raise ValueError(f"crop {crop} leaves nothing of {tuple(x.shape[-2:])}")

    def prepare(image: torch.Tensor) -> torch.Tensor:
        image = image[..., crop : image.shape[-2] - crop, crop : image.shape[-1] - crop].double()
        return rgb_to_ycbcr(image / 255)[:, :1] if colour == "y" else image

    return prepare(x), prepare(y)


class _OfPixels(ImageMetric):
    """A function of pixels, on RGB and on Y."""

    function: ClassVar[Callable[..., torch.Tensor]]
    window: ClassVar[int] = 1
    """Side in px that must remain after the crop."""

    @property
    def least_side(self) -> int:
        return self.window + 2 * self.crop

    def __call__(self, images: torch.Tensor, truth: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {name: self.function(images, truth, **self.record(name)) for name in self.columns}

    def record(self, column: str) -> dict[str, Any]:
        return {"colour": column.partition("_")[2], "crop": self.crop}


class Psnr(_OfPixels):
    """`psnr` of an evaluation."""

    shown = Metric("PSNR {}, dB", 1, ".2f")
    columns = ("psnr_rgb", "psnr_y")
    function = staticmethod(psnr)


class Ssim(_OfPixels):
    """`ssim` of an evaluation."""

    shown = Metric("SSIM {}", 1, ".4f")
    columns = ("ssim_rgb", "ssim_y")
    function, window = staticmethod(ssim), SSIM_WINDOW
