"""The one resize of the project: antialiased bicubic (Keys, a = -0.5), as PIL's and close to MATLAB's imresize."""

import torch
import torch.nn.functional as F


def resize(images: torch.Tensor, height: int, width: int | None = None) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, height, width); `width` defaults to `height`.

    Float images keep their range and may overshoot it slightly, as bicubic does; uint8 images are rounded
    and clamped to 0..255. Without antialias, torch would alias when shrinking and use a = -0.75.
    """
    size = (height, height if width is None else width)
    if tuple(images.shape[-2:]) == size:
        return images
    if images.dtype == torch.uint8:
        return resize(images.float(), *size).round().clamp(0, 255).to(torch.uint8)
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def fine_detail(images: torch.Tensor) -> torch.Tensor:
    """Float images (B, C, h, w) without what is coarser than 4 px; around 0, in twice their range. Blur, noise and
    compression change it, but not which face, colours and light are seen."""
    height, width = images.shape[-2:]
    return images - resize(resize(images, max(height // 4, 1), max(width // 4, 1)), height, width)


def upscale(images: torch.Tensor, scale: int) -> torch.Tensor:
    """(B, C, h, w) -> (B, C, scale·h, scale·w)."""
    return resize(images, images.shape[-2] * scale, images.shape[-1] * scale)
