"""What the loop trains: a protocol that both stages of the paper fulfil."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from facelab.training.config import ComputeConfig
from facelab.training.context import Context
from facelab.training.update import Update

WATCH = "watch/"
"""What the numbers of validate begin with that are logged under their own name, not as val/…, and choose nothing."""


class Stage(Protocol):
    """Networks, one step, and how they are judged and shown."""

    networks: nn.ModuleDict
    """All that learns; "main" is what is taken away."""
    optimisers: dict[str, torch.optim.Optimizer]
    steps_per_epoch: int
    selection: tuple[str, str]
    """Validation metric, and which epoch's weights are kept: those of its "min" or "max", or the "last"."""
    phase: str
    """The part of the training that it is in, where it has several; saved and restored with the weights."""
    images: dict[str, str]
    """What decides which images a step sees, beside seed and step: their hashes, and how they are read. A resumed run
    has the same."""
    facts: dict[str, Any]
    """Of its data and its constants, for the summary."""

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        """Wrap what is called in training for device and workers."""
        ...

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        """One update on the batch of this step; returns scalars to log."""
        ...

    @property
    def waited(self) -> float:
        """Seconds that steps waited for their images so far."""
        ...

    def close(self) -> None:
        """Give up what is needed for steps alone: there will be no more."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Numbers on held-out images, `selection` among them; on watched ones, see WATCH."""
        ...

    def picture(self, network: nn.Module) -> np.ndarray:
        """A grid of samples, (H, W, 3) uint8."""
        ...
