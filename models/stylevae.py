"""styleVAE (§ 3.1): turns a sharp face into a low-resolution one with the nuisances of a real low-resolution face."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from models.adain import adaptive_instance_norm
from models.camera import NOISE_CHANNELS, SETTINGS, START_MEAN, START_SPREAD, expose, record
from models.network import DegraderNetwork
from models.precision import at_least_float32
from models.recipe import Optimiser, Recipe
from models.resize import fine_detail


@dataclass(frozen=True, kw_only=True)
class StyleVAEConfig:
    """Size and ablation switch (Table 3). The paper gives no sizes; these are ours."""

    style_dim: int = 32
    """M, the dimension of the style code z."""
    channels: int = 64
    """Width of the generator's blocks and of the content code."""
    blocks: int = 4
    """Residual blocks of the generator, each followed by AdaIN; 0, with a camera only: the camera is all of G."""
    use_adain: bool = True
    """AdaIN. Off: the style code is tiled and concatenated to the content features, same depth and width."""
    camera: bool = False
    """y_LR is x_HR as a camera takes it, whose blur, contrast, noise and JPEG are read off the first entries of the
    style code, plus what the blocks of G add to it, of which only what is finer than 4 px is kept. So colours, shading
    and place stay those of x_HR, and there is grain. Ours; the paper shows no such path. See models/camera.py
    and `StyleVAE.recognise`."""

    def __post_init__(self):
        for name, least in (("style_dim", 1), ("channels", 1), ("blocks", 0 if self.camera else 1)):
            if getattr(self, name) < least:
                raise ValueError(f"stylevae.{name} must be at least {least}, not {getattr(self, name)}")
        least = len(SETTINGS) + (self.blocks > 0)  # what is left is the blocks' style
        if self.camera and self.style_dim < least:
            raise ValueError(f"stylevae.style_dim must be at least {least} with this camera, not {self.style_dim}")


