"""What turns sharp faces into low-resolution ones. A pair depends on its sharp face, its variant, and on what its
degrader holds; on nothing else."""

import torch

from facelab.synthesis.styles import Style
from models.resize import resize

Degraded = tuple[torch.Tensor, list[Style]]
"""LR (B, 3, h, w) uint8, and for each the style that it has."""


class Degrader:
    """One that needs no weights and looks at no real face; a subclass may."""

    name: str
    """In every pair's provenance; of a trained one with its weight hash."""
    style_mode = "none"
    """random, nearest, interpolated, prior or none."""
    style_bank = ""
    """Hash of the faces that styles are taken from."""

    def __init__(self, scale: int, seed: int):
        self.scale, self.seed = scale, seed

    def to(self, device: torch.device) -> "Degrader":
        return self

    def degrade(self, hr: torch.Tensor, digests: list[str], variant: int) -> Degraded:
        """One variant of each face (B, 3, H, W) uint8.

        Each image's style and noise are keyed by (seed, its digest, variant): neither batch nor worker matters.
        """
        raise NotImplementedError


class Bicubic(Degrader):
    """The one resize."""

    name = "bicubic"

    def degrade(self, hr: torch.Tensor, digests: list[str], variant: int) -> Degraded:
        return resize(hr, hr.shape[-1] // self.scale), [[] for _ in digests]
