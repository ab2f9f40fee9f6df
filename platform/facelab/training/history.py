"""The numbers of a training on their way to a logger."""

import time
from itertools import groupby
from typing import Protocol

import numpy as np
import torch

from facelab.training.context import Context
from facelab.training.stage import WATCH


class Logger(Protocol):
    """Where numbers and pictures go; tracking/logger.py has the MLflow one."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def image(self, name: str, picture: np.ndarray) -> None: ...
    def flush(self) -> None: ...


class History:
    """Scalars of the steps since the last checkpoint. They are told only once that is made: numbers of steps that a
    crash would repeat must not stand twice."""

    def __init__(self, context: Context, logger: Logger, batch_size: int):
        self.context, self.logger, self.batch_size = context, logger, batch_size
        self.pending: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.began = time.perf_counter()

    def add(self, step: int, terms: dict[str, torch.Tensor]) -> None:
        self.pending.append((step, terms))

    @property
    def loss(self) -> float:
        """Of the last step."""
        return float(self.pending[-1][1]["loss"])

    def tell(self, step: int, validation: dict[str, float], segment: int) -> None:
        """Log every step's terms, averaged over the workers, and what was measured at this one."""
        rate = len(self.pending) * self.batch_size / (time.perf_counter() - self.began)
        for names, part in groupby(self.pending, key=lambda entry: tuple(entry[1])):  # a phase has its own terms
            rows = list(part)
            table = torch.stack([torch.stack([terms[name].float() for name in names]) for _, terms in rows])
            for (at, _), row in zip(rows, self.context.mean(table).cpu().tolist(), strict=True):
                self.logger.metrics(at, {f"train/{name}": value for name, value in zip(names, row, strict=True)})
        values = {name if name.startswith(WATCH) else f"val/{name}": value for name, value in validation.items()}
        self.logger.metrics(step, values | {"images_per_second": rate, "segment": float(segment)})
        self.logger.flush()
        self.pending, self.began = [], time.perf_counter()
