"""The training of Bulat et al.'s High-to-Low degrader (arXiv 1807.11458, § 3.1)."""

import torch
import torch.nn.functional as F
from torch import nn

from facelab.data.tensors import FaceSet
from facelab.data.windows import Streamed
from facelab.training.adversarial import Opponent, add_discriminator, adversarial_step
from facelab.training.config import ComputeConfig
from facelab.training.context import Context
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.images import to_device
from facelab.training.update import Losses, Update
from models.network import DegraderNetwork


class HighToLowObjective(nn.Module):
    """Stay near the average-pooled sharp face, and look like a real LR face to the discriminator."""

    def __init__(self, network: DegraderNetwork, opponent: Opponent):
        super().__init__()
        self.network, self.opponent = network, opponent

    def forward(self, hr: torch.Tensor, noise: torch.Tensor) -> Losses:
        """hr: (B, 3, H, W) in [-1, 1]; noise: (B, noise_dim) ~ N(0, I)."""
        fake = self.network.degrade(hr, noise)
        pixel = F.mse_loss(fake.float(), F.avg_pool2d(hr, self.network.scale))
        adversarial = self.opponent.loss(fake)
        loss = pixel + self.opponent.options.weight * adversarial
        return Losses(loss, {"pixel": pixel, "adversarial": adversarial}, fake)


class HighToLowStage(DegraderStage):
    """Bulat's degrader for the training loop."""

    def __init__(self, config: TrainDegraderConfig, hr: FaceSet | Streamed, lr: FaceSet | Streamed):
        super().__init__(config, hr, lr)
        self.opponent = add_discriminator(self.network, config.lr_size, config, self.networks, self.optimisers)
        self.objective = HighToLowObjective(self.network, self.opponent)

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        super().prepare(context, compute)
        self.opponent.prepare(context, compute)

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        hr, lr, noise = self.batches(step)
        return adversarial_step(update, self.objective, (hr, noise), lr, self.opponent)

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """Sharp faces, real LR faces, and noise."""
        c, context = self.config, self.context
        noise = torch.randn(c.images_per_update, self.network.noise_dim(c.hr_size), generator=self.chance(step))
        mine = noise[context.rank :: context.world_size]
        return self.sharp(step), self.real(step), to_device(mine, context.device)
