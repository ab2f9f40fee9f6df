"""Everything that changes while a stage is trained, and its way to a checkpoint and back."""

import math
from copy import deepcopy
from pathlib import Path

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from facelab.errors import UsageError
from facelab.trained import checkpoint
from facelab.trained.store import describe
from facelab.training.config import TrainConfig
from facelab.training.stage import Stage


class TrainingState:
    """The stage's networks and optimisers, the moving average of "main", the best of those, and the position.

    Random numbers and the images of a step are functions of (seed, step), so the position carries both.
    """

    def __init__(self, stage: Stage, config: TrainConfig):
        self.stage, self.config = stage, config
        main = stage.networks["main"]
        self.average = AveragedModel(main, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        self.best_network = deepcopy(main).requires_grad_(False)
        self.best: dict[str, float] = {}
        """Validation metrics of the best network, with "step"; empty before the first validation."""
        self.step = 0
        """Updates done."""
        self.segment = 0
        """How often the run was resumed."""

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Prefix in a checkpoint -> its networks."""
        return {"networks": self.stage.networks, "average": self.average, "best": self.best_network}

    def advance(self) -> None:
        """An update was made."""
        main = self.stage.networks["main"]
        if self.config.ema_decay:
            self.average.update_parameters(main)
        else:
            self.average.module.load_state_dict(main.state_dict())
        self.step += 1

    def keep_best(self, values: dict[str, float]) -> None:
        """Keep the averaged network if its validation says so."""
        if self._is_better(values):
            self.best = values | {"step": float(self.step)}
            self.best_network.load_state_dict(self.average.module.state_dict())

    def _is_better(self, values: dict[str, float]) -> bool:
        name, sense = self.stage.selection
        if sense == "last" or not self.best or not math.isfinite(self.best[name]):
            return True
        return values[name] < self.best[name] if sense == "min" else values[name] > self.best[name]

    def write(self, folder: Path) -> None:
        """Fill a local folder with a checkpoint."""
        c = self.config
        networks = {
            f"{prefix}.{key}": value for prefix, part in self.parts.items() for key, value in part.state_dict().items()
        }
        optimisers = {name: optimiser.state_dict() for name, optimiser in self.stage.optimisers.items()}
        model = describe(c.kind, c.model, self.best_network, c.scale, c.hr_size)
        phase, order = self.stage.phase, self.stage.order
        checkpoint.write(
            folder,
            checkpoint.Checkpoint(
                self.step, networks, optimisers, self.best, self.segment, model, phase, order
            ),
        )  # fmt: skip

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: of another network or optimiser, or of images in another order.
        """
        if saved.order != self.stage.order:
            was, now = (order or "whole sets" for order in (saved.order, self.stage.order))
            raise UsageError(
                f"--resume: the images would come in another order: it was started with {was}, and this --cache gives "
                f"{now}: give the --cache it was started with"
            )
        for prefix, part in self.parts.items():
            own = {k.removeprefix(f"{prefix}."): v for k, v in saved.networks.items() if k.startswith(f"{prefix}.")}
            try:
                part.load_state_dict(own)
            except RuntimeError as error:
                raise UsageError(
                    "--resume: the checkpoint is of another network, or of another size of it: give the options it was "
                    "started with, or another --output"
                ) from error
        for name, optimiser in self.stage.optimisers.items():
            groups, old = optimiser.state_dict()["param_groups"], saved.optimisers[name]
            if [group.keys() for group in groups] != [group.keys() for group in old["param_groups"]]:
                raise UsageError("--resume: the checkpoint is of another optimiser: give the one it was started with")
            # Rates and decays are of this run: --resume may come with others.
            optimiser.load_state_dict({"state": old["state"], "param_groups": groups})
        self.stage.phase = saved.phase or self.stage.phase
        self.step, self.segment, self.best = saved.step, saved.segment + 1, dict(saved.best)
