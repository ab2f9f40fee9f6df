"""The styleVAE's training (§ 3.1)."""

import torch
from torch import nn

from facelab.data.tensors import FaceSet
from facelab.data.windows import Streamed
from facelab.images import to_float
from facelab.trained.weights import build_features
from facelab.training.config import ComputeConfig
from facelab.training.context import Context
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.images import to_device
from facelab.training.optimiser import build_optimiser
from facelab.training.update import Update
from models.mutual_information import StatisticsNetwork, derangement
from models.recipe import Optimiser
from models.stylevae import StyleVAE
from models.stylevae_loss import StyleVAELoss

RECOGNITION, WHOLE = "recognition", "whole"
"""Phases: E_LR learns to read a camera's settings; then the KL divergence counts, too."""


class StyleVAEStage(DegraderStage):
    """Stage 1 for the training loop."""

    def __init__(self, config: TrainDegraderConfig, hr: FaceSet | Streamed, lr: FaceSet | Streamed):
        super().__init__(config, hr, lr)
        if config.stylevae.camera:  # pyrefly: ignore  (of with_options)
            # Recognition learns from draws without end, which nobody overfits; the Fréchet distance of some dozens of
            # held-out faces is noisier than the epochs it would choose between.
            self.selection = ("fd", "last")
        if config.weights.lambda_mi > 0:
            self.networks["statistics"] = StatisticsNetwork()
            # MINE's own rate: T_θ has to keep up with the generator.
            self.optimisers["statistics"] = build_optimiser(
                Optimiser(), self.networks["statistics"].parameters(), learning_rate=1e-3
            )
        self.phase = RECOGNITION if config.weights.kl_from else WHOLE
        p, features = config.perceptual, None
        if config.weights.lambda_style > 0:
            layers = tuple(dict.fromkeys(p.content_layers + p.style_layers))
            features = build_features(p.network, layers, p.weights, p.min_size)
            features.calibrate(to_float(lr.subset("train").first(256)["image"]))
            self.facts |= {f"rms_{k}": float(v) for k, v in zip(features.layers, features.rms, strict=True)}
        self.objective = StyleVAELoss(self.networks, features, config.weights, p.content_layers, p.style_layers)

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        assert isinstance(self.objective, StyleVAELoss)
        self.objective.of_all = context.joined
        super().prepare(context, compute)

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        if self.phase == RECOGNITION and update.progress >= self.config.weights.kl_from:
            self.phase = WHOLE  # for good: a resumed run may be longer, and its progress smaller
            network = self.networks["main"]
            assert isinstance(network, StyleVAE)
            # Adam has seen no gradient of the prior yet, and would take the first for a huge one.
            for parameter in network.prior():
                self.optimisers["main"].state.pop(parameter, None)
        return update.minimise(self.objective, *self.batches(step), self.phase == WHOLE, by=self.optimisers)[0]

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """See StyleVAELoss.forward; `other_lr` is deranged over the whole batch."""
        c, context, chance = self.config, self.context, self.chance(step)
        assert isinstance(self.network, StyleVAE)
        mine, style = slice(context.rank, None, context.world_size), self.network.config.style_dim
        parts, count = (style, self.network.noise_dim(c.hr_size) - style), c.images_per_update
        drawn = [torch.cat([torch.randn(count, part, generator=chance) for part in parts], dim=1) for _ in range(2)]
        seeks_mi = "statistics" in self.networks
        lr = self.real(step, of_all=seeks_mi)
        other_lr = lr
        if seeks_mi:
            other_lr, lr = lr[derangement(count, chance)[mine].to(lr.device)], lr[mine]
        return self.sharp(step), lr, other_lr, to_device(torch.stack(drawn, dim=1)[mine], context.device)

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Also kl_active_dims: style dimensions that carry more than 0.1 nats."""
        assert isinstance(network, StyleVAE)
        mu, logvar = network.encode_style(to_float(self.held_lr[:512].to(self.context.device)))
        per_dimension = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).mean(dim=0)
        return super().validate(network) | {"kl_active_dims": float((per_dimension > 0.1).sum())}
