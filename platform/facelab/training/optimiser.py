"""Optimisers from a recipe; their learning rate is a pure function of progress, with nothing to save or resume."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from models.recipe import Optimiser


def build_optimiser(
    recipe: Optimiser, parameters: Iterable[nn.Parameter] | list[dict[str, Any]], learning_rate: float
) -> torch.optim.Optimizer:
    """Adam or SGD; groups with an `lr` of their own keep it. Fused, as those can skip an update whose gradient is not
    finite without asking the host."""
    optimiser: torch.optim.Optimizer
    if recipe.name == "adam":
        betas, decay = (recipe.beta1, recipe.beta2), recipe.weight_decay
        optimiser = torch.optim.Adam(parameters, learning_rate, betas, weight_decay=decay, fused=True)
    else:
        momentum, decay = recipe.momentum, recipe.weight_decay
        optimiser = torch.optim.SGD(parameters, learning_rate, momentum, weight_decay=decay, fused=True)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def fill_momentum(optimiser: torch.optim.Optimizer) -> None:
    """Of SGD before its first update: should that be skipped, torch would go on with whatever the memory held."""
    if isinstance(optimiser, torch.optim.SGD):
        for group in optimiser.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                optimiser.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def set_learning_rate(optimisers: Iterable[torch.optim.Optimizer], recipe: Optimiser, progress: float) -> None:
    """Of every group, for the update that begins at `progress`, a fraction of the run."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group["initial_lr"] * recipe.factor(progress)


def clip_gradients(optimiser: torch.optim.Optimizer, theta: float) -> None:
    """To ±θ / learning rate, element by element (VDSR § 3.2): the lower the rate, the freer the gradient."""
    for group in optimiser.param_groups:
        nn.utils.clip_grad_value_(group["params"], theta / group["lr"])
