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
from facelab.training.update import Losses, Update
from models.network import DegraderNetwork


class HighToLowObjective(nn.Module):
    """Stay near the average-pooled sharp face, and look like a real LR face to the discriminator."""

    def __init__(self, network: DegraderNetwork, opponent: Opponent):
        super().__init__()
        self.network, self.opponent = network, opponent

    def forward(self, hr: torch.Tensor) -> Losses:
        """hr: (B, 3, H, W) in [-1, 1]; the noise is drawn with torch's global generator."""
        fake = self.network.degrade(hr, torch.randn(len(hr), self.network.noise_dim(hr.shape[-1]), device=hr.device))
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
        hr, lr = self.batches(step)
        return adversarial_step(update, self.objective, (hr,), lr, self.opponent, self.optimisers)
