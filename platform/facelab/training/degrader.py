"""Stage 1: the styleVAE, trained on unpaired sharp and low-resolution faces (§ 3.1, Eq. 6)."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from facelab.config import Config, Uri
from facelab.data.faces import FaceSet
from facelab.data.sampler import batch_indices, flips
from facelab.errors import UsageError
from facelab.images import grid, to_float, to_uint8
from facelab.metrics.frechet import frechet_distance
from facelab.metrics.psnr_ssim import psnr
from facelab.seeding import generator_for
from facelab.training.config import ComputeConfig, TrainConfig
from facelab.training.context import Context
from facelab.training.loop import Update
from facelab.weights import resolve_weights
from models.features import FEATURE_NETWORKS, FeatureNetwork
from models.losses import content_loss, kl_divergence, style_loss
from models.mutual_information import StatisticsNetwork, derangement, donsker_varadhan
from models.resize import resize
from models.stylevae import StyleVAE, StyleVAEConfig, reparameterise


class LossWeights(Config):
    """λ1–λ3 of Eq. 6, α and β of Eq. 2."""

    lambda_kl: float = Field(default=0.01, ge=0)
    """λ1, on the KL divergence (Eq. 1)."""
    lambda_style: float = Field(default=1.0, ge=0)
    """λ2, on content and style loss together (Eq. 2)."""
    lambda_mi: float = Field(default=0.1, ge=0)
    """λ3, on the mutual information (Eq. 5), which is maximised; 0 builds no statistics network (MI ablation)."""
    alpha: float = Field(default=1.0, ge=0)
    """α, on the content loss (Eq. 3)."""
    beta: float = Field(default=0.1, ge=0)
    """β, on the style loss (Eq. 4)."""


class PerceptualConfig(Config):
    """The loss network φ of Eq. 3–4. Each layer's features are divided by their RMS on real LR faces."""

    network: Literal["vgg16", "mobilenet_v2"] = "vgg16"
    """vgg16 is the paper's; mobilenet_v2 comes with facelab[offline-weights] and is fast on CPUs."""
    weights: Uri | None = None
    """URI of the weight file; default: torchvision's download, or the installed package."""
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
    """Layers of the style loss, equal w_i (Huang & Belongie 2017)."""
    content_layers: tuple[str, ...] = ("relu4_1",)
    """Layers of the content loss."""
    min_size: int = Field(default=64, ge=16)
    """Smaller images are upsampled to this side first, px: at 16 px, relu4_1 would be 2x2."""
    match_colour: bool = False
    """Give x_LR the mean and spread of colour of x_HR before Eq. 4, so that blur, noise and compression are its style
    and its colours are not: pairs whose colours differ teach an SR network to guess them. Ours, not the paper's."""
    selection_layer: str = "relu1_1"
    """The epoch with the smallest Fréchet distance over this layer's channels, on held-out faces, is kept."""

    @model_validator(mode="after")
    def _layers_exist(self):
        known = FEATURE_NETWORKS[self.network].layers
        for name in ("style_layers", "content_layers", "selection_layer"):
            value = getattr(self, name)
            for layer in (value,) if isinstance(value, str) else value:
                if layer not in known:
                    raise ValueError(f"{name}: {layer!r} is not one of {self.network}'s: {', '.join(known)}")
        return self


