"""SRGAN: Ledig et al., "Photo-Realistic Single Image Super-Resolution Using a Generative Adversarial Network"
(arXiv 1609.04802). Its generator, trained on the pixel loss alone, is SRResNet."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.network import SRNetwork
from models.recipe import Adversarial, Optimiser, Recipe

_SIZES = {"mini": (4, 32), "paper": (16, 64)}  # (residual blocks, channels); paper: 1,549,462 parameters at x4
_CRITIC_WIDTHS = (64, 64, 128, 128, 256, 256, 512, 512)  # Fig. 4, strides 1 and 2 in turn
_MINI = {"srgan.size": "mini"}


@dataclass(frozen=True, kw_only=True)
class SRGANConfig:
    """Size of generator and discriminator."""

    size: Literal["mini", "paper"] = "paper"
    """paper: 16 blocks x 64; mini (ours): 4 blocks x 32, and a quarter of the discriminator's width."""

    def __post_init__(self):
        if self.size not in _SIZES:
            raise ValueError(f"srgan.size must be one of {', '.join(_SIZES)}, not {self.size!r}")


class _ResidualBlock(nn.Module):
    """conv - BN - PReLU - conv - BN, plus the input (Fig. 4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.PReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x)


class SRGAN(SRNetwork):
    """The generator: (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1].

    Inside, the input is in [0, 1], as in § 3.2. Scales are powers of two, one sub-pixel step each; the paper has x4.
    """

    Config = SRGANConfig
    scales = (2, 4, 8)
    has_discriminator = True
    # § 3.2: Adam with β1 0.9, batch 16, HR patches of 96 px (whole faces at 64 px). SRResNet: MSE, 1e6 updates at 1e-4.
    # SRGAN: from there, 1e5 at 1e-4 and 1e5 at 1e-5, VGG19 φ5,4 divided by 12.75, and 1e-3 of the adversarial loss.
    paper_recipe = Recipe(
        max_steps=1_200_000, learning_rate=1e-4, ema_decay=0.0, pixel_loss="l2", lr_patch_size=24,
        optimiser=Optimiser(decay_at=(11 / 12,), decay=0.1),
        adversarial=Adversarial(weight=1e-3, pretrain=10 / 12, perceptual_weight=1.0),
    )  # fmt: skip
    # The paper's variant SRGAN-MSE (Table 1): the pixel loss stays, so no VGG19 weights are needed.
    mini_recipe = Recipe(
        max_steps=900, learning_rate=1e-3, ema_decay=0.98, pixel_loss="l2",
        optimiser=Optimiser(decay_at=(2 / 3,), decay=0.1), adversarial=Adversarial(weight=1e-3, pretrain=2 / 3),
    )  # fmt: skip
    presets: ClassVar = {"debug": _MINI, "demo": _MINI, "mini": _MINI}

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        blocks, channels = _SIZES[self.config.size]
        self.head = nn.Sequential(nn.Conv2d(3, channels, 9, padding=4), nn.PReLU())
        self.body = nn.Sequential(
            *(_ResidualBlock(channels) for _ in range(blocks)),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )
        upsampler: list[nn.Module] = []
        for _ in range(scale.bit_length() - 1):
            upsampler += [nn.Conv2d(channels, 4 * channels, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()]
        self.upsampler = nn.Sequential(*upsampler)
        self.tail = nn.Conv2d(channels, 3, 9, padding=4)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        features = self.head(lr * 0.5 + 0.5)
        return self.tail(self.upsampler(features + self.body(features)))

    def discriminator(self, size: int) -> nn.Module:
        return Discriminator(size, width_divisor=1 if self.config.size == "paper" else 4)


class Discriminator(nn.Module):
    """Sharp or super-resolved (B, 3, H, H) in [-1, 1] -> (B,) logits of being sharp (Fig. 4).

    The dense layer takes what eight convolutions leave of the image: 6x6 maps at the paper's 96 px, 4x4 at 64.
    """

    def __init__(self, hr_size: int, width_divisor: int = 1):
        super().__init__()
        if hr_size % 16:
            raise ValueError(f"the discriminator halves the side four times: hr_size {hr_size} is no multiple of 16")
        widths = [width // width_divisor for width in _CRITIC_WIDTHS]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1), nn.LeakyReLU(0.2)]  # no BN in the first
        for i in range(1, len(widths)):
            layers += [
                nn.Conv2d(widths[i - 1], widths[i], 3, stride=1 + i % 2, padding=1),
                nn.BatchNorm2d(widths[i]),
                nn.LeakyReLU(0.2),
            ]
        hidden = 1024 // width_divisor
        self.layers = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(widths[-1] * (hr_size // 16) ** 2, hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images).squeeze(1)
