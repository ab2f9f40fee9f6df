"""Blur, interpolation, rounding and JPEG of arrays: what degradations that are written down are made of."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage


def convolve(image: np.ndarray, kernel: np.ndarray, border: str = "nearest") -> np.ndarray:
    """(H, W, 3) float, each channel convolved by the kernel over its sum; `border` is a mode of scipy.ndimage."""
    kernel = kernel / kernel.sum()
    return np.stack([ndimage.convolve(image[..., c], kernel, mode=border) for c in range(3)], axis=-1)


def interpolated(image: np.ndarray, size: tuple[int, int], mode: str, antialias: bool = False) -> np.ndarray:
    """(H, W, 3) float -> (*size, 3) by a mode of torch's interpolation."""
    batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
    return F.interpolate(batch, size=size, mode=mode, antialias=antialias)[0].permute(1, 2, 0).numpy()


def quantised(image: np.ndarray) -> np.ndarray:
    """Float grey levels -> uint8, rounded and clipped."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """(H, W, 3) uint8 after one JPEG compression."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).convert("RGB"))
