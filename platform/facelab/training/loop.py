"""The one training loop: restore, step, average, validate, save, report. It knows neither Ray nor MLflow nor what it
trains."""

import math
import sys
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from facelab.errors import Agreed
from facelab.job import TERMINATED
from facelab.trained import checkpoint
from facelab.training.config import TrainConfig
from facelab.training.context import Context, together
from facelab.training.history import History, Logger
from facelab.training.optimiser import set_learning_rate
from facelab.training.pace import Pace
from facelab.training.saving import Saver
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

    Args:
        logger: rank 0's is told everything, the others' nothing.

    Raises:
        NonFiniteLoss: see Update.require_finite and TrainingState.require_finite.
        Agreed: see together; or the workers do not find the same checkpoints.
        StoreError: see Saver.
        SystemExit: TERMINATED, after a checkpoint, if this process was told to end.
    """
    stage.networks.to(context.device)
    state = TrainingState(stage, config, context.rank)
    saved = together(context, lambda: checkpoint.newest(config.checkpoints))
    if len(set(steps := context.gather(str(saved.step if saved else 0)))) > 1:
        raise Agreed(
            f"{config.output}: its workers see checkpoints up to the steps {', '.join(steps)}: give an --output that "
            "all nodes share"
        )
    if saved is not None:
        together(context, lambda: state.restore(saved))
    if config.compute.channels_last:
        stage.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage.prepare(context, config.compute)
    update = Update(context, config.compute, stage.networks, stage.optimisers, config.optimiser.clip)
    if state.scaler:
        update.scaler.load_state_dict(state.scaler)
    history = History(context, config.images_per_update)
    last = total_steps(stage, config)

    def note(text: str) -> None:
        """A line of the log, from whichever of many machines and trainings it comes."""
        who = f"train_{config.kind} {Path(config.output).name}, rank {context.rank} of {context.world_size}"
        print(f"[{who}, step {state.step}] {text}", file=sys.stderr, flush=True)

    pace = Pace(context, config, state.step, note)
    if not context.rank:
        logger.begin(state.step, last)
        if saved is not None:
            note(f"going on to step {last}")

    def judge() -> dict[str, float]:
        """Of the averaged weights, which are kept if they are the best; on rank 0, for which the others wait."""
        values: dict[str, float] = {}
        if not context.rank:
            values = stage.validate(state.average)
            state.keep_best(values)
            epoch = math.ceil(state.step / stage.steps_per_epoch)
            history.judged(state.step, values, f"samples/epoch-{epoch:04d}.png", stage.picture(state.average))
            stage.networks.train()  # without an average of its own, what was judged is what is trained
        state.judged = state.step
        context.gather("")
        return values

    def save() -> None:
        update.require_finite(config.max_skipped, last=state.step >= last)
        state.require_finite()
        tell = history.take(state.segment, state.skipped + float(update.skipped), stage.waited)
        if saver is not None:
            saver.save(state.snapshot(update), lambda: tell(logger))
        pace.saved()

    def report(values: dict[str, float]) -> None:
        """Once all is written of it, as this may be the end."""
        if saver is not None:
            saver.wait()
        context.report(values and values | {"step": state.step, "last_step": last})

    with (
        nullcontext() if context.rank else Saver(config.checkpoints, config.keep_checkpoints, note) as saver,
        closing(context.progress(last, state.step)) as progress,
    ):
        if state.step >= last and state.judged != state.step:
            values = judge()  # stopped before it was judged, and now told to make do with that
            save()
            if context.is_searched:
                report(values)
        while state.step < last:
            update.progress = state.step / last
            set_learning_rate(stage.optimisers.values(), config.optimiser, update.progress)
            terms = stage.step(state.step, update)
            state.advance()
            history.add(state.step, terms)
            if not context.rank:
                progress.update(1)
            epoch_ends = state.step % stage.steps_per_epoch == 0 or state.step == last
            values = judge() if epoch_ends else {}
            if values:
                epoch, name = math.ceil(state.step / stage.steps_per_epoch), stage.selection[0]
                progress.set_description(f"epoch {epoch}: loss {history.loss:.4f} {name} {values[name]:.4g}")
            reports = epoch_ends and context.is_searched
            due = state.step == last or reports
            due |= bool(config.checkpoint_every and state.step % config.checkpoint_every == 0)
            ends = False
            if pace.is_due(state.step):
                look = pace.look(state.step)
                update.require_finite(config.max_skipped)
                due, ends = due or look.save, look.end
            if due:
                save()
            if reports:
                report(values)
            if ends and state.step < last:
                note(f"told to end: saved at step {state.step} of {last}; --resume goes on")
                raise SystemExit(TERMINATED)
    return TrainResult(state.step, state.best, state.best_network.cpu().eval())
