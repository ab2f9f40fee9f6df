"""Bulat, Yang, Tzimiropoulos: "To learn image super-resolution, use a GAN to learn how to do image degradation first"
(arXiv 1807.11458): High-to-Low degrades, Low-to-High super-resolves what it made.

The authors published networks and test code (jingyang2017/Face-and-Image-super-resolution); how they are trained is
followed from yoon28/unpaired_face_sr, whose author says that widths the paper leaves open are that author's choice.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from models.network import DegraderNetwork, SRNetwork
from models.recipe import Adversarial, Optimiser, Recipe

# What widths are divided by: the generators', and the discriminators'. "mini" is ours.
_DIVISORS, _CRITIC_DIVISORS = {"mini": 4, "paper": 1}, {"mini": 8, "paper": 1}
_NOISE_DIM, _NOISE_SIDE = 64, 64  # the noise's map has the side of the paper's sharp faces

# § 3.3 and yoon28/unpaired_face_sr: pixel (MSE) weight 1, hinge GAN weight 0.05, Adam 1e-4 with β (0, 0.9), batch 32,
# 50 epochs, one update of D for one of G.
_ADVERSARIAL = Adversarial(weight=0.05, loss="hinge")
_OPTIMISER = Optimiser(beta1=0.0, beta2=0.9)
_MINI = {"bulat.size": "mini"}


class _Block(nn.Module):
    """Pre-activation residual block: BN - ReLU - conv - BN - ReLU - conv; `pool` halves the size before the second."""

    def __init__(self, inputs: int, outputs: int, pool: bool = False):
        super().__init__()
        down: list[nn.Module] = [nn.AvgPool2d(2)] if pool else []
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            *down,
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = inputs == outputs and not pool
        self.skip = nn.Identity() if same else nn.Sequential(*down, nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.layers(x)


@dataclass(frozen=True, kw_only=True)
class HighToLowConfig:
    """Size of the degrading generator and of its discriminator."""

    size: Literal["mini", "paper"] = "paper"
    """paper: 96 to 512 channels; mini (ours): a quarter of them, and an eighth of the discriminator's."""

    def __post_init__(self):
        _check_size(self.size)


