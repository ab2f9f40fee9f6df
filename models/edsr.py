"""EDSR: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution" (arXiv 1707.02921)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.network import SRNetwork
from models.recipe import Optimiser, Recipe
from models.upsampler import PixelShuffleUpsampler

# (residual blocks, channels, residual scaling); counts at x4: 1,517,571 and 43,089,923 (EDSR-PyTorch option.py).
# "mini" is ours, for machines where the published sizes take days; it is reported under its own name.
_SIZES = {"mini": (4, 32, 1.0), "baseline": (16, 64, 1.0), "full": (32, 256, 0.1)}
_DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # RGB mean of the paper's training set, in [0, 1]
_MINI = {"edsr.size": "mini"}


@dataclass(frozen=True, kw_only=True)
class EDSRConfig:
    """Which of the published sizes."""

    size: Literal["mini", "baseline", "full"] = "baseline"
    """baseline: 16 blocks x 64; full: 32 blocks x 256, residuals scaled by 0.1; mini (ours): 4 blocks x 32."""

    def __post_init__(self):
        if self.size not in _SIZES:
            raise ValueError(f"edsr.size must be one of {', '.join(_SIZES)}, not {self.size!r}")


class _ResidualBlock(nn.Module):
    """No batch norm: conv - ReLU - conv, scaled, plus the input."""

    def __init__(self, channels: int, residual_scale: float):
        super().__init__()
        self.residual_scale = residual_scale
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.residual_scale * self.second(torch.relu(self.first(x)))


class EDSR(SRNetwork):
    """(B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1]."""

    Config = EDSRConfig
    scales = (2, 3, 4, 8)
    # § 4.2 and EDSR-PyTorch: L1, Adam (0.9, 0.999, 1e-8), 1e-4 halved every 2e5 of 3e5 updates, batch 16, LR patches of
    # 48 px (whole faces at 16 px), flips and turns; x3 and x4 start from x2 (--init-from).
    paper_recipe = Recipe(
        max_steps=300_000, learning_rate=1e-4, ema_decay=0.0, pixel_loss="l1", lr_patch_size=48,
        rotate=True, optimiser=Optimiser(decay_at=(2 / 3,)),
    )  # fmt: skip
    mini_recipe = Recipe(
        max_steps=1200, learning_rate=1e-3, ema_decay=0.98, pixel_loss="l1", optimiser=Optimiser(decay_at=(0.5, 0.75))
    )
    presets: ClassVar = {"debug": _MINI, "demo": _MINI, "mini": _MINI}
    mean: torch.Tensor

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        blocks, channels, residual_scale = _SIZES[self.config.size]
        self.register_buffer("mean", torch.tensor(_DIV2K_MEAN)[:, None, None] * 2 - 1, persistent=False)
        self.head = nn.Conv2d(3, channels, 3, padding=1)
        self.body = nn.Sequential(
            *(_ResidualBlock(channels, residual_scale) for _ in range(blocks)),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.upsampler = PixelShuffleUpsampler(scale, channels)
        self.tail = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        features = self.head(lr - self.mean)
        return self.tail(self.upsampler(features + self.body(features))) + self.mean
