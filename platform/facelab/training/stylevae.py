"""The styleVAE's training (§ 3.1, Eq. 6)."""

import torch
from torch import nn

from facelab.data.tensors import FaceSet
from facelab.images import to_float
from facelab.trained.weights import build_features
from facelab.training.degrader import DegraderStage, LossWeights, PerceptualConfig, TrainDegraderConfig
from facelab.training.loop import Update
from facelab.training.optimiser import build_optimiser
from models.features import FeatureNetwork
from models.losses import content_loss, kl_divergence, style_loss
from models.mutual_information import StatisticsNetwork, derangement, donsker_varadhan
from models.recipe import Optimiser
from models.resize import resize
from models.stylevae import StyleVAE


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


class StyleVAEStage(DegraderStage):
    """Stage 1 for the training loop."""

    def __init__(self, config: TrainDegraderConfig, hr: FaceSet, lr: FaceSet):
        super().__init__(config, hr, lr)
        if config.weights.lambda_mi > 0:
            self.networks["statistics"] = StatisticsNetwork()
            # MINE's own rate: T_θ has to keep up with the generator.
            self.optimisers["statistics"] = build_optimiser(
                Optimiser(), self.networks["statistics"].parameters(), learning_rate=1e-3
            )
        p = config.perceptual
        layers = tuple(dict.fromkeys(p.content_layers + p.style_layers))
        self.features = build_features(p.network, layers, p.weights, p.min_size)
        self.features.calibrate(to_float(self.lr.images[:256]))
        self.objective = StyleVAEObjective(self.networks, self.features, config.weights, p)

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        terms = update.forward(self.objective, *self.batch(step))
        update.apply(terms, *self.optimisers.values())
        return terms

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Also kl_active_dims: style dimensions that carry more than 0.1 nats."""
        assert isinstance(network, StyleVAE)
        mu, logvar = network.encode_style(to_float(self.held_lr.images[:512].to(self.context.device)))
        per_dimension = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0)
        return super().validate(network) | {"kl_active_dims": float((per_dimension > 0.1).sum())}
