"""The losses of § 3.1, one function an equation (but Eq. 5: mutual_information.py), and of adversarial training."""

from typing import Literal

import torch
import torch.nn.functional as F

from models.precision import at_least_float32


def kl_divergence(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, exp(logvar)) ‖ N(0, I)): sum over dimensions, mean over the batch, in nats (Eq. 1).

    The printed sign is wrong (paper-notes, errata): this is −1/2 Σ(1 + log σ² − μ² − σ²), ≥ 0, and 0 only at the prior.

    Args:
        mu, logvar: (B, M).
    """
    mu, logvar = at_least_float32(mu), at_least_float32(logvar)
    return -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(dim=1).mean()


def recognition_loss(target: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """−log N(target; mu, exp(logvar)) but for its constant: sum over dimensions, mean over the batch, in nats; see
    `StyleVAE.recognise`.

    Args:
        target, mu, logvar: (B, M).
    """
    mu, logvar = at_least_float32(mu), at_least_float32(logvar)
    return 0.5 * (logvar + (target - mu).square() * torch.exp(-logvar)).sum(dim=1).mean()


def gram_matrix(features: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, C): F·Fᵀ / (C·H·W), the channel correlations of the style loss (Eq. 4)."""
    _, channels, height, width = features.shape
    flat = at_least_float32(features).flatten(2)  # (B, C, H·W)
    with torch.autocast(features.device.type, enabled=False):  # it would do the product in half precision
        return flat @ flat.transpose(1, 2) / (channels * height * width)


def content_loss(generated: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
    """L_c: squared distance of the features of y_LR and of the resized x_HR (Eq. 3).

    Features are expected divided by their layer's stored RMS; squared differences are averaged over the elements
    and over the layers, not summed, so that α keeps its meaning at every size (paper-notes, "norms in Eq. 3–4").

    Args:
        generated, target: layer name -> (B, C, H, W), the same layers.
    """
    return _mean_square_over_layers(generated, target)


def style_loss(generated: dict[str, torch.Tensor], target: dict[str, torch.Tensor]) -> torch.Tensor:
    """L_s: squared distance of the Gram matrices of y_LR and x_LR, with equal w_i (Eq. 4).

    With unit-RMS features the mean diagonal of `gram_matrix` is 1/C; the matrices are multiplied by C here so that
    a layer counts the same whatever its width. Averaged over elements and layers, as in content_loss.

    Args:
        generated, target: layer name -> (B, C, H, W); sizes may differ, channels not.
    """

    def grams(features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {layer: f.shape[1] * gram_matrix(f) for layer, f in features.items()}

    return _mean_square_over_layers(grams(generated), grams(target))


def generator_loss(fake_scores: torch.Tensor, kind: Literal["vanilla", "hinge"]) -> torch.Tensor:
    """What the generator minimises: −log D(G(x)) (SRGAN, Eq. 6) or −D(G(x)) (hinge; Miyato et al., 1802.05957).

    Args:
        fake_scores: (B,) logits.
    """
    fake = at_least_float32(fake_scores)
    return F.softplus(-fake).mean() if kind == "vanilla" else -fake.mean()


def discriminator_loss(
    real_scores: torch.Tensor, fake_scores: torch.Tensor, kind: Literal["vanilla", "hinge"]
) -> torch.Tensor:
    """What the discriminator minimises: −log D(real) − log(1 − D(fake)), or the two hinges with margin 1.

    Args:
        real_scores, fake_scores: (B,) logits.
    """
    real, fake = at_least_float32(real_scores), at_least_float32(fake_scores)
    if kind == "vanilla":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _mean_square_over_layers(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> torch.Tensor:
    if a.keys() != b.keys():
        raise ValueError(f"layers differ: {sorted(a)} and {sorted(b)}")
    return torch.stack([(at_least_float32(a[k]) - at_least_float32(b[k])).square().mean() for k in a]).mean()
