"""Adversarial training: one update of a generator against its discriminator, then one of the discriminator."""

import torch
from torch import nn

from facelab.errors import UsageError
from facelab.training.config import ComputeConfig, TrainConfig, compiled
from facelab.training.context import Context
from facelab.training.optimiser import build_optimiser
from facelab.training.update import Losses, Update
from models.losses import discriminator_loss, generator_loss
from models.network import Network
from models.recipe import Adversarial


class DiscriminatorObjective(nn.Module):
    """What the discriminator minimises, as a module for data-parallel training."""

    def __init__(self, discriminator: nn.Module, options: Adversarial):
        super().__init__()
        self.discriminator, self.options = discriminator, options

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> Losses:
        """real and fake: (B, 3, H, W) in [-1, 1]; one forward pass each, as batch norm must not mix them."""
        of_real, of_fake = self.discriminator(real), self.discriminator(fake)
        loss = discriminator_loss(of_real, of_fake, self.options.loss)
        return Losses(loss, {"real_score": of_real.mean(), "fake_score": of_fake.mean()})


class Opponent:
    """The discriminator of a generator: judges it in the generator's objective, and is trained by its own.

    No module, so that data-parallel training of the generator's objective leaves the discriminator's weights alone.
    """

    def __init__(self, discriminator: nn.Module, options: Adversarial):
        self.discriminator, self.options = discriminator, options
        self.objective: nn.Module = DiscriminatorObjective(discriminator, options)

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        """Wrap the objective for device and workers."""
        self.objective = context.prepare(compiled(self.objective, compute))

    def loss(self, fakes: torch.Tensor) -> torch.Tensor:
        """The generator's adversarial loss of its images (B, 3, H, W), not weighted."""
        return generator_loss(self.discriminator(fakes), self.options.loss)


def add_discriminator(
    network: Network,
    size: int,
    config: TrainConfig,
    networks: nn.ModuleDict,
    optimisers: dict[str, torch.optim.Optimizer],
) -> Opponent:
    """Build the discriminator of a generator, for images of `size` px, and put it and its optimiser beside the others.

    Raises:
        UsageError: a size that it cannot take.
    """
    try:
        discriminator = network.discriminator(size)
    except ValueError as error:
        raise UsageError(f"--model {config.model}: {error}") from error
    networks["discriminator"] = discriminator
    optimisers["discriminator"] = build_optimiser(config.optimiser, discriminator.parameters(), config.rate)
    return Opponent(discriminator, config.adversarial)


def adversarial_step(
    update: Update, objective: nn.Module, inputs: tuple, real: torch.Tensor, opponent: Opponent
) -> dict[str, torch.Tensor]:
    """One update of the optimiser "main", then one of "discriminator"; each happens or is skipped by itself.

    Args:
        objective: called with `inputs`; gives the generated images with its losses.
        real: (B, 3, H, W), what the discriminator takes for real.

    Returns:
        The terms of both; the discriminator's begin with "discriminator_".
    """
    opponent.discriminator.requires_grad_(False)
    terms, generated = update.minimise(objective, *inputs, by=["main"])
    opponent.discriminator.requires_grad_(True)
    assert generated is not None
    judged, _ = update.minimise(opponent.objective, real, generated, by=["discriminator"])
    return terms | {f"discriminator_{name}": value for name, value in judged.items()}
