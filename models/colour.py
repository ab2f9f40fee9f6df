"""BT.601 luma and chroma in the studio range that super-resolution papers use (MATLAB's rgb2ycbcr)."""

import torch

from models.precision import at_least_float32

# Rows Y, Cb, Cr for R, G, B in [0, 1]; results in 16..235 (Y) and 16..240 (Cb, Cr).
_TO_YCBCR = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
_OFFSET = (16.0, 128.0, 128.0)


def rgb_to_ycbcr(rgb: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) float RGB in [0, 1] -> Y in 16..235, Cb and Cr in 16..240."""
    rgb = at_least_float32(rgb)
    matrix = torch.tensor(_TO_YCBCR, dtype=rgb.dtype, device=rgb.device)
    offset = torch.tensor(_OFFSET, dtype=rgb.dtype, device=rgb.device)[:, None, None]
    with torch.autocast(rgb.device.type, enabled=False):  # bf16 has 3 digits: grey levels would merge
        return torch.einsum("ij,bjhw->bihw", matrix, rgb) + offset


def ycbcr_to_rgb(ycbcr: torch.Tensor) -> torch.Tensor:
    """The inverse of rgb_to_ycbcr, not clamped."""
    ycbcr = at_least_float32(ycbcr)
    matrix = torch.linalg.inv(torch.tensor(_TO_YCBCR, dtype=torch.float64)).to(ycbcr)
    offset = torch.tensor(_OFFSET, dtype=ycbcr.dtype, device=ycbcr.device)[:, None, None]
    with torch.autocast(ycbcr.device.type, enabled=False):
        return torch.einsum("ij,bjhw->bihw", matrix, ycbcr - offset)
