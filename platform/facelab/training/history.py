"""The numbers of a training on their way to a logger."""

import time
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


class _Rows:
    """Scalars of consecutive steps, in one tensor. As tensors of their own they would lie between the batches in the
    heap, which then grows by a batch a step until they are told."""

    _MOST = 256

    def __init__(self, first: int, names: tuple[str, ...], device: torch.device):
        self.first, self.names, self.count = first, names, 0
        self.values = torch.empty(self._MOST, len(names), device=device)

    def fits(self, names: tuple[str, ...]) -> bool:
        """Whether a further step with these scalars fits."""
        return names == self.names and self.count < self._MOST

    def add(self, terms: dict[str, torch.Tensor]) -> None:
        torch.stack([value.float() for value in terms.values()], out=self.values[self.count])
        self.count += 1


class History:
    """Scalars of the steps since the last checkpoint. They are told only once that is made: numbers of steps that a
    crash would repeat must not stand twice."""

    def __init__(self, context: Context, logger: Logger, batch_size: int):
        self.context, self.logger, self.batch_size = context, logger, batch_size
        self.pending: list[_Rows] = []
        self.began = time.perf_counter()

    def add(self, step: int, terms: dict[str, torch.Tensor]) -> None:
        """The scalars of the step after the last one."""
        names = tuple(terms)  # a phase has its own
        if not (self.pending and self.pending[-1].fits(names)):
            self.pending.append(_Rows(step, names, self.context.device))
        self.pending[-1].add(terms)

    @property
    def loss(self) -> float:
        """Of the last step."""
        rows = self.pending[-1]
        return float(rows.values[rows.count - 1, rows.names.index("loss")])

    def tell(self, step: int, validation: dict[str, float], segment: int) -> None:
        """Log every step's terms, averaged over the workers, and what was measured at this one."""
        steps = sum(rows.count for rows in self.pending)
        rate = steps * self.batch_size / (time.perf_counter() - self.began)
        for rows in self.pending:
            means = self.context.mean(rows.values[: rows.count]).cpu().tolist()
            for at, row in enumerate(means, rows.first):
                self.logger.metrics(at, {f"train/{name}": value for name, value in zip(rows.names, row, strict=True)})
        values = {name if name.startswith(WATCH) else f"val/{name}": value for name, value in validation.items()}
        self.logger.metrics(step, values | {"images_per_second": rate, "segment": float(segment)})
        self.logger.flush()
        self.pending, self.began = [], time.perf_counter()