class HighToLow(DegraderNetwork):
    """The degrader: a sharp face (B, 3, H, H) and noise (B, 64) -> (B, 3, H/4, H/4), all in [-1, 1].

    Noise becomes a fourth channel of the input. Twelve residual blocks in six groups of two: the first four groups
    halve the size, from 64 to 4 px, the others follow a pixel shuffle each, up to 16 px (Fig. 2).
    """

    Config = HighToLowConfig
    scales = (4,)
    has_discriminator = True
    uses_style = False
    paper_recipe = Recipe(
        epochs=50, batch_size=32, learning_rate=1e-4, ema_decay=0.0, optimiser=_OPTIMISER, adversarial=_ADVERSARIAL
    )
    mini_recipe = Recipe(
        epochs=100, max_steps=400, learning_rate=2e-4, ema_decay=0.0, optimiser=_OPTIMISER, adversarial=_ADVERSARIAL
    )
    presets: ClassVar = {"debug": _MINI, "demo": _MINI, "mini": _MINI}

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        d = _DIVISORS[self.config.size]
        down = [width // d for width in (96, 96, 128, 128, 256, 256, 512, 512)]
        self.noise = nn.Linear(_NOISE_DIM, _NOISE_SIDE**2)
        self.head = nn.Conv2d(4, down[0], 3, padding=1, bias=False)
        inputs = [down[0], *down[:-1]]
        self.down = nn.Sequential(*(_Block(inputs[i], down[i], pool=i % 2 == 0) for i in range(8)))
        up = [down[-1] // 4, down[-1] // 16]  # a pixel shuffle trades four channels for twice the side
        self.up = nn.Sequential(
            *(m for width in up for m in (nn.PixelShuffle(2), _Block(width, width), _Block(width, width)))
        )
        self.tail = nn.Sequential(
            nn.Conv2d(up[-1], 8, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(8, 3, 3, padding=1, bias=False),
            nn.Tanh(),
        )

    def noise_dim(self, hr_size: int) -> int:
        return _NOISE_DIM

    def degrade(self, hr: torch.Tensor, noise: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        """One LR image for each sharp face; `style`, a real LR image, is not looked at."""
        planes = self.noise(noise).unflatten(1, (1, _NOISE_SIDE, _NOISE_SIDE))
        if hr.shape[-1] != _NOISE_SIDE:  # other sizes than the paper's
            planes = F.interpolate(planes, size=hr.shape[-2:], mode="nearest")
        return self.tail(self.up(self.down(self.head(torch.cat([hr, planes], dim=1)))))

    def discriminator(self, size: int) -> nn.Module:
        return Discriminator(size, _CRITIC_DIVISORS[self.config.size])


@dataclass(frozen=True, kw_only=True)
class LowToHighConfig:
    """Size of the super-resolving generator and of its discriminator."""

    size: Literal["mini", "paper"] = "paper"
    """paper: 12 blocks x 256, 3 x 128; mini (ours): 3 x 64, 1 x 32, and an eighth of the discriminator's width."""

    def __post_init__(self):
        _check_size(self.size)


class LowToHigh(SRNetwork):
    """The SR network: (B, 3, h, w) -> (B, 3, 4h, 4w), both in [-1, 1]: the authors' GEN_DEEP."""

    Config = LowToHighConfig
    scales = (4,)
    has_discriminator = True
    paper_recipe = Recipe(
        epochs=50, batch_size=32, learning_rate=1e-4, ema_decay=0.0, pixel_loss="l2", optimiser=_OPTIMISER,
        adversarial=_ADVERSARIAL,
    )  # fmt: skip
    mini_recipe = Recipe(
        max_steps=400,
        learning_rate=5e-4,
        ema_decay=0.0,
        pixel_loss="l2",
        optimiser=_OPTIMISER,
        adversarial=_ADVERSARIAL,
    )
    presets: ClassVar = {"debug": _MINI, "demo": _MINI, "mini": _MINI}

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        d = _DIVISORS[self.config.size]
        wide, middle, narrow = 256 // d, 128 // d, 96 // d
        first, second = (12, 3) if self.config.size == "paper" else (3, 1)
        self.head = nn.Conv2d(3, wide, 3, padding=1, bias=False)
        self.body16 = nn.Sequential(*(_Block(wide, wide) for _ in range(first)))
        self.up16 = _Upsample(wide)
        self.body32 = nn.Sequential(_Block(wide, middle), *(_Block(middle, middle) for _ in range(second - 1)))
        self.skip32 = nn.Conv2d(wide, middle, 1)
        self.up32 = _Upsample(middle)
        self.tail = nn.Sequential(
            nn.Conv2d(middle, narrow, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(narrow, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, 3, 1),
            nn.Tanh(),
        )

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        x = self.head(lr)
        x = self.up16(x + self.body16(x))
        x = self.up32(self.skip32(x) + self.body32(x))
        return self.tail(x)

    def discriminator(self, size: int) -> nn.Module:
        return Discriminator(size, _CRITIC_DIVISORS[self.config.size])


class _Upsample(nn.Sequential):
    """Bilinear x2 - BN - ReLU - 1x1."""

    def __init__(self, channels: int):
        super().__init__(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )


class _CriticBlock(nn.Module):
    """ReLU - conv - ReLU - conv with spectral norm and without BN; `pool` halves the size before the second."""

    def __init__(self, inputs: int, outputs: int, pool: bool):
        super().__init__()
        down: list[nn.Module] = [nn.AvgPool2d(2)] if pool else []
        self.layers = nn.Sequential(
            nn.ReLU(),
            spectral_norm(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)),
            nn.ReLU(),
            *down,
            spectral_norm(nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)),
        )
        same = inputs == outputs and not pool
        self.skip = nn.Identity() if same else nn.Sequential(*down, spectral_norm(nn.Conv2d(inputs, outputs, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.skip(x) + self.layers(x)


class Discriminator(nn.Module):
    """(B, 3, S, S) in [-1, 1] -> (B,) scores: six residual blocks, the last of which halve the size down to 4 px."""

    def __init__(self, size: int, width_divisor: int = 1):
        super().__init__()
        halvings = size.bit_length() - 3
        if 4 << max(halvings, 0) != size or not 1 <= halvings <= 6:
            raise ValueError(f"bulat's discriminator needs a side of 8, 16, 32 … 256 px, not {size}")
        widths = [3, *(width // width_divisor for width in (128, 128, 256, 256, 512, 512))]
        self.blocks = nn.Sequential(*(_CriticBlock(widths[i], widths[i + 1], pool=i >= 6 - halvings) for i in range(6)))
        self.head = nn.Sequential(
            nn.Flatten(),
            spectral_norm(nn.Linear(16 * widths[-1], widths[-1])),
            nn.ReLU(),
            spectral_norm(nn.Linear(widths[-1], 1)),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images)).squeeze(1)


def _check_size(size: str) -> None:
    if size not in _DIVISORS:
        raise ValueError(f"bulat.size must be mini or paper, not {size!r}")
