"""Stage 2: any super-resolution network on pairs, synthesised or bicubic (§ 3.2)."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import nn

from facelab.config import Uri
from facelab.data.faces import FaceSet, PairSet
from facelab.data.sampler import batch_indices, flips
from facelab.errors import UsageError
from facelab.images import grid, to_float
from facelab.metrics.psnr_ssim import psnr
from facelab.model_store import super_resolve
from facelab.training.config import ComputeConfig, TrainConfig
from facelab.training.context import Context
from facelab.training.loop import Update
from models import build_sr
from models.attentive import AttentiveConfig, AttentiveSR
from models.edsr import EDSRConfig
from models.resize import resize
from models.srcnn import SRCNNConfig


class TrainSRConfig(TrainConfig):
    """Train a super-resolution network, on synthesised pairs or on bicubic LR made on the fly."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Seconds, to see that everything is connected.
        "debug": {
            "max_steps": 4,
            "batch_size": 4,
            "attentive.channels": 16,
            "attentive.global_blocks": 1,
            "attentive.local_blocks": 1,
            "edsr.size": "mini",
        },
        # About a minute on two cores.
        "demo": {
            "epochs": 100,
            "max_steps": 150,
            "learning_rate": 1e-3,
            "ema_decay": 0.98,
            "attentive.channels": 32,
            "attentive.global_blocks": 2,
            "attentive.local_blocks": 2,
            "attentive.window": 5,
            "srcnn.kernels": [9, 1, 5],
            "edsr.size": "mini",
        },
        # § 4.1: 50 epochs, Adam 1e-4 (the default).
        "paper": {"epochs": 50},
    }

    model: Literal["attentive", "srcnn", "edsr"]
    """The network to train."""
    pairs: Uri | None = None
    """URI of pair shards made by jobs.synthesize. Either this or --hr."""
    hr: Uri | None = None
    """URI of sharp faces, shards or folder; their LR is bicubic. Either this or --pairs."""
    pixel_loss: Literal["l1", "l2"] = "l1"
    """Distance of the super-resolved to the sharp face, averaged over pixels in [-1, 1]."""
    attentive: AttentiveConfig = AttentiveConfig()
    """Options of --model attentive, with the GA and LA switches."""
    srcnn: SRCNNConfig = SRCNNConfig()
    """Options of --model srcnn."""
    edsr: EDSRConfig = EDSRConfig()
    """Options of --model edsr."""

    @model_validator(mode="after")
    def _one_source(self):
        if (self.pairs is None) == (self.hr is None):
            raise ValueError("give either --pairs (synthesised pairs) or --hr (bicubic LR)")
        return self

    def inputs(self) -> list[tuple[str, str]]:
        return [(self.pairs, "pairs")] if self.pairs else [(str(self.hr), "faces")]

    @property
    def network_options(self) -> dict[str, Any]:
        """Of the chosen network."""
        return vars(getattr(self, self.model))


class SRObjective(nn.Module):
    """The pixel loss as a module, for data-parallel training."""

    def __init__(self, network: nn.Module, pixel_loss: str):
        super().__init__()
        self.network, self.distance = network, nn.L1Loss() if pixel_loss == "l1" else nn.MSELoss()

    def forward(self, lr: torch.Tensor, hr: torch.Tensor) -> dict[str, torch.Tensor]:
        """lr (B, 3, h, w) and hr (B, 3, H, W), float in [-1, 1]."""
        return {"loss": self.distance(self.network(lr).float(), hr)}


class SRStage:
    """Stage 2 for the training loop. `data` are pairs, or faces whose LR is bicubic."""

    selection: tuple[str, str] = ("psnr_rgb", "max")

    def __init__(self, config: TrainSRConfig, data: PairSet | FaceSet):
        self.config = config
        self.train_hr, self.train_lr = _hr_lr(data.subset("train"))
        self.held_hr, held_lr = _hr_lr(data.subset("val"))
        if len(self.train_hr) < config.batch_size or len(self.held_hr) < 1:
            raise UsageError(
                f"{config.pairs or config.hr}: {len(self.train_hr)} faces to train on and {len(self.held_hr)} held out "
                f"(10 % by hash of id), but --batch-size is {config.batch_size}: give more faces or a smaller batch"
            )
        self.held_hr = self.held_hr[: config.validation_images]
        self.held_lr = resize(self.held_hr, config.lr_size) if held_lr is None else held_lr[: len(self.held_hr)]
        if self.held_hr.shape[-1] != config.hr_size or self.held_lr.shape[-1] != config.lr_size:
            raise UsageError(
                f"{config.pairs}: pairs are {self.held_lr.shape[-1]} -> {self.held_hr.shape[-1]} px, but --hr-size "
                f"{config.hr_size} and --scale {config.scale} want {config.lr_size} -> {config.hr_size} px"
            )
        self.steps_per_epoch = -(-len(self.train_hr) // config.batch_size)
        torch.manual_seed(config.seed)
        try:
            network = build_sr(config.model, config.scale, **config.network_options)
        except ValueError as error:
            raise UsageError(f"--model {config.model}: {error}") from error
        self.networks = nn.ModuleDict({"main": network})
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "main": torch.optim.Adam(network.parameters(), config.learning_rate)
        }
        self.objective: nn.Module = SRObjective(network, config.pixel_loss)

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        self.context = context
        if compute.compile:
            self.objective.compile()
        self.objective = context.prepare(self.objective)

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        lr, hr = self._batch(step)
        terms = update.forward(self.objective, lr, hr)
        update.apply(terms, *self.optimisers.values())
        return terms

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        c, context = self.config, self.context
        ranks = {"seed": c.seed, "rank": context.rank, "world_size": context.world_size}
        indices = batch_indices(len(self.train_hr), c.batch_size, step, stream="hr", **ranks)
        hr = self.train_hr[indices]
        lr = resize(hr, c.lr_size) if self.train_lr is None else self.train_lr[indices]
        mirrored = flips(c.batch_size, step, **ranks)[:, None, None, None]
        hr, lr = torch.where(mirrored, hr.flip(-1), hr), torch.where(mirrored, lr.flip(-1), lr)
        return to_float(lr.to(context.device)), to_float(hr.to(context.device))

    def validate(self, network: nn.Module) -> dict[str, float]:
        """psnr_rgb and psnr_y in dB on held-out faces, with the LR kind of the training set."""
        sr = super_resolve(network.eval(), self.held_lr, self.context.device)
        values = {
            "psnr_rgb": float(psnr(sr, self.held_hr).mean()),
            "psnr_y": float(psnr(sr, self.held_hr, colour="y").mean()),
        }
        return values | (network.gammas() if isinstance(network, AttentiveSR) else {})

    def picture(self, network: nn.Module) -> np.ndarray:
        """Rows: LR, bicubic, super-resolved, sharp face."""
        lr, hr = self.held_lr[:12], self.held_hr[:12]
        sr = super_resolve(network.eval(), lr, self.context.device)
        return grid([lr, resize(lr, self.config.hr_size), sr, hr], cell=96)


def _hr_lr(data: PairSet | FaceSet) -> tuple[torch.Tensor, torch.Tensor | None]:
    return (data.hr, data.lr) if isinstance(data, PairSet) else (data.images, None)
