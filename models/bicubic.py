"""Bicubic interpolation as a model, so that the baseline of every table runs through the same code."""

from dataclasses import dataclass

import torch

from models.network import SRNetwork
from models.resize import upscale


@dataclass(frozen=True, kw_only=True)
class BicubicConfig:
    """Nothing to choose."""


class Bicubic(SRNetwork):
    """(B, 3, h, w) -> (B, 3, scale·h, scale·w), clamped to [-1, 1]."""

    Config = BicubicConfig
    scales = (2, 3, 4, 8)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        return upscale(lr, self.scale).clamp(-1, 1)
