"""The paper's super-resolution network (§ 3.2, Fig. 1): global, then local attention residual blocks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from models.attention import GlobalAttention, LocalAttention
from models.network import SRNetwork
from models.recipe import Optimiser, Recipe
from models.resize import upscale
from models.srgan import Discriminator
from models.upsampler import PixelShuffleUpsampler

_MINI = {"attentive.channels": 32, "attentive.global_blocks": 4, "attentive.local_blocks": 4}


@dataclass(frozen=True, kw_only=True)
class AttentiveConfig:
    """Size and ablation switches (Table 4). The paper gives no depth or width; these are ours."""

    channels: int = 64
    """Width of every block; a multiple of channels_per_group."""
    global_blocks: int = 8
    """Number of GARBs; they come first."""
    local_blocks: int = 8
    """Number of LARBs; they follow."""
    window: int = 7
    """Side of the local attention window, LR px, odd (7 in Local Relation Networks)."""
    channels_per_group: int = 8
    """Channels of the value that share one local weight map (m = 8 in Local Relation Networks)."""
    use_global: bool = True
    """GA. Off: the attention module goes, the residual block stays."""
    use_local: bool = True
    """LA. Off: the attention module goes, the residual block stays."""

    def __post_init__(self):
        if self.window % 2 == 0 or self.window < 1:
            raise ValueError(f"attentive.window must be odd and positive, not {self.window}")
        if self.channels % self.channels_per_group:
            raise ValueError(
                f"attentive.channels {self.channels} is no multiple of channels_per_group {self.channels_per_group}"
            )


class _ResidualBranch(nn.Sequential):
    """conv - ReLU - conv."""

    def __init__(self, channels: int):
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )


class GARB(nn.Module):
    """Global attention residual block: the attention works on the residual branch, the skip connection stays."""

    def __init__(self, channels: int, use_attention: bool = True):
        super().__init__()
        self.branch = _ResidualBranch(channels)
        self.attention = GlobalAttention(channels) if use_attention else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(self.branch(x))


class LARB(nn.Module):
    """Local attention residual block."""

    def __init__(self, channels: int, window: int, channels_per_group: int, use_attention: bool = True):
        super().__init__()
        self.branch = _ResidualBranch(channels)
        self.attention = LocalAttention(channels, window, channels_per_group) if use_attention else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.attention(self.branch(x))


class AttentiveSR(SRNetwork):
    """(B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1].

    The network predicts what bicubic interpolation misses: the sum with the upscaled input is our choice, the paper
    leaves the outermost skip open.
    """

    Config = AttentiveConfig
    scales = (2, 3, 4, 8)
    has_discriminator = True  # which its recipes leave off; with adversarial.weight, as SRGAN's second phase
    paper_recipe = Recipe(epochs=50, learning_rate=1e-4, pixel_loss="l1")  # § 4.1: Adam, constant rate
    mini_recipe = Recipe(
        max_steps=600, learning_rate=1e-3, ema_decay=0.98, pixel_loss="l1", optimiser=Optimiser(decay_at=(0.5, 0.75))
    )
    presets: ClassVar = {
        "mini": _MINI,
        "demo": _MINI | {"attentive.global_blocks": 2, "attentive.local_blocks": 2, "attentive.window": 5},
        "debug": _MINI | {"attentive.channels": 16, "attentive.global_blocks": 1, "attentive.local_blocks": 1},
    }

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        c = self.config
        self.head = nn.Conv2d(3, c.channels, 3, padding=1)
        self.body = nn.Sequential(
            *(GARB(c.channels, c.use_global) for _ in range(c.global_blocks)),
            *(LARB(c.channels, c.window, c.channels_per_group, c.use_local) for _ in range(c.local_blocks)),
            nn.Conv2d(c.channels, c.channels, 3, padding=1),
        )
        self.upsampler = PixelShuffleUpsampler(scale, c.channels)
        self.tail = nn.Conv2d(c.channels, 3, 3, padding=1)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        features = self.head(lr)
        return self.tail(self.upsampler(features + self.body(features))) + upscale(lr, self.scale)

    def discriminator(self, size: int) -> nn.Module:
        """SRGAN's, of a quarter of the width for a network of fewer channels than its own. Ours; the paper has none."""
        return Discriminator(size, width_divisor=1 if self.config.channels >= 64 else 4)

    def diagnostics(self) -> dict[str, float]:
        """The learnt weight of each GA module (γ, the λ of Eq. 9): 0 means that the attention is not used."""
        modules = (module for module in self.body.modules() if isinstance(module, GlobalAttention))
        return {f"gamma/{i}": float(module.gamma.detach()) for i, module in enumerate(modules)}