class StyleVAEOutput(NamedTuple):
    """What the losses need of one pass."""

    generated: torch.Tensor | None
    """y_LR, (B, 3, h, w) in [-1, 1]; None if it was not asked for."""
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
        widths = [(3, channels, 1), (channels, channels, 1), (channels, channels, 2), (channels, 2 * channels, 1)]
        layers: list[nn.Module] = []
        for inputs, outputs, stride in [*widths, (2 * channels, 2 * channels, 2)]:
            layers += [_conv(inputs, outputs, stride), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(4 * channels, 128), nn.LeakyReLU(0.2), nn.Linear(128, 2 * style_dim))

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
    """G: content code (B, C, h, w) and style code (B, M) -> (B, 3, h, w) in [-1, 1]."""

    def __init__(self, config: StyleVAEConfig):
        super().__init__()
        style_dim = config.style_dim - (len(SETTINGS) if config.camera else 0)
        self.blocks = nn.ModuleList(
            StyledBlock(config.channels, style_dim, config.use_adain) for _ in range(config.blocks)
        )
        self.to_rgb = _conv(config.channels, 3)

    def forward(self, content: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            content = block(content, style)
        return torch.tanh(self.to_rgb(nn.functional.leaky_relu(content, 0.2)))


_LAYERS = {  # of MobileNetV2, which stands for VGG-16 in these presets
    "perceptual.style_layers": ["block0", "block1", "block3", "block6"],
    "perceptual.content_layers": ["block1", "block3"],
}

# What works on drawn and on real faces alike (docs/degradation.md): a camera, learnt by recognition, as all of G.
_CAMERA = _LAYERS | {
    "stylevae.camera": True,
    "stylevae.blocks": 0,  # beside a camera, AdaIN and Eq. 2 cost nearly 5 dB of content and bring y_LR no nearer
    "stylevae.style_dim": len(SETTINGS),
    "stylevae.channels": 48,
    "weights.lambda_style": 0.0,
    "weights.lambda_mi": 0.0,  # recognition bounds the information of z and y_LR instead, and keeps the code alive
    "weights.lambda_kl": 1e-3,  # Adam steps the prior alike for any weight; a large one would pull E_LR to the prior
    "weights.kl_from": 0.3,  # earlier, E_LR cannot read settings yet, and the prior may follow its errors
}


class StyleVAE(DegraderNetwork):
    """Two encoders and a generator: `options` are the fields of StyleVAEConfig."""

    Config = StyleVAEConfig
    scales = (2, 4, 8)
    uses_style = True
    paper_recipe = Recipe(epochs=10, learning_rate=1e-4)  # § 4.1: Adam (0.9, 0.999), constant rate
    # A code is read the better the smaller the last steps are; at half the rate, or after 800 steps, the prior has not
    # yet come from where it starts to what real faces have.
    mini_recipe = Recipe(
        max_steps=1200, batch_size=32, learning_rate=2e-3, ema_decay=0.98, optimiser=Optimiser(decay_at=(0.4, 0.6, 0.8))
    )
    presets: ClassVar = {
        "debug": {
            "stylevae.channels": 16,
            "stylevae.style_dim": 8,
            "stylevae.blocks": 1,
            "perceptual.style_layers": ["block0", "block1"],
            "perceptual.content_layers": ["block1"],
        },
        "demo": _CAMERA,
        "mini": _CAMERA,
        # The paper's network and losses, nothing of ours, at a size for two cores. λ1 is small as KL comes in nats
        # beside losses below 1; with β = α, style and content both move.
        "paper_mini": _LAYERS | {"stylevae.channels": 48, "weights.lambda_kl": 1e-3, "weights.beta": 1.0},
        # λ = (0.01, 1, 0.1), α = 1, β = 0.1 (§ 4.1) are the defaults. Widths are ours.
        "paper": {"stylevae.channels": 128, "stylevae.blocks": 6, "stylevae.style_dim": 64},
    }

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        self.style_encoder = StyleEncoder(self.config.channels, self.config.style_dim)
        if self.config.blocks:
            self.content_encoder = ContentEncoder(self.config.channels, scale)
            self.generator = Generator(self.config)
        if self.config.camera:
            if self.config.blocks:
                nn.init.zeros_(self.generator.to_rgb.weight)  # G begins as the camera alone
                nn.init.zeros_(self.generator.to_rgb.bias)  # pyrefly: ignore
            self.prior_mean = nn.Parameter(torch.zeros(len(SETTINGS)))
            self.prior_log_spread = nn.Parameter(torch.zeros(len(SETTINGS)))

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """The prior of the camera's settings, a mean and a spread of each, learns ten times as fast as the weights."""
        prior = self.prior()
        others = [value for value in self.parameters() if not any(value is each for each in prior)]
        groups = [{"params": others, "lr": learning_rate}]
        return [*groups, {"params": prior, "lr": 10 * learning_rate}] if prior else groups

    def prior(self) -> list[nn.Parameter]:
        """Mean and log spread of p(z) for the camera's settings, (9,) each; without a camera p(z) is N(0, I)."""
        return [self.prior_mean, self.prior_log_spread] if self.config.camera else []

    def noise_dim(self, hr_size: int) -> int:
        return self.config.style_dim + (NOISE_CHANNELS * (hr_size // self.scale) ** 2 if self.config.camera else 0)

    def encode_style(self, lr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """E_LR: real LR (B, 3, h, w) -> mu, logvar of q(z | x_LR), (B, M) each."""
        mu, logvar = self.style_encoder(lr)
        if not self.config.camera:
            return mu, logvar
        n = len(SETTINGS)
        mean, log_spread = self.prior_mean, self.prior_log_spread
        code, spread = (mu[:, :n] - mean) * torch.exp(-log_spread), logvar[:, :n] - 2 * log_spread
        return torch.cat([code, mu[:, n:]], dim=1), torch.cat([spread, logvar[:, n:]], dim=1)

    def encode_content(self, hr: torch.Tensor) -> torch.Tensor:
        """E_HR: sharp faces (B, 3, H, W) -> content code (B, C, H/scale, W/scale), C = channels; with a camera
        3·scale² more, the pixels of x_HR, or these alone where there are no blocks."""
        parts = [self.content_encoder(hr)] if self.config.blocks else []
        parts += [nn.functional.pixel_unshuffle(hr, self.scale)] if self.config.camera else []
        return torch.cat(parts, dim=1)

    def generate(self, content: torch.Tensor, style: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """G: content and style codes -> y_LR (B, 3, h, w) in [-1, 1]; `noise`, (B, 4, h, w) ~ N(0, I), is the camera's,
        drawn with torch's global generator unless given."""
        if not self.config.camera:
            return self.generator(content, style)
        features, pixels = content.split([content.shape[1] - 3 * self.scale**2, 3 * self.scale**2], dim=1)
        if noise is None:
            noise = torch.randn(len(content), NOISE_CHANNELS, *content.shape[2:], device=content.device)
        change = self.generator(features, style[:, len(SETTINGS) :]) if self.config.blocks else None
        # E_LR and the prior learn the settings from images whose settings are known, not from Eq. 2: see `recognise`.
        settings = self.settings(at_least_float32(style)).detach()
        with torch.autocast(content.device.type, enabled=False):  # half precision has too few grey levels for JPEG
            hr = nn.functional.pixel_shuffle(at_least_float32(pixels), self.scale)
            low = expose(hr, settings, self.scale)
            low = low if change is None else low + fine_detail(at_least_float32(change))
            return record(low, settings, noise)

    def settings(self, style: torch.Tensor) -> torch.Tensor:
        """Style codes (B, M) -> the camera's settings (B, 9), in its own units."""
        standard = self._standard_settings(style).clamp(-8, 8)  # farther out, the camera's numbers overflow
        return standard * standard.new_tensor(START_SPREAD) + standard.new_tensor(START_MEAN)

    def _standard_settings(self, style: torch.Tensor) -> torch.Tensor:
        """Style codes (B, M) -> settings (B, 9), standardised by what the camera starts with: what E_LR reads."""
        return self.prior_mean + torch.exp(self.prior_log_spread) * style[:, : len(SETTINGS)]

    def recognise(self, hr: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Degrade `hr` by settings of the prior, and let E_LR read them: target, mu and logvar, (B, 9) each; `noise` as
        of `degrade` without a style.

        This is wake-sleep's sleep phase (Hinton et al. 1995): E_LR learns q(z | y) where z is known. In turn the KL
        term (Eq. 1) fits the prior's mean and spread to the codes of real faces, so that draws become like them.
        """
        assert self.config.camera
        n = len(SETTINGS)
        with torch.no_grad():
            style, planes = self._split(noise, hr)
            target = self._standard_settings(style)
            generated = self.generate(self.encode_content(hr), style, planes)
        mu, logvar = self.style_encoder(generated)
        return target, mu[:, :n], logvar[:, :n]

    def _split(self, noise: torch.Tensor, hr: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, noise_dim) -> the style's part (B, M), and the camera's (B, 4, h, w), if there is one."""
        code, grain = noise[:, : self.config.style_dim], noise[:, self.config.style_dim :]
        size = (hr.shape[-2] // self.scale, hr.shape[-1] // self.scale)
        return code, grain.unflatten(1, (NOISE_CHANNELS, *size)) if self.config.camera else None

    def degrade(self, hr: torch.Tensor, noise: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        """y_LR; the noise is ε around the style's mean, or z itself where no style is given, then the camera's."""
        code, planes = self._split(noise, hr)
        z = code if style is None else reparameterise(*self.encode_style(style), code)
        return self.generate(self.encode_content(hr), z, planes)

    def forward(self, hr: torch.Tensor, lr: torch.Tensor, noise: torch.Tensor, generate: bool = True) -> StyleVAEOutput:
        """Degrade `hr` in the style of the unpaired `lr`, with noise as of `degrade`; or only encode that."""
        mu, logvar = self.encode_style(lr)
        if not generate:
            return StyleVAEOutput(None, mu, logvar)
        code, planes = self._split(noise, hr)
        return StyleVAEOutput(
            self.generate(self.encode_content(hr), reparameterise(mu, logvar, code), planes), mu, logvar
        )


def reparameterise(mu: torch.Tensor, logvar: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """z = μ + σ ⊙ ε with ε ~ N(0, I) given as `noise` (§ 3.1)."""
    return mu + torch.exp(0.5 * at_least_float32(logvar)) * noise
