"""The numbers of a training on their way to a logger."""

import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from facelab.training.context import Context
from facelab.training.stage import WATCH
from facelab.training.usage import Usage


class Logger(Protocol):
    """Where numbers and pictures go; tracking/spool.py has the one that MLflow hears of."""

    def begin(self, step: int, total: int) -> None:
        """The training goes on after this step, to `total`: what was told of later ones will come again."""
        ...

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def image(self, name: str, picture: np.ndarray) -> None: ...

    def flush(self) -> None:
        """Write what was told; if that fails, the next flush writes it.

        Raises:
            StoreError: it fails.
        """
        ...


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
    """Scalars of the steps since the last checkpoint, and what was measured there. They are told with the checkpoint:
    numbers of steps that a crash would repeat must not stand twice."""

    def __init__(self, context: Context, batch_size: int):
        self.context, self.batch_size = context, batch_size
        self.pending: list[_Rows] = []
        self._measured: list[tuple[int, dict[str, float]]] = []
        self._pictures: list[tuple[str, np.ndarray]] = []
        self._usage = Usage(context.device)
        self._clock = self._began = time.perf_counter()
        self._waited = 0.0
        self._seconds: list[float] = []
        self.step = 0

    def add(self, step: int, terms: dict[str, torch.Tensor]) -> None:
        """The scalars of the step after the last one, which has just been made."""
        names = tuple(terms)  # a phase has its own
        if not (self.pending and self.pending[-1].fits(names)):
            self.pending.append(_Rows(step, names, self.context.device))
        self.pending[-1].add(terms)
        now = time.perf_counter()
        self._seconds.append(now - self._clock)
        self._clock, self.step = now, step

    def judged(self, step: int, values: dict[str, float], name: str, picture: np.ndarray) -> None:
        """What a validation gave."""
        shown = {name if name.startswith(WATCH) else f"val/{name}": value for name, value in values.items()}
        self._measured.append((step, shown))
        self._pictures.append((name, picture))
        self._clock = time.perf_counter()  # no part of a step
        self.step = step

    @property
    def loss(self) -> float:
        """Of the last step."""
        rows = self.pending[-1]
        return float(rows.values[rows.count - 1, rows.names.index("loss")])

    def take(self, segment: int, skipped: float, waited: float) -> Callable[[Logger], None]:
        """All since the last time, averaged over the workers, as a function that tells a logger; every worker takes it.

        Args:
            waited: seconds that this worker's steps waited for images, since it began.
        """
        usage = self._usage.now()
        total = max(sum(self._seconds), 1e-9)
        speed = {"data_wait_share": (waited - self._waited) / total} | usage
        means = self.context.mean(torch.tensor(list(speed.values()), device=self.context.device)).tolist()
        rows = [(r.first, r.names, self.context.mean(r.values[: r.count]).cpu()) for r in self.pending]
        told = {"segment": float(segment), "skipped_updates": skipped, "world_size": float(self.context.world_size)}
        told |= {f"system/{name}": value for name, value in zip(speed, means, strict=True)}
        if self._seconds:
            now = time.perf_counter()
            told["images_per_second"] = len(self._seconds) * self.batch_size / (now - self._began)
            for share in (50, 95):
                told[f"system/step_seconds_p{share}"] = float(np.percentile(self._seconds, share))
        measured, pictures = [*self._measured, (self.step, told)], self._pictures
        self.pending, self._measured, self._pictures, self._seconds = [], [], [], []
        self._waited, self._began = waited, time.perf_counter()
        done = False

        def tell(logger: Logger) -> None:
            nonlocal done
            if not done:  # a flush that failed is tried again
                for first, names, values in rows:
                    for at, row in enumerate(values.tolist(), first):
                        logger.metrics(at, {f"train/{name}": value for name, value in zip(names, row, strict=True)})
                for step, values in measured:
                    logger.metrics(step, values)
                for name, picture in pictures:
                    logger.image(name, picture)
                done = True
            logger.flush()

        return tell
