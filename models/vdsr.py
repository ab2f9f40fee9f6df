"""VDSR: Kim et al., "Accurate Image Super-Resolution Using Very Deep Convolutional Networks" (arXiv 1511.04587)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import nn

from models.luma import LumaSR
from models.recipe import Optimiser, Recipe

_MINI = {"vdsr.layers": 8, "vdsr.channels": 32}


@dataclass(frozen=True, kw_only=True)
class VDSRConfig:
    """Depth and width (§ 3.1); 20 x 64 has 665,921 parameters."""

    layers: int = 20
    """3x3 convolutions, at least 2."""
    channels: int = 64
    """Filters of every layer but the last."""

    def __post_init__(self):
        if self.layers < 2 or self.channels < 1:
            raise ValueError(f"vdsr needs at least 2 layers and 1 channel, not {self.layers} and {self.channels}")


class VDSR(LumaSR):
    """A deep plain network that predicts the residual of the bicubic image (§ 3.1, Eq. 2).

    The paper trains one network for scales 2, 3 and 4 together; here each scale has its own, as every compared
    method is trained for one scale.
    """

    Config = VDSRConfig
    # § 4.2–4.3: momentum 0.9, weight decay 1e-4, learning rate 0.1 divided by 10 every 20 of 80 epochs, batch 64;
    # patches of 41 px, here 10 px of LR, which are 40 at x4. The paper gives no θ; 1e-4 is ours, see docs/models.md.
    paper_recipe = Recipe(
        epochs=80, batch_size=64, learning_rate=0.1, ema_decay=0.0, pixel_loss="sse", lr_patch_size=10, rotate=True,
        optimiser=Optimiser(name="sgd", weight_decay=1e-4, decay_at=(0.25, 0.5, 0.75), decay=0.1, clip=1e-4),
    )  # fmt: skip
    mini_recipe = Recipe(
        max_steps=500, learning_rate=0.1, ema_decay=0.98, pixel_loss="sse",
        optimiser=Optimiser(name="sgd", weight_decay=1e-4, decay_at=(0.25, 0.5, 0.75), decay=0.1, clip=1e-4),
    )  # fmt: skip
    presets: ClassVar = {"mini": _MINI, "demo": _MINI, "debug": _MINI | {"vdsr.layers": 3}}

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        width = self.config.channels
        widths = [1, *[width] * (self.config.layers - 1), 1]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        for name, parameter in self.named_parameters():  # § 4.2: He et al.
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.kaiming_normal_(parameter)

    def sharpen(self, y: torch.Tensor) -> torch.Tensor:
        return y + self.layers(y)