class TrainDegraderConfig(TrainConfig):
    """Learn, from unpaired faces, to turn a sharp face into a realistic low-resolution one."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Seconds, to see that everything is connected; the result is not worth looking at.
        "debug": {
            "max_steps": 4,
            "batch_size": 4,
            "stylevae.channels": 16,
            "stylevae.style_dim": 8,
            "stylevae.blocks": 1,
            "perceptual.network": "mobilenet_v2",
            "perceptual.style_layers": ["block0", "block1"],
            "perceptual.content_layers": ["block1"],
            "perceptual.selection_layer": "block1",
            "perceptual.min_size": 32,
        },
        # Minutes on two cores, for a few hundred faces of each kind. β above α: at 16 px the content loss wins
        # otherwise and y_LR is a bicubic image. λ1 and λ3 are small because here KL and MI come in nats beside losses
        # below 1; at step 0 both are near 0 by construction, so no weight could make them comparable there.
        "demo": {
            "epochs": 100,
            "max_steps": 400,
            "learning_rate": 1e-3,
            "ema_decay": 0.98,
            "stylevae.channels": 48,
            "stylevae.content_skip": True,
            "perceptual.match_colour": True,
            "weights.lambda_kl": 3e-4,
            "weights.lambda_mi": 1e-3,
            "weights.alpha": 0.03,
            "weights.beta": 1.0,
            "perceptual.network": "mobilenet_v2",
            "perceptual.style_layers": ["block0", "block1", "block3", "block6"],
            "perceptual.content_layers": ["block3", "block6"],
            "perceptual.selection_layer": "block1",
            "perceptual.min_size": 32,
        },
        # § 4.1: 10 epochs, Adam 1e-4, λ = (0.01, 1, 0.1), α = 1, β = 0.1 are the defaults. Widths are ours.
        "paper": {"stylevae.channels": 128, "stylevae.blocks": 6, "stylevae.style_dim": 64},
    }

    hr: Uri
    """URI of sharp training faces: face shards or a folder of images."""
    lr: Uri
    """URI of real low-resolution training faces, unpaired with --hr."""
    model: Literal["stylevae"] = "stylevae"
    """The degrader to train."""
    stylevae: StyleVAEConfig = StyleVAEConfig()
    """Network and AdaIN switch."""
    weights: LossWeights = LossWeights()
    """Loss weights; the MI switch is lambda_mi = 0."""
    perceptual: PerceptualConfig = PerceptualConfig()
    """Loss network."""

    @model_validator(mode="after")
    def _power_of_two(self):
        if self.scale & (self.scale - 1):
            raise ValueError(f"scale {self.scale}: styleVAE halves the size step by step, so 2, 4 or 8")
        if self.weights.lambda_mi and self.batch_size < 2 * max(self.workers, 1):
            raise ValueError(f"batch_size {self.batch_size}: mutual information needs 2 images per worker")
        return self

    def inputs(self) -> list[tuple[str, str]]:
        return [(self.hr, "faces"), (self.lr, "faces")]


class StyleVAEObjective(nn.Module):
    """Eq. 6 as a module, so that data-parallel training averages the gradients of all its networks in one backward."""

    def __init__(
        self, networks: nn.ModuleDict, features: FeatureNetwork, weights: LossWeights, config: PerceptualConfig
    ):
        super().__init__()
        self.networks, self.features = networks, features
        self.weights, self.config = weights, config

    def forward(self, hr: torch.Tensor, lr: torch.Tensor) -> dict[str, torch.Tensor]:
        """Terms of Eq. 6 on unpaired float images, "loss" their weighted sum.

        Args:
            hr: (B, 3, H, W) in [-1, 1].
            lr: (B, 3, h, w) in [-1, 1].
        """
        w = self.weights
        out = self.networks["main"](hr, lr)
        small = resize(hr, *lr.shape[-2:]).clamp(-1, 1)  # x_HR at the size of y_LR, for Eq. 3
        with torch.no_grad():
            style = match_colour(lr, small) if self.config.match_colour else lr
            of_content, of_style = self.features(small), self.features(style)
        of_generated = self.features(out.generated)

        def pick(features: dict[str, torch.Tensor], layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
            return {layer: features[layer] for layer in layers}

        content_layers, style_layers = self.config.content_layers, self.config.style_layers
        terms = {
            "kl": kl_divergence(out.mu, out.logvar),
            "content": content_loss(pick(of_generated, content_layers), pick(of_content, content_layers)),
            "style": style_loss(pick(of_generated, style_layers), pick(of_style, style_layers)),
        }
        weighted = {
            "weighted_kl": w.lambda_kl * terms["kl"],
            "weighted_content": w.lambda_style * w.alpha * terms["content"],
            "weighted_style": w.lambda_style * w.beta * terms["style"],
        }
        if "statistics" in self.networks:
            score = self.networks["statistics"]
            shuffled = lr[derangement(len(lr)).to(lr.device)]
            terms["mi"] = donsker_varadhan(score(lr, out.generated), score(shuffled, out.generated))
            weighted["weighted_mi"] = -w.lambda_mi * terms["mi"]
        return {"loss": torch.stack(list(weighted.values())).sum(), **terms, **weighted}


def match_colour(images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`images` with the mean and, within a factor of 2, the spread of each colour channel of `like`, (B, 3, h, w)."""
    spread, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    wanted_spread, wanted_mean = torch.std_mean(like, dim=(2, 3), keepdim=True)
    ratio = (wanted_spread / (spread + 0.01)).clamp(0.5, 2)
    return ((images - mean) * ratio + wanted_mean).clamp(-1, 1)


