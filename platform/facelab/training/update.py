"""One update of some networks: forward, backward, and a step of their optimisers if it is finite everywhere."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from facelab.training.config import ComputeConfig
from facelab.training.context import Context
from facelab.training.optimiser import clip_gradients


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was inf or nan; the update was not made."""


class Losses(NamedTuple):
    """What an objective returns."""

    total: torch.Tensor
    """What is minimised."""
    terms: dict[str, torch.Tensor]
    """Scalars to log beside it."""
    generated: torch.Tensor | None = None
    """Images (B, 3, H, W) for a discriminator to judge."""


@dataclass
class Update:
    """Forward under autocast; backward and an update that only happens if it is finite on every worker."""

    context: Context
    compute: ComputeConfig
    clip: float = 0.0
    """θ of models.recipe.Optimiser."""
    step: int = 0
    progress: float = 0.0
    """Of the whole run, 0 to 1."""

    def forward(self, objective: nn.Module, *inputs: torch.Tensor | bool | None) -> Losses:
        bf16 = self.compute.precision == "bf16"
        with torch.autocast(self.context.device.type, torch.bfloat16) if bf16 else nullcontext():
            return Losses(*objective(*inputs))

    def apply(self, losses: Losses, *optimisers: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """Backward of the total and a step of each optimiser; returns the scalars to log.

        Raises:
            NonFiniteLoss: before any weight is changed, on every worker alike.
        """
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        gradients = [p.grad for o in optimisers for g in o.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        values = {name: value.detach() for name, value in ({"loss": losses.total} | losses.terms).items()}
        finite = (torch.isfinite(values["loss"]) & torch.isfinite(norm)).float()
        if float(self.context.mean(finite)) < 1:
            shown = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            raise NonFiniteLoss(
                f"non-finite loss or gradient at step {self.step} ({shown}; gradient norm {float(norm):.4g}): the "
                "update was not made; the last checkpoint is whole: lower --learning-rate and --resume"
            )
        for optimiser in optimisers:
            if self.clip:
                clip_gradients(optimiser, self.clip)
            optimiser.step()
        return values | {"gradient_norm": norm.detach()}
