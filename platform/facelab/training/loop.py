"""The one training loop: fetch, step, validate, save. It knows neither Ray nor MLflow nor what it trains."""

import math
import time
from contextlib import closing, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from facelab.errors import UsageError
from facelab.seeding import seed_for
from facelab.trained import checkpoint
from facelab.trained.store import describe
from facelab.training.config import ComputeConfig, TrainConfig
from facelab.training.context import Context
from facelab.training.optimiser import clip_gradients, set_learning_rate


class Logger(Protocol):
    """Where numbers and pictures go; tracking.py has the MLflow one."""

    def metrics(self, step: int, values: dict[str, float]) -> None: ...
    def image(self, name: str, picture: np.ndarray) -> None: ...
    def flush(self) -> None: ...


class NonFiniteLoss(RuntimeError):
    """A loss or gradient was inf or nan; the update was not made."""


class Stage(Protocol):
    """What is trained: its networks, one step, how it is judged and shown."""

    networks: nn.ModuleDict
    """All that learns; "main" is what is taken away."""
    optimisers: dict[str, torch.optim.Optimizer]
    steps_per_epoch: int
    selection: tuple[str, str]
    """Validation metric, and which epoch's weights are kept: those of its "min" or "max", or the "last"."""

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        """Wrap what is called in training for device and workers."""
        ...

    def step(self, step: int, update: "Update") -> dict[str, torch.Tensor]:
        """One update on the batch of this step; returns scalars to log."""
        ...

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Numbers on held-out images."""
        ...

    def picture(self, network: nn.Module) -> np.ndarray:
        """A grid of samples, (H, W, 3) uint8."""
        ...


@dataclass
class Update:
    """Forward under autocast; backward and an update that only happens if it is finite on every worker."""

    context: Context
    compute: ComputeConfig
    clip: float = 0.0
    """θ of models.recipe.Optimiser."""
    step: int = 0
    progress: float = 0.0
    """Of the whole run, 0 to 1."""

    def forward(self, objective: nn.Module, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Call an objective, which returns its terms with "loss" as their sum."""
        bf16 = self.compute.precision == "bf16"
        with torch.autocast(self.context.device.type, torch.bfloat16) if bf16 else nullcontext():
            return objective(*inputs)

    def apply(self, terms: dict[str, torch.Tensor], *optimisers: torch.optim.Optimizer) -> None:
        """Backward of terms["loss"] and a step of each optimiser.

        Raises:
            NonFiniteLoss: before any weight is changed, on every worker alike.
        """
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        terms["loss"].backward()
        gradients = [p.grad for o in optimisers for g in o.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = (torch.isfinite(terms["loss"]) & torch.isfinite(norm)).float()
        if float(self.context.mean(finite.detach())) < 1:
            values = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in terms.items())
            raise NonFiniteLoss(
                f"non-finite loss or gradient at step {self.step} ({values}; gradient norm {float(norm):.4g}): the "
                "update was not made; the last checkpoint is whole: lower --learning-rate and --resume"
            )
        terms["gradient_norm"] = norm.detach()
        for optimiser in optimisers:
            if self.clip:
                clip_gradients(optimiser, self.clip)
            optimiser.step()


@dataclass(frozen=True)
class TrainResult:
    """What a finished training gives; `network` has the best averaged weights, on rank 0's CPU."""

    steps: int
    best: dict[str, float]
    """Validation metrics of the chosen weights, with "step"."""
    network: nn.Module


def total_steps(stage: Stage, config: TrainConfig) -> int:
    """Updates of a whole run."""
    limits = (config.epochs and config.epochs * stage.steps_per_epoch, config.max_steps)
    return min(limit for limit in limits if limit)