class StyleVAEStage:
    """Stage 1 for the training loop."""

    selection: tuple[str, str] = ("fd", "min")

    def __init__(self, config: TrainDegraderConfig, hr: FaceSet, lr: FaceSet):
        self.config = config
        self.hr, self.lr = hr.subset("train"), lr.subset("train")
        self.held_hr, self.held_lr = hr.subset("val"), lr.subset("val")
        for name, faces, least in (
            ("--hr", self.hr, config.batch_size), ("--lr", self.lr, config.batch_size),
            ("--hr", self.held_hr, 2), ("--lr", self.held_lr, 2),
        ):  # fmt: skip
            if len(faces) < least:
                raise UsageError(
                    f"{name}: {len(faces)} faces left for a part that needs {least} (90 % train, 10 % validation by "
                    "hash of id): give more faces or a smaller --batch-size"
                )
        self.steps_per_epoch = -(-len(self.hr) // config.batch_size)
        torch.manual_seed(config.seed)
        self.networks = nn.ModuleDict({"main": StyleVAE(config.scale, **vars(config.stylevae))})
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "main": torch.optim.Adam(self.networks["main"].parameters(), config.learning_rate)
        }
        if config.weights.lambda_mi > 0:
            self.networks["statistics"] = StatisticsNetwork()
            # MINE's own rate: T_θ has to keep up with the generator.
            self.optimisers["statistics"] = torch.optim.Adam(self.networks["statistics"].parameters(), 1e-3)
        p = config.perceptual
        weights = resolve_weights(p.network, p.weights)
        layers = tuple(dict.fromkeys(p.content_layers + p.style_layers))
        self.features = FeatureNetwork(p.network, layers, weights, p.min_size)
        self.features.calibrate(to_float(self.lr.images[:256]))
        self.judge = FeatureNetwork(p.network, (p.selection_layer,), weights, p.min_size)
        self.objective: nn.Module = StyleVAEObjective(self.networks, self.features, config.weights, p)

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        self.context = context
        self.judge.to(context.device)
        if compute.compile:
            self.objective.compile()
        self.objective = context.prepare(self.objective)

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        hr, lr = self._batch(step)
        terms = update.forward(self.objective, hr, lr)
        update.apply(terms, *self.optimisers.values())
        return terms

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        c, context = self.config, self.context
        ranks = {"seed": c.seed, "rank": context.rank, "world_size": context.world_size}
        hr = self.hr.images[batch_indices(len(self.hr), c.batch_size, step, stream="hr", **ranks)]
        lr = self.lr.images[batch_indices(len(self.lr), c.batch_size, step, stream="lr", **ranks)]
        mirrored = flips(c.batch_size, step, **ranks)
        hr = torch.where(mirrored[:, None, None, None], hr.flip(-1), hr)
        return to_float(hr.to(context.device)), to_float(lr.to(context.device))

    @torch.no_grad()
    def _generate(self, network: nn.Module, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Held-out faces degraded in held-out styles, the same draw every time: HR, style LR, generated (uint8)."""
        assert isinstance(network, StyleVAE)
        hr = self.held_hr.images[torch.arange(count) % len(self.held_hr)]
        style = self.held_lr.images[torch.arange(count) % len(self.held_lr)]
        generated = []
        noise = torch.randn(
            count, self.config.stylevae.style_dim, generator=generator_for(self.config.seed, "validate")
        )
        for part in torch.arange(count).split(64):
            mu, logvar = network.encode_style(to_float(style[part].to(self.context.device)))
            z = reparameterise(mu, logvar, noise[part].to(mu.device))
            content = network.encode_content(to_float(hr[part].to(self.context.device)))
            generated.append(to_uint8(network.generate(content, z)).cpu())
        return hr, style, torch.cat(generated)

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """fd: Fréchet distance of generated to held-out real LR over the selection layer; psnr_to_bicubic (dB): how
        much of the content's pixels is kept; kl_active_dims: style dimensions that carry more than 0.1 nats."""
        assert isinstance(network, StyleVAE)
        count = min(self.config.validation_images, 4 * max(len(self.held_hr), len(self.held_lr)))
        hr, _, generated = self._generate(network, count)
        mu, logvar = network.encode_style(to_float(self.held_lr.images[:512].to(self.context.device)))
        per_dimension = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0)
        bicubic = resize(hr, self.config.lr_size)
        return {
            "fd": frechet_distance(self.judge, self.held_lr.images, generated),
            "psnr_to_bicubic": float(psnr(generated, bicubic).clamp(max=100).mean()),
            "kl_active_dims": float((per_dimension > 0.1).sum()),
        }

    def picture(self, network: nn.Module) -> np.ndarray:
        """Rows: sharp face, its bicubic LR, generated LR, the real LR that gave the style."""
        hr, style, generated = self._generate(network, 12)
        return grid([hr, resize(hr, self.config.lr_size), generated, style], cell=64)
