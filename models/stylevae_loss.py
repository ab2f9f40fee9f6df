"""What the styleVAE minimises (Eq. 6): the weighted sum of the losses of § 3.1."""

from dataclasses import dataclass, fields

import torch
from torch import nn

from models.features import FeatureNetwork
from models.losses import content_loss, kl_divergence, style_loss
from models.mutual_information import derangement, donsker_varadhan
from models.resize import resize


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """λ1–λ3 of Eq. 6, α and β of Eq. 2; of the styleVAE. The MI switch is lambda_mi = 0."""

    lambda_kl: float = 0.01
    """λ1, on the KL divergence (Eq. 1)."""
    lambda_style: float = 1.0
    """λ2, on content and style loss together (Eq. 2)."""
    lambda_mi: float = 0.1
    """λ3, on the mutual information (Eq. 5), which is maximised; 0 builds no statistics network (MI ablation)."""
    alpha: float = 1.0
    """α, on the content loss (Eq. 3)."""
    beta: float = 0.1
    """β, on the style loss (Eq. 4)."""

    def __post_init__(self):
        for field in fields(self):
            if not getattr(self, field.name) >= 0:  # nor nan
                raise ValueError(f"weights.{field.name} must be at least 0, not {getattr(self, field.name)}")


class StyleVAELoss(nn.Module):
    """Eq. 6 as a module, so that data-parallel training averages the gradients of all its networks in one backward."""

    def __init__(
        self,
        networks: nn.ModuleDict,
        features: FeatureNetwork,
        weights: LossWeights,
        content_layers: tuple[str, ...],
        style_layers: tuple[str, ...],
        match_colour: bool = False,
    ):
        """
        Args:
            networks: "main", a StyleVAE; "statistics", T_θ of Eq. 5, unless mutual information is left out.
            features: φ of Eq. 3–4, with the layers of both losses.
            match_colour: see `match_colour`.
        """
        super().__init__()
        self.networks, self.features, self.weights = networks, features, weights
        self.content_layers, self.style_layers, self.match_colour = content_layers, style_layers, match_colour

    def forward(self, hr: torch.Tensor, lr: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum, and its terms by name, on unpaired float images.

        Args:
            hr: (B, 3, H, W) in [-1, 1].
            lr: (B, 3, h, w) in [-1, 1].
        """
        w = self.weights
        out = self.networks["main"](hr, lr)
        small = resize(hr, *lr.shape[-2:]).clamp(-1, 1)  # x_HR at the size of y_LR, for Eq. 3
        with torch.no_grad():
            style = match_colour(lr, small) if self.match_colour else lr
            of_content, of_style = self.features(small), self.features(style)
        of_generated = self.features(out.generated)
        terms = {
            "kl": kl_divergence(out.mu, out.logvar),
            "content": content_loss(*_picked(self.content_layers, of_generated, of_content)),
            "style": style_loss(*_picked(self.style_layers, of_generated, of_style)),
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
        return torch.stack(list(weighted.values())).sum(), terms | weighted


def _picked(layers: tuple[str, ...], *found: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{layer: features[layer] for layer in layers} for features in found]


def match_colour(images: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`images` with the mean and, within a factor of 2, the spread of each colour channel of `like`, (B, 3, h, w).

    So blur, noise and compression are the style of x_LR in Eq. 4 and its colours are not: pairs whose colours differ
    teach an SR network to guess them. Ours, not the paper's.
    """
    spread, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    wanted_spread, wanted_mean = torch.std_mean(like, dim=(2, 3), keepdim=True)
    ratio = (wanted_spread / (spread + 0.01)).clamp(0.5, 2)
    return ((images - mean) * ratio + wanted_mean).clamp(-1, 1)
