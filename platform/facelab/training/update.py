"""One update of some networks: forward, backward, and a step of their optimisers if all gradients are finite."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from facelab.training.config import ComputeConfig
from facelab.training.context import Context
from facelab.training.optimiser import clip_gradients, fill_momentum

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_WINDOW = 500
"""Updates that are judged together, at least, before others are."""
_FIRST_SCALE = 2.0**12
"""Of fp16's losses; torch's own 2**16 loses the first updates."""


class NonFiniteLoss(RuntimeError):
    """Too many updates were inf or nan, and not made."""


class Losses(NamedTuple):
    """What an objective returns."""

    total: torch.Tensor
    """What is minimised."""
    terms: dict[str, torch.Tensor]
    """Scalars to log beside it."""
    generated: torch.Tensor | None = None
    """Images (B, 3, H, W) for a discriminator to judge."""


class Update:
    """Forward under autocast, backward, and an update that only happens if its gradient is finite.

    That is decided on the device: a step waits for no answer from a GPU. Gradients are averaged before, so every worker
    decides alike.
    """

    def __init__(
        self,
        context: Context,
        compute: ComputeConfig,
        networks: nn.Module,
        optimisers: dict[str, torch.optim.Optimizer],
        clip: float = 0.0,
    ):
        """
        Args:
            networks: all that is trained; what batch norm measures in a forward pass of an update that is not made is
                put back.
            clip: θ of models.recipe.Optimiser.
        """
        self.context, self.compute, self.optimisers, self.clip = context, compute, optimisers, clip
        self.progress = 0.0
        """Of the whole run, 0 to 1."""
        self.scaler = torch.amp.GradScaler(
            context.device.type, init_scale=_FIRST_SCALE, enabled=compute.precision == "fp16"
        )
        self.made = 0
        """Updates begun, by this process."""
        self.skipped = torch.zeros((), device=context.device)
        """How many of them were not finite."""
        self._since = 0, 0.0
        for optimiser in optimisers.values():
            fill_momentum(optimiser)
        self._measured = [each for each in networks.buffers() if each.is_floating_point()]

    def minimise(
        self, objective: nn.Module, *inputs: torch.Tensor | bool | None, by: Iterable[str]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """One update of the optimisers of these names; a skipped one leaves all as it was.

        Args:
            inputs: of the objective; tensors (B, …) are cut into compute.accumulate parts.

        Returns:
            The scalars to log, and what the objective generated, (B, 3, H, W).
        """
        before = [each.clone() for each in self._measured]
        optimisers = [self.optimisers[name] for name in by]
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        values, generated = self._accumulate(objective, inputs)
        for optimiser in optimisers:
            self.scaler.unscale_(optimiser)
        gradients = [p.grad for o in optimisers for g in o.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        bad = (~torch.isfinite(norm)).float()
        for optimiser in optimisers:
            if self.clip:
                clip_gradients(optimiser, self.clip)
            optimiser.found_inf = bad  # what a fused optimiser obeys  # pyrefly: ignore
            optimiser.step()
        if self.scaler.is_enabled():
            self.scaler.update()
        for now, old in zip(self._measured, before, strict=True):
            now.copy_(torch.where(bad > 0, old, now))
        self.made += 1
        self.skipped += bad
        return values | {"gradient_norm": norm.detach()}, generated

    def _accumulate(
        self, objective: nn.Module, inputs: tuple[torch.Tensor | bool | None, ...]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """Backward part by part; workers exchange gradients after the last."""
        count, low = self.compute.accumulate, _AUTOCAST.get(self.compute.precision)
        parts = list(
            zip(*(x.chunk(count) if isinstance(x, torch.Tensor) else [x] * count for x in inputs), strict=True)
        )
        found: list[Losses] = []
        for number, part in enumerate(parts, 1):
            alone = number < count and isinstance(objective, DistributedDataParallel)
            with objective.no_sync() if alone else nullcontext():  # pyrefly: ignore
                with torch.autocast(self.context.device.type, low) if low else nullcontext():
                    losses = Losses(*objective(*part))
                self.scaler.scale(losses.total / count).backward()
            found.append(losses)
        terms = [{"loss": losses.total.detach()} | {k: v.detach() for k, v in losses.terms.items()} for losses in found]
        means = {name: sum(each[name] for each in terms) / count for name in terms[0]}
        images = [losses.generated.detach() for losses in found if losses.generated is not None]
        return means, torch.cat(images) if images else None  # pyrefly: ignore

    def require_finite(self, share: float, last: bool = False) -> None:
        """
        Args:
            share: of the last some hundred updates, so many may have been skipped; and five in any case.
            last: no more will come: of less than ten, half.

        Raises:
            NonFiniteLoss: more were. Every worker raises it alike.
        """
        total = float(self.skipped)
        made, skipped = self.made - self._since[0], total - self._since[1]
        if skipped > max(share * made, min(5, made // 2) if last else 5):
            raise NonFiniteLoss(
                f"{skipped:.0f} of the last {made} updates had a gradient that is inf or nan, and were not made; the "
                "last checkpoint is whole: go on with --resume and a lower --learning-rate, with --compute.precision "
                "fp32, or with --redraw 1 if chance may have been to blame"
            )
        if made >= _WINDOW:
            self._since = self.made, total
