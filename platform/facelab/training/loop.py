"""The one training loop: restore, step, average, validate, save, report. It knows neither Ray nor MLflow nor what it
trains."""

import math
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import nn

from facelab.errors import UsageError
from facelab.seeding import seed_for
from facelab.training.config import TrainConfig
from facelab.training.context import Context, together
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
        UsageError: see together; or the workers do not find the same checkpoints.
    """
    stage.networks.to(context.device)
    state = TrainingState(stage, config)
    saved = together(context, context.restore)
    if saved is not None:
        state.restore(saved)
    if len(set(steps := context.gather(str(state.step)))) > 1:
        raise UsageError(
            f"{config.output}: its workers see checkpoints up to the steps {', '.join(steps)}: give an --output that "
            "all nodes share"
        )
    if config.compute.channels_last:
        stage.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage.prepare(context, config.compute)
    update = Update(context, config.compute, config.optimiser.clip)
    history = History(context, logger, config.batch_size)
    last = total_steps(stage, config)

    def judge() -> dict[str, float]:
        """Of the averaged weights, which are kept if they are the best; on rank 0 alone."""
        if context.rank:
            return {}
        values = stage.validate(state.average.module)
        state.keep_best(values)
        epoch = math.ceil(state.step / stage.steps_per_epoch)
        logger.image(f"samples/epoch-{epoch:04d}.png", stage.picture(state.average.module))
        return values

    if state.step >= last:  # stopped before it was judged, and now told to make do with that
        history.tell(state.step, judge(), state.segment)
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

            values = judge() if epoch_ends else {}
            if values:
                epoch, name = math.ceil(state.step / stage.steps_per_epoch), stage.selection[0]
                progress.set_description(f"epoch {epoch}: loss {history.loss:.4f} {name} {values[name]:.4g}")
            context.save(state.write, state.step, values)
            history.tell(state.step, values, state.segment)
    logger.flush()
    return TrainResult(state.step, state.best, state.best_network.cpu().eval())
