"""What the training loop knows of the world, with and without Ray: rank, device, checkpoints, progress."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import nn
from tqdm import tqdm

from facelab import storage
from facelab.errors import StoreError, UsageError
from facelab.trained import checkpoint


class Progress(Protocol):
    """The part of tqdm that is used; Ray's tqdm_ray has it too."""

    def update(self, n: int = 1, /) -> object: ...
    def set_description(self, desc: str, /) -> object: ...
    def close(self) -> None: ...


class Context(Protocol):
    """One worker's view of a training run."""

    rank: int
    world_size: int

    @property
    def device(self) -> torch.device: ...

    def prepare(self, objective: nn.Module) -> nn.Module:
        """Move to the device and, among several workers, average gradients in backward."""
        ...

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the workers."""
        ...

    def gather(self, text: str) -> list[str]:
        """What each worker gives, by rank; waits for the slowest, however long it takes."""
        ...

    def restore(self) -> checkpoint.Checkpoint | None:
        """The newest checkpoint, None at a fresh start."""
        ...

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> None:
        """Commit a checkpoint: `write` fills a folder on rank 0. Every worker calls this at the same steps."""
        ...

    def progress(self, total: int, initial: int) -> Progress: ...


class LocalContext:
    """One worker in this very process; checkpoints go to OUTPUT/checkpoints/step-N, folder or S3."""

    rank = 0
    world_size = 1
    device: torch.device

    def __init__(self, output: str, keep: int = 2, show_progress: bool = True, gpu: bool | None = None):
        """
        Args:
            gpu: None: if there is one.

        Raises:
            UsageError: there is none.
        """
        if gpu and not torch.cuda.is_available():
            raise UsageError("--compute.gpu: no GPU that torch can use here: leave it out, or give --compute.no-gpu")
        self.device = torch.device("cuda" if gpu is not False and torch.cuda.is_available() else "cpu")
        self.place = storage.join(output, "checkpoints")
        self.keep = keep
        self.show_progress = show_progress

    def prepare(self, objective: nn.Module) -> nn.Module:
        return objective.to(self.device)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def gather(self, text: str) -> list[str]:
        return [text]

    def restore(self) -> checkpoint.Checkpoint | None:
        return checkpoint.newest(self.place)

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> None:
        with staging_folder() as folder:
            write(folder)
            checkpoint.publish(folder, storage.join(self.place, f"step-{step:09d}"))
        checkpoint.prune(self.place, self.keep)

    def progress(self, total: int, initial: int) -> Progress:
        return tqdm(total=total, initial=initial, unit="step", disable=not self.show_progress, dynamic_ncols=True)


def gather_from_workers(text: str, group: Any = None) -> list[str]:
    """Each worker's text, by rank, in a process group."""
    found = [""] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(found, text, group)
    return found


T = TypeVar("T")


def together(context: Context, act: Callable[[], T]) -> T:
    """What `act` gives on this worker, once it has gone well on all.

    Raises:
        UsageError: on every worker alike, also where it is the trouble of one alone, such as a folder that its node
            does not see: those that had gone on would wait for it in their next exchange.
        StoreError: on the one that met it. It may pass, so this worker is restarted, and the others with it.
    """
    result, problem = None, ""
    try:
        result = act()
    except StoreError:
        raise
    except UsageError as error:
        problem = str(error)
    if problems := dict.fromkeys(filter(None, context.gather(problem))):
        raise UsageError("; ".join(problems))
    return result  # pyrefly: ignore  (it went well)


def mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The mean of each worker's tensor, in torch's process group; what every worker gets."""
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()


@contextmanager
def staging_folder() -> Iterator[Path]:
    """Where a checkpoint is put together before it is published."""
    with tempfile.TemporaryDirectory(prefix="facelab-checkpoint-") as folder:
        yield Path(folder)
