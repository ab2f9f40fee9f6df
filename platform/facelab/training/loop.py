"""The one training loop: restore, step, average, validate, save, report. It knows neither Ray nor MLflow nor what it
trains."""

import math
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn

from facelab.seeding import seed_for
from facelab.training.config import TrainConfig
from facelab.training.context import Context
from facelab.training.history import History, Logger
from facelab.training.optimiser import set_learning_rate
from facelab.training.stage import Stage
from facelab.training.state import TrainingState
from facelab.training.update import Update


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
    stage.networks.to(context.device)
    state = TrainingState(stage, config)
    if (saved := context.restore()) is not None:
        state.restore(saved)
    if config.compute.channels_last:
        stage.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage.prepare(context, config.compute)
    update = Update(context, config.compute, config.optimiser.clip)
    history = History(context, logger, config.batch_size)
    last = total_steps(stage, config)

    with closing(context.progress(last, state.step)) as progress:
        while state.step < last:
            # The same noise at a step whether or not the run was interrupted, and other noise on every rank.
            torch.manual_seed(seed_for(config.seed, "step", state.step, context.rank))
            update.step, update.progress = state.step, state.step / last
            set_learning_rate(stage.optimisers.values(), config.optimiser, update.progress)
            terms = stage.step(state.step, update)
            state.advance()
            history.add(state.step, terms)
            if context.rank == 0:
                progress.update(1)
            epoch_ends = state.step % stage.steps_per_epoch == 0 or state.step == last
            if not epoch_ends and state.step % config.checkpoint_every:
                continue

            values: dict[str, float] = {}
            if epoch_ends and context.rank == 0:
                epoch = math.ceil(state.step / stage.steps_per_epoch)
                values = stage.validate(state.average.module)
                state.keep_best(values)
                logger.image(f"samples/epoch-{epoch:04d}.png", stage.picture(state.average.module))
                name = stage.selection[0]
                progress.set_description(f"epoch {epoch}: loss {history.loss:.4f} {name} {values[name]:.4g}")
            context.save(state.write, state.step, values)
            history.tell(state.step, values, state.segment)
    logger.flush()
    return TrainResult(state.step, state.best, state.best_network.cpu().eval())
