"""A camera as a differentiable layer: blur, sampling, noise and JPEG, each of a strength of its own for every image.

What the field's hand-made degradations are made of (Real-ESRGAN, 2107.10833, § 3), but with settings that are given,
so that an encoder can learn which ones real images have.
"""

import math

import torch
import torch.nn.functional as F

from models.jpeg import jpeg

SETTINGS = (
    "blur", "stretch", "slant", "contrast", "noise", "colour_noise", "shot", "grain", "quality"
)  # fmt: skip
"""What the camera is given of each image, as unbounded numbers, in this order."""

# Mean and spread of each setting before anything is learnt: wide enough to hold what real images have.
_START = {
    "blur": (math.log(0.45), 0.5),  # log of the standard deviation, LR px
    "stretch": (0.0, 0.4),  # half the log ratio of the standard deviations along x and y
    "slant": (0.0, 0.4),  # the same along the diagonals
    "contrast": (0.0, 0.1),  # log of the factor around the mean colour
    "noise": (math.log(5.0), 0.7),  # log of the standard deviation at full brightness, grey levels
    "colour_noise": (0.0, 1.0),  # logit of the share of the variance that differs between channels
    "shot": (0.0, 1.0),  # logit of the share of the variance that grows with brightness
    "grain": (math.log(0.3), 0.3),  # log of the standard deviation of the grain's blur, LR px
    "quality": (0.7, 1.0),  # logit of JPEG's quality over 100
}
START_MEAN, START_SPREAD = (tuple(_START[name][k] for name in SETTINGS) for k in (0, 1))

NOISE_CHANNELS = 4
"""Of the noise that `record` is given: one that all colours share, and one of each."""


def expose(hr: torch.Tensor, settings: torch.Tensor, scale: int) -> torch.Tensor:
    """Blur, sampling and contrast: (B, 3, H, W), (B, 9) -> (B, 3, H/scale, W/scale).

    The kernel is a Gaussian around the LR pixel's centre, so that nothing moves, cut off at 3 LR px; its covariance is
    the matrix exponential of a symmetric matrix, so that no numbers give an invalid one.
    """
    s = _named(settings)
    kernels = _gaussians(s["blur"], s["stretch"], s["slant"], scale)  # (B, K, K)
    size, pad = kernels.shape[-1], (kernels.shape[-1] - scale) // 2
    batch, channels = hr.shape[:2]
    padded = F.pad(hr, (pad,) * 4, mode="replicate").flatten(0, 1)[None]
    weight = kernels[:, None].expand(-1, channels, -1, -1).reshape(batch * channels, 1, size, size)
    low = F.conv2d(padded, weight, stride=scale, groups=batch * channels)
    low = low.view(batch, channels, *low.shape[-2:])
    mean = low.mean(dim=(2, 3), keepdim=True)
    return mean + (low - mean) * s["contrast"].exp()[:, None, None, None]


def record(low: torch.Tensor, settings: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Noise and JPEG: LR images (B, 3, h, w) in [-1, 1], settings (B, 9), noise (B, 4, h, w) ~ N(0, I) -> the same
    shape in [-1, 1].

    The noise's first channel is common to the three colours.
    """
    s = {name: value[:, None, None, None] for name, value in _named(settings).items()}
    noise = _unit_blur(noise, s["grain"].exp())
    share = torch.sigmoid(s["colour_noise"])
    mixed = (1 - share).sqrt() * noise[:, :1] + share.sqrt() * noise[:, 1:]
    brightness = (low * 0.5 + 0.5).clamp(0, 1)
    variance = 1 + torch.sigmoid(s["shot"]) * (brightness - 1)
    noisy = low + s["noise"].exp() / 127.5 * (variance + 1e-4).sqrt() * mixed
    return jpeg(noisy, 100 * torch.sigmoid(s["quality"]).flatten())


def _named(settings: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(SETTINGS, settings.unbind(dim=1), strict=True))


def _gaussians(blur: torch.Tensor, stretch: torch.Tensor, slant: torch.Tensor, scale: int) -> torch.Tensor:
    """(B,) each -> kernels (B, K, K) at HR pixels, of unit sum, centred on an LR pixel."""
    reach = 3  # LR px to each side
    axis = (torch.arange(2 * reach * scale, device=blur.device) + 0.5) / scale - reach  # LR px
    y, x = axis[:, None], axis[None, :]
    # The inverse of exp(L) is exp(−L); L = 2·(blur·I + [[stretch, slant], [slant, −stretch]]), in closed form.
    size = (stretch.square() + slant.square() + 1e-12).sqrt()
    cosh, sinhc = torch.cosh(2 * size), torch.sinh(2 * size) / size
    a, b = stretch * sinhc, slant * sinhc
    xx, yy, xy = (each[:, None, None] for each in (cosh - a, cosh + a, -b))
    distance = torch.exp(-2 * blur)[:, None, None] * (xx * x * x + yy * y * y + 2 * xy * x * y)
    return torch.softmax((-0.5 * distance).flatten(1), dim=1).view_as(distance)


def _unit_blur(noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """White noise (B, C, h, w), blurred by a Gaussian of `sigma` px (B, 1, 1, 1), of unit variance inside."""
    axis = torch.arange(-2, 3, device=noise.device)
    line = torch.softmax(-0.5 * (axis / sigma.flatten()[:, None]).square(), dim=1)
    line = line / line.square().sum(dim=1, keepdim=True).sqrt()
    batch, channels = noise.shape[:2]
    weight = line.repeat_interleave(channels, dim=0)
    x = F.pad(noise, (2,) * 4, mode="reflect").flatten(0, 1)[None]
    x = F.conv2d(x, weight[:, None, None, :], groups=batch * channels)
    return F.conv2d(x, weight[:, None, :, None], groups=batch * channels).view_as(noise)
