"""JPEG as a differentiable function: what baseline JPEG with 4:2:0 chroma loses (ITU T.81), without its file."""

import torch
import torch.nn.functional as F

# Tables K.1 and K.2 of ITU T.81, which libjpeg scales by quality.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *((99,) * 8,) * 4,
)  # fmt: skip
# RGB -> Y, Cb, Cr of JFIF, without the offset of chroma.
_YCBCR = torch.tensor([(0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)])


def jpeg(images: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] as JPEG of `quality` (B,), libjpeg's 1 to 100, leaves them; gradients pass its rounding
    and clipping unchanged.

    Chroma is averaged over 2x2 pixels and interpolated back, as libjpeg does by default. Away from the borders of a
    padded image, as close to Pillow's result as rounding inside the two lets them be.
    """
    height, width = images.shape[-2:]
    levels = _through(lambda x: x.round().clamp(0, 255), (images + 1) * 127.5)
    levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    matrix = _YCBCR.to(levels)
    ycbcr = _through(torch.round, torch.einsum("dc,bchw->bdhw", matrix, levels))
    scale = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality) / 100  # (B,)
    luma = _quantised(ycbcr[:, :1] - 128, _LUMA, scale) + 128
    chroma = _quantised(_through(torch.round, F.avg_pool2d(ycbcr[:, 1:], 2)), _CHROMA, scale)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)  # libjpeg's "fancy" one
    rgb = torch.einsum("dc,bchw->bdhw", matrix.inverse(), torch.cat([luma, chroma], dim=1))
    rgb = _through(lambda x: x.round().clamp(0, 255), rgb[..., :height, :width])
    return rgb / 127.5 - 1


def _quantised(planes: torch.Tensor, table: tuple[tuple[int, ...], ...], scale: torch.Tensor) -> torch.Tensor:
    """Planes (B, C, h, w) around 0 after rounding their 8x8 DCT coefficients to multiples of the scaled table's."""
    batch, channels, height, width = planes.shape
    steps = (torch.tensor(table).to(planes) * scale[:, None, None] + 0.5).floor()  # halves up, as libjpeg
    steps = steps.clamp(1, 255)[:, None, None, None]
    dct = _dct(planes)
    blocks = planes.view(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)  # (B, C, h/8, w/8, 8, 8)
    coefficients = dct @ blocks @ dct.T
    rounded = _through(lambda x: x.sign() * (x.abs() / steps + 0.5).floor() * steps, coefficients)  # halves outwards
    return (dct.T @ rounded @ dct).transpose(3, 4).reshape(planes.shape)


def _dct(like: torch.Tensor) -> torch.Tensor:
    """The orthonormal DCT-II of 8 points, (8, 8)."""
    k = torch.arange(8, dtype=torch.float64)
    rows = torch.cos(torch.pi / 8 * (k[None] + 0.5) * k[:, None]) / 2
    rows[0] /= 2**0.5
    return rows.to(like)


def _through(function, x: torch.Tensor) -> torch.Tensor:
    """`function` of x with the gradient of the identity."""
    return x + (function(x) - x).detach()