def train(stage: Stage, config: TrainConfig, context: Context, logger: Logger) -> TrainResult:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
        NonFiniteLoss: see Update.apply.
    """
    main = stage.networks["main"]
    stage.networks.to(context.device)
    average = AveragedModel(main, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    best_network, best = deepcopy(main).requires_grad_(False), dict[str, float]()
    step = segment = 0
    if (state := context.restore()) is not None:
        _load(state, stage, average, best_network)
        step, segment, best = state.step, state.segment + 1, dict(state.best)
    if config.compute.channels_last:
        stage.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage.prepare(context, config.compute)
    update = Update(context, config.compute, config.optimiser.clip)
    last = total_steps(stage, config)
    pending: list[tuple[int, dict[str, torch.Tensor]]] = []
    began = time.perf_counter()

    with closing(context.progress(last, step)) as progress:
        while step < last:
            # The same noise at a step whether or not the run was interrupted, and other noise on every rank.
            torch.manual_seed(seed_for(config.seed, "step", step, context.rank))
            update.step, update.progress = step, step / last
            set_learning_rate(stage.optimisers.values(), config.optimiser, update.progress)
            terms = stage.step(step, update)
            average.update_parameters(main) if config.ema_decay else average.module.load_state_dict(main.state_dict())
            step += 1
            pending.append((step, {name: value.detach() for name, value in terms.items()}))
            if context.rank == 0:
                progress.update(1)
            epoch_ends = step % stage.steps_per_epoch == 0 or step == last
            if not epoch_ends and step % config.checkpoint_every:
                continue

            values: dict[str, float] = {}
            if epoch_ends and context.rank == 0:
                epoch = math.ceil(step / stage.steps_per_epoch)
                values = stage.validate(average.module)
                if _better(values, best, stage.selection):
                    best = values | {"step": float(step)}
                    best_network.load_state_dict(average.module.state_dict())
                logger.image(f"samples/epoch-{epoch:04d}.png", stage.picture(average.module))
                shown = " ".join(f"{name} {value:.4g}" for name, value in values.items() if name == stage.selection[0])
                progress.set_description(f"epoch {epoch}: loss {float(pending[-1][1]['loss']):.4f} {shown}")

            def write(folder: Path, step: int = step, best: dict[str, float] = best) -> None:
                model = describe(config.kind, config.model, best_network, config.scale, config.hr_size)
                checkpoint.write(folder, _snapshot(stage, average, best_network, step, best, segment, model))

            context.save(write, step, values)
            # Only now: numbers of steps that a crash would repeat must not stand twice in the history.
            rate = len(pending) * config.batch_size / (time.perf_counter() - began)
            _log(pending, values | {"images_per_second": rate, "segment": float(segment)}, step, context, logger)
            pending, began = [], time.perf_counter()
    logger.flush()
    return TrainResult(step, best, best_network.cpu().eval())


def _better(values: dict[str, float], best: dict[str, float], selection: tuple[str, str]) -> bool:
    name, sense = selection
    if sense == "last" or not best or not math.isfinite(best[name]):
        return True
    return values[name] < best[name] if sense == "min" else values[name] > best[name]


def _log(pending: list, values: dict[str, float], step: int, context: Context, logger: Logger) -> None:
    for names, part in groupby(pending, key=lambda entry: tuple(entry[1])):  # a phase of training has its own terms
        rows = list(part)
        table = torch.stack([torch.stack([terms[name].float() for name in names]) for _, terms in rows])
        table = context.mean(table).cpu()
        for (at, _), row in zip(rows, table.tolist(), strict=True):
            logger.metrics(at, {f"train/{name}": value for name, value in zip(names, row, strict=True)})
    logger.metrics(step, {f"val/{k}" if k not in ("images_per_second", "segment") else k: v for k, v in values.items()})
    logger.flush()


def _parts(stage: Stage, average: AveragedModel, best_network: nn.Module) -> dict[str, nn.Module]:
    return {"networks": stage.networks, "average": average, "best": best_network}


def _snapshot(
    stage: Stage,
    average: AveragedModel,
    best_network: nn.Module,
    step: int,
    best: dict[str, float],
    segment: int,
    model: dict[str, Any],
) -> checkpoint.Checkpoint:
    networks = {
        f"{prefix}.{key}": value
        for prefix, part in _parts(stage, average, best_network).items()
        for key, value in part.state_dict().items()
    }
    optimisers = {name: optimiser.state_dict() for name, optimiser in stage.optimisers.items()}
    return checkpoint.Checkpoint(step, networks, optimisers, best, segment, model)


def _load(state: checkpoint.Checkpoint, stage: Stage, average: AveragedModel, best_network: nn.Module) -> None:
    for prefix, part in _parts(stage, average, best_network).items():
        own = {k.removeprefix(f"{prefix}."): v for k, v in state.networks.items() if k.startswith(f"{prefix}.")}
        try:
            part.load_state_dict(own)
        except RuntimeError as error:
            raise UsageError(
                "--resume: the checkpoint is of another network, or of another size of it: give the options it was "
                "started with, or another --output"
            ) from error
    for name, optimiser in stage.optimisers.items():
        groups, saved = optimiser.state_dict()["param_groups"], state.optimisers[name]
        if [group.keys() for group in groups] != [group.keys() for group in saved["param_groups"]]:
            raise UsageError("--resume: the checkpoint is of another optimiser: give the one it was started with")
        # Rates and decays are of this run: --resume may come with others.
        optimiser.load_state_dict({"state": saved["state"], "param_groups": groups})
