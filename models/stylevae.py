"""styleVAE (§ 3.1): turns a sharp face into a low-resolution one with the nuisances of a real low-resolution face."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from models.adain import adaptive_instance_norm
from models.network import DegraderNetwork
from models.precision import at_least_float32
from models.recipe import Recipe
from models.resize import resize


@dataclass(frozen=True, kw_only=True)
class StyleVAEConfig:
    """Size and ablation switch (Table 3). The paper gives no sizes; these are ours."""

    style_dim: int = 32
    """M, the dimension of the style code z."""
    channels: int = 64
    """Width of the generator's blocks and of the content code."""
    blocks: int = 4
    """Residual blocks of the generator, each followed by AdaIN."""
    use_adain: bool = True
    """AdaIN. Off: the style code is tiled and concatenated to the content features, same depth and width."""
    content_skip: bool = False
    """Carry the resized x_HR in the content code and let G predict the change to it, of which only what is finer than
    4 px of y_LR is kept. Instance normalisation forgets an image's mean colour and contrast, so without this, colours
    and shading come from the style image, and SR networks learn to guess them. Ours; the paper shows no such path."""

    def __post_init__(self):
        for name in ("style_dim", "channels", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"stylevae.{name} must be at least 1, not {getattr(self, name)}")


class StyleVAEOutput(NamedTuple):
    """What the losses need of one pass."""

    generated: torch.Tensor
    """y_LR, (B, 3, h, w) in [-1, 1]."""
    mu: torch.Tensor
    """(B, M)."""
    logvar: torch.Tensor
    """(B, M)."""


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    # Zero padding leaves coloured borders, which dominate any feature distance at 16 px.
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, padding_mode="reflect")


class StyleEncoder(nn.Module):
    """E_LR: (B, 3, h, w) -> mean and log-variance of the style code, (B, M) each."""

    def __init__(self, channels: int, style_dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            _conv(3, channels),
            nn.LeakyReLU(0.2),
            _conv(channels, channels, stride=2),
            nn.LeakyReLU(0.2),
            _conv(channels, 2 * channels, stride=2),
            nn.LeakyReLU(0.2),
        )
        self.head = nn.Linear(4 * channels, 2 * style_dim)

    def forward(self, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = at_least_float32(self.layers(lr))
        # Mean and spread over positions: a style has no place in the image.
        pooled = torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3), correction=0)], dim=1)
        mu, logvar = self.head(pooled).chunk(2, dim=1)
        return mu, logvar.clamp(-8, 8)


