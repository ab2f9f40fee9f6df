"""What the styleVAE minimises (Eq. 6): the weighted sum of the losses of § 3.1."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import nn

from models.features import FeatureNetwork
from models.losses import content_loss, kl_divergence, recognition_loss, style_loss
from models.mutual_information import donsker_varadhan
from models.resize import resize
from models.stylevae import StyleVAE


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """λ1–λ3 of Eq. 6, α and β of Eq. 2; of the styleVAE. The MI switch is lambda_mi = 0."""

    lambda_kl: float = 0.01
    """λ1, on the KL divergence (Eq. 1)."""
    lambda_style: float = 1.0
    """λ2, on content and style loss together (Eq. 2); 0 builds no loss network."""
    lambda_mi: float = 0.1
    """λ3, on the mutual information (Eq. 5), which is maximised; 0 builds no statistics network (MI ablation)."""
    alpha: float = 1.0
    """α, on the content loss (Eq. 3)."""
    beta: float = 0.1
    """β, on the style loss (Eq. 4)."""
    kl_from: float = 0.0
    """Fraction of the run before the KL divergence counts: with a camera, E_LR learns to read its settings first, and
    then the prior follows it. Ours; KL annealing goes back to Bowman et al. (1511.06349)."""
    lambda_recognition: float = 1.0
    """On `recognition_loss`, with stylevae.camera. Ours."""

    def __post_init__(self):
        for field in fields(self):
            if not getattr(self, field.name) >= 0:  # nor nan
                raise ValueError(f"weights.{field.name} must be at least 0, not {getattr(self, field.name)}")
        if self.kl_from >= 1:
            raise ValueError(f"weights.kl_from is a fraction of the run, below 1, not {self.kl_from}")


class StyleVAELoss(nn.Module):
    """Eq. 6 as a module, so that data-parallel training averages the gradients of all its networks in one backward."""

    def __init__(
        self,
        networks: nn.ModuleDict,
        features: FeatureNetwork | None,
        weights: LossWeights,
        content_layers: tuple[str, ...],
        style_layers: tuple[str, ...],
    ):
        """
        Args:
            networks: "main", a StyleVAE; "statistics", T_θ of Eq. 5, unless mutual information is left out.
            features: φ of Eq. 3–4, with the layers of both losses; None leaves the two out.
        """
        super().__init__()
        self.networks, self.features, self.weights = networks, features, weights
        self.content_layers, self.style_layers = content_layers, style_layers
        self.of_all: Callable[[torch.Tensor], torch.Tensor] = lambda scores: scores
        """This worker's scores (B,) -> those of the whole batch, where several workers have parts of it: a bound from B
        pairs is another than that from all of them, and no mean of bounds is one."""

    def forward(
        self, hr: torch.Tensor, lr: torch.Tensor, other_lr: torch.Tensor, noise: torch.Tensor, with_kl: bool = True
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum, and its terms by name, on unpaired float images.

        Args:
            hr: (B, 3, H, W) in [-1, 1].
            lr: (B, 3, h, w) in [-1, 1].
            other_lr: (B, 3, h, w), the real LR faces of the batch, deranged: no pair of `lr` and generated LR is left.
            noise: (B, 2, noise_dim) ~ N(0, I): of the LR that is recognised, and of the generated one.
            with_kl: whether the KL divergence counts yet.
        """
        w, network = self.weights, self.networks["main"]
        assert isinstance(network, StyleVAE)
        out = network(hr, lr, noise[:, 1], generate=self.features is not None or "statistics" in self.networks)
        terms = {"kl": kl_divergence(out.mu, out.logvar)}
        weighted = {"weighted_kl": (w.lambda_kl if with_kl else 0.0) * terms["kl"]}
        if self.features is not None:
            small = resize(hr, *lr.shape[-2:]).clamp(-1, 1)  # x_HR at the size of y_LR, for Eq. 3
            with torch.no_grad():
                of_content, of_style = self.features(small), self.features(lr)
            of_generated = self.features(out.generated)
            terms["content"] = content_loss(*_picked(self.content_layers, of_generated, of_content))
            terms["style"] = style_loss(*_picked(self.style_layers, of_generated, of_style))
            weighted["weighted_content"] = w.lambda_style * w.alpha * terms["content"]
            weighted["weighted_style"] = w.lambda_style * w.beta * terms["style"]
        if network.config.camera:
            terms["recognition"] = recognition_loss(*network.recognise(hr, noise[:, 0]))
            weighted["weighted_recognition"] = w.lambda_recognition * terms["recognition"]
        if "statistics" in self.networks:
            score = self.networks["statistics"]
            joint, marginal = score(lr, out.generated), score(other_lr, out.generated)
            terms["mi"] = donsker_varadhan(self.of_all(joint), self.of_all(marginal))
            weighted["weighted_mi"] = -w.lambda_mi * terms["mi"]
        return torch.stack(list(weighted.values())).sum(), terms | weighted


def _picked(layers: tuple[str, ...], *found: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    return [{layer: features[layer] for layer in layers} for features in found]
