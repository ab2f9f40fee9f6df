"""What the training loop knows of the world, with and without Ray: rank, device, the other workers, progress."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from facelab.errors import Agreed, StoreError, UsageError


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
        """Move to the device and, among several workers, average gradients in backward and norm over all of a batch."""
        ...

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the workers."""
        ...

    def highest(self, values: torch.Tensor) -> torch.Tensor:
        """The largest over the workers, element by element."""
        ...

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        """(n,) of this worker -> those of all, (workers · n,); differentiable: see collectives.joined."""
        ...

    def gather(self, text: str) -> list[str]:
        """What each worker gives, by rank; waits for the slowest, however long it takes."""
        ...

    def notice(self) -> str:
        """What is known of machines that will soon be taken away; empty: nothing. All workers ask at the same steps."""
        ...

    @property
    def ends(self) -> bool:
        """Whether this process was told to end."""
        ...

    @property
    def is_searched(self) -> bool:
        """Whether somebody searches among many trainings, and may end this one when it reports."""
        ...

    @property
    def report(self) -> Callable[[dict[str, float]], None]:
        """Tells who searches among many trainings; every worker does at the same steps, with what rank 0 measured."""
        ...

    def progress(self, total: int, initial: int) -> Progress: ...


class LocalContext:
    """One worker in this very process."""

    rank = 0
    world_size = 1
    ends = False
    device: torch.device

    def __init__(
        self,
        show_progress: bool = True,
        gpu: bool | None = None,
        report: Callable[[dict[str, float]], None] | None = None,
    ):
        """
        Args:
            gpu: None: if there is one.
            report: see Context.report; None: nobody searches.

        Raises:
            UsageError: there is none.
        """
        if gpu and not torch.cuda.is_available():
            raise UsageError("--compute.gpu: no GPU that torch can use here: leave it out, or give --compute.no-gpu")
        self.device = torch.device("cuda" if gpu is not False and torch.cuda.is_available() else "cpu")
        self.show_progress, self.is_searched = show_progress, report is not None
        self.report = report or (lambda values: None)

    @contextmanager
    def told_to_end(self) -> Iterator[None]:
        """In this block, SIGTERM (of a pod that is evicted, of a machine that is taken away) is not obeyed at once: the
        loop first saves what it has. A second one is."""
        if threading.current_thread() is not threading.main_thread():  # which alone hears signals
            yield
            return

        def told(*_: object) -> None:
            self.ends = True
            signal.signal(signal.SIGTERM, before)

        before = signal.signal(signal.SIGTERM, told)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def prepare(self, objective: nn.Module) -> nn.Module:
        return objective.to(self.device)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def highest(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gather(self, text: str) -> list[str]:
        return [text]

    def notice(self) -> str:
        return ""

    def progress(self, total: int, initial: int) -> Progress:
        return tqdm(total=total, initial=initial, unit="step", disable=not self.show_progress, dynamic_ncols=True)


T = TypeVar("T")


def together(context: Context, act: Callable[[], T]) -> T:
    """What `act` gives on this worker, once it has gone well on all.

    Raises:
        Agreed: on every worker alike, also where it is the trouble of one alone, such as a folder that its node
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
        raise Agreed("; ".join(problems))
    return result  # pyrefly: ignore  (it went well)
