"""Everything that changes while a stage is trained, and its way to a checkpoint and back."""

import math
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from facelab.errors import UsageError
from facelab.trained import checkpoint
from facelab.trained.store import describe
from facelab.training.config import TrainConfig
from facelab.training.stage import Stage
from facelab.training.update import NonFiniteLoss, Update


class TrainingState:
    """The stage's networks and optimisers, the moving average of "main", the best of those, and the position.

    Random numbers and the images of a step are functions of (seed, step), so the position carries both. Only rank 0
    keeps average and best; after a restart, whoever is rank 0 has them of the checkpoint.
    """

    def __init__(self, stage: Stage, config: TrainConfig, rank: int = 0):
        self.stage, self.config, self.rank = stage, config, rank
        main = stage.networks["main"]
        self._ema = AveragedModel(main, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
        self.best_network = deepcopy(main).requires_grad_(False)
        self.best: dict[str, float] = {}
        """Validation metrics of the best network, with "step"; empty before the first validation."""
        self.step = 0
        """Updates done."""
        self.judged = 0
        """Of those, before the last validation."""
        self.segment = 0
        """How often the run was resumed."""
        self.skipped = 0.0
        """Updates that were not finite, before this process."""
        self.scaler: dict[str, Any] = {}
        """fp16's loss scale, as restored."""

    @property
    def average(self) -> nn.Module:
        """What is validated and kept."""
        return self._ema.module if self.config.ema_decay else self.stage.networks["main"]

    def advance(self) -> None:
        """An update was made."""
        if self.config.ema_decay and not self.rank:
            self._ema.update_parameters(self.stage.networks["main"])
        self.step += 1

    def keep_best(self, values: dict[str, float]) -> None:
        """Keep the averaged network if its validation says so."""
        if self._is_better(values):
            self.best = values | {"step": float(self.step)}
            self.best_network.load_state_dict(self.average.state_dict())

    def _is_better(self, values: dict[str, float]) -> bool:
        name, sense = self.stage.selection
        if sense == "last" or not self.best or not math.isfinite(self.best[name]):
            return True
        return values[name] < self.best[name] if sense == "min" else values[name] > self.best[name]

    def images(self) -> dict[str, str]:
        """What decided which images each step saw."""
        c = self.config
        return {"--seed": str(c.seed), "--batch-size": str(c.images_per_update), **self.stage.images}

    def require_finite(self) -> None:
        """
        Raises:
            NonFiniteLoss: some weight is not: what would go on from there is lost. On every worker alike.
        """
        for name, value in self.stage.networks.state_dict().items():
            if not torch.isfinite(value).all():
                raise NonFiniteLoss(
                    f"after step {self.step}, {name} is inf or nan and not saved; the last checkpoint is whole: go on "
                    "with --resume and a lower --learning-rate, or --compute.precision fp32"
                )

    def snapshot(self, update: Update) -> checkpoint.Checkpoint:
        """All of it as it is now, copied to the CPU."""
        c = self.config
        networks = {f"networks.{key}": value for key, value in self.stage.networks.state_dict().items()}
        if c.ema_decay:
            networks |= {f"average.{key}": value for key, value in self._ema.module.state_dict().items()}
            networks["averaged"] = self._ema.n_averaged
        optimisers = {name: _copied(optimiser.state_dict()) for name, optimiser in self.stage.optimisers.items()}
        return checkpoint.Checkpoint(
            step=self.step,
            networks=_copied(networks),
            optimisers=optimisers | {"scaler": update.scaler.state_dict()},
            best_network=_copied(self.best_network.state_dict()) if self.best else {},
            best=dict(self.best),
            judged=self.judged,
            segment=self.segment,
            skipped=self.skipped + float(update.skipped),
            model=describe(c.kind, c.model, self.best_network, c.scale, c.hr_size),
            phase=self.stage.phase,
            images=self.images(),
        )

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: of another network or optimiser, or of other images, or in another order.
        """
        for name, now in self.images().items():
            if (was := saved.images.get(name, "none")) != now:
                raise UsageError(
                    f"--resume: {self.config.output} was begun with {name} {was}, and this would be {now}: "
                    "give what it was begun with, or another --output"
                )
        parts: dict[str, nn.Module] = {"networks": self.stage.networks}
        if self.config.ema_decay:
            parts["average"] = self._ema.module
        try:
            for prefix, part in parts.items():
                own = {k.removeprefix(f"{prefix}."): v for k, v in saved.networks.items() if k.startswith(f"{prefix}.")}
                part.load_state_dict(own)
            if saved.best_network:
                self.best_network.load_state_dict(saved.best_network)
        except RuntimeError as error:
            raise UsageError(
                "--resume: the checkpoint is of another network, or of another size of it: give the options it was "
                "started with, or another --output"
            ) from error
        if self.config.ema_decay:
            self._ema.n_averaged.copy_(saved.networks["averaged"])
        for name, optimiser in self.stage.optimisers.items():
            groups, old = optimiser.state_dict()["param_groups"], saved.optimisers[name]
            if [group.keys() for group in groups] != [group.keys() for group in old["param_groups"]]:
                raise UsageError("--resume: the checkpoint is of another optimiser: give the one it was started with")
            # Rates and decays are of this run: --resume may come with others.
            optimiser.load_state_dict({"state": old["state"], "param_groups": groups})
        self.stage.phase = saved.phase or self.stage.phase
        self.step, self.judged, self.segment = saved.step, saved.judged, saved.segment + 1
        self.best = dict(saved.best)
        self.skipped, self.scaler = saved.skipped, saved.optimisers["scaler"]


def _copied(values: Any) -> Any:
    """A state dict, deep-copied to the CPU."""
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(values, dict):
        return {key: _copied(value) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(map(_copied, values))
    return values
