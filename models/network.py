"""What every method's file declares, so that one loop trains them all and one builder builds them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from models.recipe import Recipe


class Network(nn.Module):
    """A trained part of a method: `options` are the fields of its Config.

    Raises:
        ValueError: a scale that the method does not have, or an option's value.
        TypeError: an option that the method does not have.
    """

    Config: ClassVar[type]
    """Dataclass of its sizes and switches."""
    scales: ClassVar[tuple[int, ...]]
    """Factors that the method can be built for."""
    paper_recipe: ClassVar[Recipe]
    """How its authors trained it."""
    mini_recipe: ClassVar[Recipe]
    """Ours: minutes on two cores, for the reduced sizes."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Preset -> dotted options of the training job that it sets beside the recipe: the reduced sizes, first of all."""
    has_discriminator: ClassVar[bool] = False
    """Whether it can be trained adversarially."""
    scale: int
    config: Any

    def __init__(self, scale: int = 4, **options):
        super().__init__()
        if scale not in self.scales:
            choices = ", ".join(map(str, self.scales))
            raise ValueError(f"{type(self).__name__} has no scale {scale}, only {choices}")
        self.scale, self.config = scale, self.Config(**options)

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """What an optimiser takes; a method whose layers learn at different rates says so here."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    def diagnostics(self) -> dict[str, float]:
        """Numbers of the network itself that are worth a curve beside those of its images."""
        return {}

    def discriminator(self, size: int) -> nn.Module:
        """What tells real images of `size` px from this network's, (B, 3, size, size) -> (B,) logits.

        Raises:
            ValueError: a size that its layers cannot take.
        """
        raise NotImplementedError


class SRNetwork(Network):
    """(B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1]."""

    on_luma: ClassVar[bool] = False
    """Whether only Y is sharpened, so that a loss of colour would mean nothing."""


class DegraderNetwork(Network):
    """Turns sharp faces into low-resolution ones."""

    uses_style: ClassVar[bool]
    """Whether it looks at a real LR image."""

    def noise_dim(self, hr_size: int) -> int:
        """Width of the noise that makes one sharp face of `hr_size` px many."""
        raise NotImplementedError

    def degrade(self, hr: torch.Tensor, noise: torch.Tensor, style: torch.Tensor | None = None) -> torch.Tensor:
        """One LR image for each sharp face.

        Args:
            hr: (B, 3, H, W) in [-1, 1].
            noise: (B, noise_dim(W)) from N(0, I).
            style: real LR faces (B, 3, H/scale, W/scale) in [-1, 1], where uses_style; None: in a style of the prior.

        Returns:
            (B, 3, H/scale, W/scale) in [-1, 1].
        """
        raise NotImplementedError