class ContentEncoder(nn.Sequential):
    """E_HR: (B, 3, H, W) -> content code (B, C, H/scale, W/scale)."""

    def __init__(self, channels: int, scale: int):
        steps = round(math.log2(scale))  # a power of two
        widths = [max(channels // 2 ** (steps - i), 8) for i in range(steps)] + [channels]
        layers: list[nn.Module] = [_conv(3, widths[0]), nn.LeakyReLU(0.2)]
        for inputs, outputs in pairwise(widths):
            layers += [_conv(inputs, outputs, stride=2), nn.LeakyReLU(0.2)]
        super().__init__(*layers, _conv(channels, channels))


class StyledBlock(nn.Module):
    """Residual block followed by AdaIN whose scale and bias are affine in the style code.

    Without AdaIN, the tiled code is concatenated to the block's input instead.
    """

    def __init__(self, channels: int, style_dim: int, use_adain: bool):
        super().__init__()
        self.use_adain = use_adain
        self.first = _conv(channels if use_adain else channels + style_dim, channels)
        self.second = _conv(channels, channels)
        if use_adain:
            self.affine = nn.Linear(style_dim, 2 * channels)
            nn.init.zeros_(self.affine.bias)

    def forward(self, x: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        if not self.use_adain:
            tiled = style[:, :, None, None].expand(-1, -1, *x.shape[2:])
            return x + self.second(nn.functional.leaky_relu(self.first(torch.cat([x, tiled], dim=1)), 0.2))
        x = x + self.second(nn.functional.leaky_relu(self.first(x), 0.2))
        scale, bias = self.affine(style).chunk(2, dim=1)  # (B, C) each
        return adaptive_instance_norm(x, 1 + scale, bias)


class Generator(nn.Module):
    """G: content code (B, C, h, w) and style code (B, M) -> y_LR (B, 3, h, w) in [-1, 1]."""

    def __init__(self, config: StyleVAEConfig):
        super().__init__()
        self.blocks = nn.ModuleList(
            StyledBlock(config.channels, config.style_dim, config.use_adain) for _ in range(config.blocks)
        )
        self.to_rgb = _conv(config.channels, 3)
        self.content_skip = config.content_skip

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        features = content[:, :-3] if self.content_skip else content
        for block in self.blocks:
            features = block(features, style)
        rgb = torch.tanh(self.to_rgb(nn.functional.leaky_relu(features, 0.2)))
        return (content[:, -3:] + _fine(rgb)).clamp(-1, 1) if self.content_skip else rgb


def _fine(change: torch.Tensor) -> torch.Tensor:
    """(B, 3, h, w) without its coarse part: blur, noise and compression change detail, not colours and shading."""
    height, width = change.shape[2:]
    return change - resize(resize(change, max(height // 4, 1), max(width // 4, 1)), height, width)


class StyleVAE(DegraderNetwork):
    """Two encoders and a generator: `options` are the fields of StyleVAEConfig."""

    Config = StyleVAEConfig
    scales = (2, 4, 8)
    uses_style = True
    paper_recipe = Recipe(epochs=10, learning_rate=1e-4)  # § 4.1: Adam (0.9, 0.999), constant rate
    mini_recipe = Recipe(epochs=100, max_steps=400, learning_rate=1e-3, ema_decay=0.98)
    presets: ClassVar = {
        "debug": {
            "stylevae.channels": 16,
            "stylevae.style_dim": 8,
            "stylevae.blocks": 1,
            "perceptual.style_layers": ["block0", "block1"],
            "perceptual.content_layers": ["block1"],
        },
        # β above α: at 16 px the content loss wins otherwise and y_LR is a bicubic image. λ1 and λ3 are small because
        # here KL and MI come in nats beside losses below 1; at step 0 both are near 0 by construction, so no weight
        # could make them comparable there.
        "demo": {
            "stylevae.channels": 48,
            "stylevae.content_skip": True,
            "perceptual.style_layers": ["block0", "block1", "block3", "block6"],
            "perceptual.content_layers": ["block3", "block6"],
            "perceptual.match_colour": True,
            "weights.lambda_kl": 3e-4,
            "weights.lambda_mi": 1e-3,
            "weights.alpha": 0.03,
            "weights.beta": 1.0,
        },
        # The paper's network and losses at a size for two cores: no content_skip, no match_colour. λ1 is small as KL
        # comes in nats beside losses below 1; with β = α, style and content both move.
        "mini": {
            "stylevae.channels": 48,
            "perceptual.style_layers": ["block0", "block1", "block3", "block6"],
            "perceptual.content_layers": ["block1", "block3"],
            "weights.lambda_kl": 1e-3,
            "weights.beta": 1.0,
        },
        # λ = (0.01, 1, 0.1), α = 1, β = 0.1 (§ 4.1) are the defaults. Widths are ours.
        "paper": {"stylevae.channels": 128, "stylevae.blocks": 6, "stylevae.style_dim": 64},
    }

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        self.style_encoder = StyleEncoder(self.config.channels, self.config.style_dim)
        self.content_encoder = ContentEncoder(self.config.channels, scale)
        self.generator = Generator(self.config)
        self.noise_dim = self.config.style_dim

    def encode_style(self, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """E_LR: real LR (B, 3, h, w) -> mu, logvar of q(z | x_LR), (B, M) each."""
        return self.style_encoder(lr)

    def encode_content(self, hr: torch.Tensor) -> torch.Tensor:
        """E_HR: sharp faces (B, 3, H, W) -> content code (B, C, H/scale, W/scale), C + 3 with content_skip."""
        features = self.content_encoder(hr)
        if not self.config.content_skip:
            return features
        return torch.cat([features, resize(hr, *features.shape[2:]).clamp(-1, 1)], dim=1)

    def generate(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        """G: content and style codes -> y_LR (B, 3, h, w) in [-1, 1]."""
        return self.generator(content, style)

    def degrade(self, hr: torch.Tensor, noise: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        """y_LR; the noise is ε around the style's mean, or z itself where no style is given."""
        z = noise if style is None else reparameterise(*self.encode_style(style), noise)
        return self.generate(self.encode_content(hr), z)

    def forward(self, hr: torch.Tensor, lr: torch.Tensor) -> StyleVAEOutput:
        """Degrade `hr` in the style of the unpaired `lr`; z is drawn with torch's global generator."""
        mu, logvar = self.encode_style(lr)
        style = reparameterise(mu, logvar, torch.randn_like(mu))
        return StyleVAEOutput(self.generate(self.encode_content(hr), style), mu, logvar)


def reparameterise(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = μ + σ ⊙ ε with ε ~ N(0, I) given as `noise` (§ 3.1)."""
    return mu + torch.exp(0.5 * at_least_float32(logvar)) * noise
