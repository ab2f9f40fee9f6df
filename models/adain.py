"""Adaptive instance normalisation: Huang & Belongie (arXiv 1703.06868), used after each residual block of G (§ 3.1)."""

import torch

from models.precision import at_least_float32

EPSILON = 1e-5  # inside the square root, as in the authors' code


def adaptive_instance_norm(content: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """scale · (content − μ) / σ + bias, with μ and σ over the positions of each image and channel.

    Args:
        content: (B, C, H, W).
        scale, bias: (B, C), from the style code.
    """
    if scale.shape != content.shape[:2] or bias.shape != content.shape[:2]:
        raise ValueError(f"scale {tuple(scale.shape)} and bias {tuple(bias.shape)} must be {tuple(content.shape[:2])}")
    x = at_least_float32(content)  # the variance of a nearly flat map underflows in half precision
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    normalised = (x - mean) * torch.rsqrt(variance + EPSILON)
    return (scale[:, :, None, None] * normalised + bias[:, :, None, None]).to(content.dtype)
