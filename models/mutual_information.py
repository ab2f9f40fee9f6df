"""Mutual information of real and generated LR: the Donsker–Varadhan bound of MINE (Belghazi et al., 1801.04062)."""

import math

import torch
from torch import nn

from models.precision import at_least_float32


def donsker_varadhan(joint_scores: torch.Tensor, marginal_scores: torch.Tensor) -> torch.Tensor:
    """E_joint[T] − log E_marginal[exp T], a lower bound of the mutual information in nats (Eq. 5).

    The second expectation runs over p(x_LR) ⊗ p(y_LR); the printed p(x_HR) is an erratum. The bound is *maximised*:
    the total loss takes −λ3 times it. An estimate from N pairs means little above log N.

    Args:
        joint_scores: (N,) scores T(x_LR, y_LR) of matching pairs.
        marginal_scores: (N,) scores of pairs shuffled by a derangement.
    """
    joint, marginal = at_least_float32(joint_scores), at_least_float32(marginal_scores)
    return joint.mean() - (torch.logsumexp(marginal, dim=0) - math.log(marginal.numel()))


def derangement(count: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """A permutation of 0..count-1 without fixed point (a random cyclic order), so that no true pair leaks into the
    marginal."""
    if count < 2:
        raise ValueError("the mutual information needs at least 2 images in a batch")
    order = torch.randperm(count, generator=generator)
    shuffled = torch.empty_like(order)
    shuffled[order] = order.roll(1)
    return shuffled


class StatisticsNetwork(nn.Module):
    """T_θ of Eq. 5 (the paper's "static" network is MINE's *statistics* network): image pairs -> scores.

    (B, 3, h, w) and (B, 3, h, w) in [-1, 1] -> (B,). The paper gives no layers. Faces differ within a pair and only
    their style is common, so each image is described by the mean and spread over positions of a few shared
    convolutions; then MINE's three dense layers of 100 with ELU score the two descriptions and their difference.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            nn.ELU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
            nn.ELU(),
        )
        self.score = nn.Sequential(
            nn.Linear(6 * channels, 100), nn.ELU(), nn.Linear(100, 100), nn.ELU(), nn.Linear(100, 1)
        )

    def forward(self, real_lr: torch.Tensor, generated_lr: torch.Tensor) -> torch.Tensor:
        a, b = self._describe(real_lr), self._describe(generated_lr)
        return self.score(torch.cat([a, b, (a - b).square()], dim=1)).squeeze(1)

    def _describe(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, h, w) -> (B, 2·channels)."""
        variance, mean = torch.var_mean(at_least_float32(self.layers(images)), dim=(2, 3), correction=0)
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=1)
