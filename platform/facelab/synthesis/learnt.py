"""A trained network as a degrader: the styleVAE, or Bulat et al.'s High-to-Low."""

import torch

from facelab.data.tensors import FaceSet
from facelab.seeding import generator_for, seed_for
from facelab.synthesis.degrader import Degraded, Degrader
from facelab.trained.apply import degrade
from facelab.trained.store import TrainedModel
from models.network import DegraderNetwork


class Learnt(Degrader):
    """Styles come from a bank of real LR faces, or from the prior where there is none."""

    def __init__(self, model: TrainedModel, seed: int, bank: FaceSet | None):
        super().__init__(model.scale, seed)
        assert isinstance(model.network, DegraderNetwork)
        self.network, self.bank = model.network, bank
        self.name = f"{model.name}@{model.digest[:16]}"
        if self.network.uses_style:
            self.style_mode = "prior" if bank is None else "bank"
        self.style_bank = bank.hash if bank else ""

    def to(self, device: torch.device) -> "Learnt":
        self.network.to(device)
        return self

    def degrade(self, hr: torch.Tensor, digests: list[str], variant: int) -> Degraded:
        generators = [generator_for(self.seed, "noise", digest, variant) for digest in digests]
        width = self.network.noise_dim(hr.shape[-1])
        noise = torch.stack([torch.randn(width, generator=generator) for generator in generators])
        if self.bank is None:
            return degrade(self.network, hr, noise), [[] for _ in digests]
        chosen = [seed_for(self.seed, "style", digest, variant) % len(self.bank) for digest in digests]
        return degrade(self.network, hr, noise, self.bank.images[chosen]), [[self.bank.ids[i]] for i in chosen]
