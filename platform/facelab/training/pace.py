"""When the workers look up from their steps, and decide together whether to save, and whether to end."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from facelab.training.config import TrainConfig
from facelab.training.context import Context

_LOOK_S = 5.0
"""Between two looks, about: each is an exchange that every worker, and a GPU, has to wait for."""


class Look(NamedTuple):
    """What all workers have agreed on."""

    save: bool
    """A checkpoint is due, or somebody may soon be gone."""
    end: bool
    """Somebody was told to end."""


class Pace:
    """Clocks and notices differ between workers: rank 0's clock counts, and anybody's notice."""

    def __init__(self, context: Context, config: TrainConfig, step: int, note: Callable[[str], None]):
        self.context, self.config, self.note = context, config, note
        self._looked, self._at, self._next = time.monotonic(), step, step + 1
        self._saved = self._looked
        self._notice = ""

    def is_due(self, step: int) -> bool:
        """Whether to look after this step; alike on every worker."""
        return step >= self._next

    def look(self, step: int) -> Look:
        now, rank = time.monotonic(), self.context.rank
        ahead = min(max(_LOOK_S * (step - self._at) / max(now - self._looked, 1e-9), 1), 1000)
        notice = self.context.notice()
        if notice and notice != self._notice and not rank:
            self.note(f"{notice}: checkpoint now")
        mine = [
            not rank and now - self._saved >= 60 * self.config.checkpoint_minutes,
            notice not in ("", self._notice),
            self.context.ends,
            0 if rank else math.floor(ahead),
        ]
        agreed = self.context.highest(torch.tensor(mine, dtype=torch.float32, device=self.context.device)).tolist()
        self._notice, self._looked, self._at, self._next = notice, now, step, step + int(agreed[3])
        return Look(save=any(agreed[:3]), end=bool(agreed[2]))

    def saved(self) -> None:
        """A checkpoint is on its way."""
        self._saved = time.monotonic()
