"""A trained network as a degrader: the styleVAE, or Bulat et al.'s High-to-Low."""

import numpy as np
import torch

from facelab.seeding import generator_for
from facelab.synthesis.degrader import Degraded, Degrader
from facelab.synthesis.styles import StyleBank, luminance
from facelab.trained.apply import MICRO_BATCH, degrade
from facelab.trained.store import TrainedModel
from models.network import DegraderNetwork
from models.stylevae import reparameterise


class Learnt(Degrader):
    """Styles come from a bank of real LR faces, or from the prior where there is none."""

    def __init__(
        self,
        model: TrainedModel,
        seed: int,
        micro_batch: int = MICRO_BATCH,
        bank: StyleBank | None = None,
        style_mode: str = "prior",
    ):
        super().__init__(model.scale, seed)
        assert isinstance(model.network, DegraderNetwork)
        self.network, self.micro_batch, self.bank = model.network, micro_batch, bank
        self.name = f"{model.name}@{model.digest[:16]}"
        if self.network.uses_style:
            self.style_mode = style_mode
        self.style_bank = bank.hash if bank else ""

    def to(self, device: torch.device) -> "Learnt":
        self.network.to(device)
        return self

    def degrade(self, hr: torch.Tensor, digests: list[str], variant: int) -> Degraded:
        generators = [generator_for(self.seed, "noise", digest, variant) for digest in digests]
        width = self.network.noise_dim(hr.shape[-1])
        noise = torch.stack([torch.randn(width, generator=generator) for generator in generators])
        if self.bank is None:
            return degrade(self.network, hr, noise, size=self.micro_batch), [[] for _ in digests]
        keys = [(self.seed, "style", digest, variant) for digest in digests]
        chosen = [
            self.bank.choose(self.style_mode, key, bright)
            for key, bright in zip(keys, luminance(hr).tolist(), strict=True)
        ]
        styles = [style for style, _, _ in chosen]
        mu, logvar = (torch.from_numpy(np.stack([each[i] for each in chosen])) for i in (1, 2))
        m = mu.shape[1]
        z = reparameterise(mu, logvar, noise[:, :m])
        return degrade(self.network, hr, torch.cat([z, noise[:, m:]], dim=1), size=self.micro_batch), styles
