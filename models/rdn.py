"""RDN: Zhang et al., "Residual Dense Network for Image Super-Resolution" (arXiv 1802.08797)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.network import SRNetwork
from models.recipe import Optimiser, Recipe
from models.upsampler import PixelShuffleUpsampler

# (D dense blocks, C convolutions each, growth rate G). A and B are the authors' (yulunzhang/RDN: their README calls B
# D18C6, their code trains 16/8/64); B has 22,271,107 parameters at x4. "mini" is ours.
_SIZES = {"mini": (4, 3, 16), "A": (20, 6, 32), "B": (16, 8, 64)}
_FEATURES = {"mini": 32, "A": 64, "B": 64}  # G0
_MINI = {"rdn.size": "mini"}


@dataclass(frozen=True, kw_only=True)
class RDNConfig:
    """Which of the published sizes."""

    size: Literal["mini", "A", "B"] = "B"
    """B: 16 blocks of 8 layers, growth 64; A: 20, 6, 32; mini (ours): 4, 3, 16 on 32 channels."""

    def __post_init__(self):
        if self.size not in _SIZES:
            raise ValueError(f"rdn.size must be one of {', '.join(_SIZES)}, not {self.size!r}")


class ResidualDenseBlock(nn.Module):
    """Every convolution sees all before it; a 1x1 fuses them (§ 3.2, Eq. 5–8)."""

    def __init__(self, features: int, layers: int, growth: int):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(features + i * growth, growth, 3, padding=1) for i in range(layers))
        self.fusion = nn.Conv2d(features + layers * growth, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = x
        for layer in self.layers:
            seen = torch.cat([seen, torch.relu(layer(seen))], dim=1)
        return x + self.fusion(seen)


class RDN(SRNetwork):
    """(B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1]."""

    Config = RDNConfig
    scales = (2, 3, 4, 8)
    # § 4.1 and yulunzhang/RDN: L1, Adam, 1e-4 halved every 200 of 1000 epochs of 1000 updates, batch 16, LR patches of
    # 32 px (whole faces at 16 px), flips and turns; x3 and x4 start from x2 (--init-from).
    paper_recipe = Recipe(
        max_steps=1_000_000, learning_rate=1e-4, ema_decay=0.0, pixel_loss="l1", lr_patch_size=32,
        rotate=True, optimiser=Optimiser(decay_at=(0.2, 0.4, 0.6, 0.8)),
    )  # fmt: skip
    mini_recipe = Recipe(
        max_steps=600,
        learning_rate=1e-3,
        ema_decay=0.98,
        pixel_loss="l1",
        optimiser=Optimiser(decay_at=(0.4, 0.6, 0.8)),
    )
    presets: ClassVar = {"debug": _MINI, "demo": _MINI, "mini": _MINI}

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        blocks, layers, growth = _SIZES[self.config.size]
        features = _FEATURES[self.config.size]
        self.shallow = nn.Conv2d(3, features, 3, padding=1)  # F₋₁, Eq. 1
        self.head = nn.Conv2d(features, features, 3, padding=1)  # F₀, Eq. 2
        self.blocks = nn.ModuleList(ResidualDenseBlock(features, layers, growth) for _ in range(blocks))
        self.fusion = nn.Sequential(  # Eq. 9
            nn.Conv2d(blocks * features, features, 1), nn.Conv2d(features, features, 3, padding=1)
        )
        self.upsampler = PixelShuffleUpsampler(scale, features)
        self.tail = nn.Conv2d(features, 3, 3, padding=1)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        shallow = self.shallow(lr)
        x, found = self.head(shallow), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        dense = self.fusion(torch.cat(found, dim=1)) + shallow  # Eq. 10
        return self.tail(self.upsampler(dense))
