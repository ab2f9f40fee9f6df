"""Stage 1: a degrader, trained on unpaired sharp and low-resolution faces; what every degrader shares."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from facelab.config import Config, Uri, with_options
from facelab.data.tensors import FaceSet
from facelab.data.windows import Streamed
from facelab.errors import UsageError
from facelab.images import grid, to_float
from facelab.metrics.frechet import FrechetDistance, Moments, moments_of
from facelab.metrics.psnr_ssim import psnr
from facelab.seeding import generator_for
from facelab.trained.apply import degrade
from facelab.trained.weights import build_features
from facelab.training.batches import draws, mirrored
from facelab.training.config import ComputeConfig, TrainConfig, compiled
from facelab.training.context import Context
from facelab.training.images import (
    Ahead,
    TrainingImages,
    load_training_faces,
    on_device,
    order_of,
    take,
    to_device,
)
from facelab.training.optimiser import build_optimiser
from facelab.training.update import Update
from models import DEGRADERS, build_degrader
from models.features import FEATURE_NETWORKS
from models.network import DegraderNetwork, Network
from models.resize import fine_detail, resize
from models.stylevae_loss import LossWeights

HR, LR = "hr", "lr"
"""Streams of batches."""


class PerceptualConfig(Config):
    """The loss network φ of Eq. 3–4. Each layer's features are divided by their RMS on real LR faces."""

    network: Literal["vgg16", "vgg19", "mobilenet_v2"] = "vgg16"
    """vgg16 is the paper's; mobilenet_v2 comes with facelab[offline-weights] and is fast on CPUs."""
    weights: Uri | None = None
    """URI of the weight file; default: torchvision's download, or the installed package."""
    style_layers: tuple[str, ...] = ("relu1_1", "relu2_1", "relu3_1", "relu4_1")
    """Layers of the style loss, equal w_i (Huang & Belongie 2017)."""
    content_layers: tuple[str, ...] = ("relu4_1",)
    """Layers of the content loss."""
    min_size: int = Field(default=64, ge=16)
    """Smaller images are upsampled to this side first, px: at 16 px, relu4_1 would be 2x2."""
    selection_layer: str = "relu1_1"
    """The epoch with the smallest Fréchet distance over this layer's channels, on the fine detail of held-out faces, is
    kept."""

    @model_validator(mode="after")
    def _layers_exist(self):
        known = FEATURE_NETWORKS[self.network].layers
        for name in ("style_layers", "content_layers", "selection_layer"):
            value = getattr(self, name)
            for layer in (value,) if isinstance(value, str) else value:
                if layer not in known:
                    raise ValueError(f"{name}: {layer!r} is not one of {self.network}'s: {', '.join(known)}")
        return self


_MOBILENET = {  # as loss network at 16 px, from PyPI and fast on CPUs
    "perceptual.network": "mobilenet_v2",
    "perceptual.selection_layer": "block1",
    "perceptual.min_size": 32,
}


@with_options(**{name: network.Config for name, network in DEGRADERS.items()})
class TrainDegraderConfig(TrainConfig):
    """Learn, from unpaired faces, to turn a sharp face into a realistic low-resolution one."""

    kind = "degrader"
    NETWORKS: ClassVar[Mapping[str, type[Network]]] = DEGRADERS
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Seconds, to see that everything is connected; the result is not worth looking at.
        "debug": _MOBILENET | {"max_steps": 4, "batch_size": 4},
        # Minutes on two cores, for a few hundred faces of each kind.
        "demo": _MOBILENET | {"validation_images": 128, "checkpoint_minutes": 0.5},
        "mini": _MOBILENET | {"validation_images": 128},
        # The paper's styleVAE alone, at that size, for its ablations. Without AdaIN, MI leaves zero at step 100 to 420.
        "paper_mini": _MOBILENET
        | {"max_steps": 600, "batch_size": 16, "learning_rate": 1e-3, "optimiser.decay_at": ()},
        "paper": {},
    }

    hr: Uri
    """URI of sharp training faces: face shards or a folder of images."""
    lr: Uri
    """URI of real low-resolution training faces, unpaired with --hr."""
    model: Literal[tuple(DEGRADERS)] = "stylevae"  # pyrefly: ignore
    """The degrader to train: the paper's, or Bulat et al.'s High-to-Low."""
    weights: LossWeights = LossWeights()
    """Loss weights of the styleVAE; the MI switch is lambda_mi = 0."""
    perceptual: PerceptualConfig = PerceptualConfig()
    """Loss network of the styleVAE; its selection layer judges every degrader."""

    @model_validator(mode="after")
    def _losses_fit(self):
        a = self.adversarial
        if self.model == "bulat" and (not a.weight or a.pretrain or a.perceptual_weight):
            raise ValueError("adversarial: bulat's degrader needs a weight, and has no pre-training or perceptual loss")
        if self.model == "stylevae" and self.weights.lambda_mi and self.compute.accumulate > 1:
            raise ValueError(
                "compute.accumulate: the mutual information of a part of the batch is not that of the batch"
            )
        if self.model != "stylevae":
            if self.preset == "paper_mini":
                raise ValueError(f"preset paper_mini is the styleVAE's; {self.model} has mini and paper")
            return self
        judged = bool(self.weights.lambda_style or self.weights.lambda_mi)
        if judged != bool(self.stylevae.blocks):  # pyrefly: ignore  (of with_options)
            raise ValueError(
                "weights: lambda_style and lambda_mi train the generator's blocks, and there are none: give 0 for "
                "both, or stylevae.blocks"
                if judged else
                "weights: nothing trains the generator's blocks: give weights.lambda_style or lambda_mi, or leave the "
                "image to a camera, with stylevae.camera and stylevae.blocks 0"
            )  # fmt: skip
        return self

    def inputs(self) -> list[tuple[str, str]]:
        return [(self.hr, "faces"), (self.lr, "faces")]

    @property
    def registry_name(self) -> str:
        return f"facelab-{self.model}" + ("-degrader" if self.model == "bulat" else "")  # an SR model is bulat's too


class DegraderStage:
    """Unpaired batches, validation and pictures of any degrader; a subclass has its networks' losses and step."""

    selection: tuple[str, str] = ("fd", "min")
    phase: str = ""
    networks: nn.ModuleDict
    optimisers: dict[str, torch.optim.Optimizer]
    objective: nn.Module

    @classmethod
    def load(cls, config: TrainDegraderConfig, progress: bool) -> Self:
        """Read the faces that a config names.

        Raises:
            UsageError: nothing usable there, or too little.
        """
        hr = load_training_faces(config, config.hr, HR, sharp=True, progress=progress)
        return cls(config, hr, load_training_faces(config, config.lr, LR, sharp=False, progress=progress))

    def __init__(self, config: TrainDegraderConfig, hr: FaceSet | Streamed, lr: FaceSet | Streamed):
        self.config = config
        hashes = hr.hash[:16], lr.hash[:16]
        self.facts: dict[str, Any] = {"data_hash": "+".join(hashes), "hr_hash": hashes[0], "lr_hash": hashes[1]}
        self.facts |= {"n_hr": len(hr), "n_lr": len(lr)}
        for counts in (hr.counts, lr.counts):
            self.facts |= {name: count + self.facts.get(name, 0) for name, count in counts.items()}
        self.hr: TrainingImages = hr.subset("train")
        self.lr: TrainingImages = lr.subset("train")
        self.held_hr, self.held_lr = (
            faces.subset("val").first(config.validation_images)["image"] for faces in (hr, lr)
        )
        for name, faces, least in (
            ("--hr", self.hr, config.images_per_update), ("--lr", self.lr, config.images_per_update),
            ("--hr", self.held_hr, 2), ("--lr", self.held_lr, 2),
        ):  # fmt: skip
            if len(faces) < least:
                raise UsageError(
                    f"{name}: {len(faces)} faces left for a part that needs {least} (90 % train, 10 % validation, "
                    "unless their shards say otherwise): give more faces or a smaller --batch-size"
                )
        order = order_of(hr=self.hr, lr=self.lr)
        self.images = {"images": self.facts["data_hash"], "order of images (--cache)": order}
        self.steps_per_epoch = -(-len(self.hr) // config.images_per_update)
        torch.manual_seed(config.seed)
        network = build_degrader(config.model, config.scale, **config.network_options)
        self.network = network
        self.networks = nn.ModuleDict({"main": network})
        groups = network.parameter_groups(config.rate)
        self.optimisers = {"main": build_optimiser(config.optimiser, groups, config.rate)}
        p = config.perceptual
        self.judge = build_features(p.network, (p.selection_layer,), p.weights, p.min_size)
        self.batches: Ahead[tuple[torch.Tensor, ...]] = Ahead(self.batch)

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        self.context = context
        self.hr, self.lr = (on_device(data, context.device, self.config.cache_on_gpu) for data in (self.hr, self.lr))
        self.judge.to(context.device)
        self.objective = context.prepare(compiled(self.objective, compute))

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        """A subclass's."""
        raise NotImplementedError

    @property
    def waited(self) -> float:
        return self.batches.waited

    def close(self) -> None:
        self.batches.close(self.hr, self.lr)

    def batch(self, step: int) -> tuple[torch.Tensor, ...]:
        """What a subclass's step takes."""
        raise NotImplementedError

    def sharp(self, step: int) -> torch.Tensor:
        """This worker's sharp faces of a step, (B, 3, H, W) in [-1, 1] on the device."""
        c, context = self.config, self.context
        ranks = {"seed": c.seed, "rank": context.rank, "world_size": context.world_size}
        hr = take(self.hr, c.images_per_update, step, stream=HR, **ranks)["image"]
        hr = mirrored(hr, draws("flip", c.images_per_update, step, **ranks))
        return to_float(to_device(hr, context.device))

    def real(self, step: int, *, of_all: bool = False) -> torch.Tensor:
        """Unpaired real LR faces of a step, (B, 3, h, w) in [-1, 1] on the device; this worker's, or all workers'."""
        c, context = self.config, self.context
        part = (0, 1) if of_all else (context.rank, context.world_size)
        lr = take(self.lr, c.images_per_update, step, seed=c.seed, stream=LR, rank=part[0], world_size=part[1])["image"]
        return to_float(to_device(lr, context.device))

    def chance(self, step: int) -> torch.Generator:
        """The random numbers of a step: drawn for the whole batch, of which each worker takes its part."""
        return generator_for(self.config.seed, "step", step, self.config.redraw)

    def _generate(self, network: DegraderNetwork, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Held-out faces degraded in held-out styles, the same draw every time: HR, style LR, generated (uint8)."""
        hr = self.held_hr[torch.arange(count) % len(self.held_hr)]
        style = self.held_lr[torch.arange(count) % len(self.held_lr)]
        noise = torch.randn(
            count, network.noise_dim(self.config.hr_size), generator=generator_for(self.config.seed, "validate")
        )
        return hr, style, degrade(network, hr, noise, style)

    @torch.no_grad()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """fd: Fréchet distance of generated to held-out real LR, of fine detail over the selection layer;
        psnr_to_bicubic (dB): how much of the content's pixels is kept."""
        count = min(self.config.validation_images, 4 * max(len(self.held_hr), len(self.held_lr)))
        assert isinstance(network, DegraderNetwork)
        hr, _, generated = self._generate(network.eval(), count)
        bicubic = resize(hr, self.config.lr_size)
        distance = FrechetDistance()
        distance.real, distance.generated = self._real_moments, moments_of(self._judged, generated)
        return {
            "fd": distance.compute(),
            "psnr_to_bicubic": float(psnr(generated, bicubic).clamp(max=100).mean()),
        }

    @cached_property
    def _real_moments(self) -> Moments:
        """Of the held-out real LR faces, which are the same at every epoch."""
        return moments_of(self._judged, self.held_lr)

    def _judged(self, images: torch.Tensor) -> torch.Tensor:
        """Features of fine detail alone: which faces, colours and light the two sets have is not what is judged."""
        features = self.judge.pooled(fine_detail(to_float(images.to(self.context.device))))
        return features[self.config.perceptual.selection_layer]

    def picture(self, network: nn.Module) -> np.ndarray:
        """Rows: sharp face, its bicubic LR, generated LR, a real LR face, which gave the style where one is used."""
        assert isinstance(network, DegraderNetwork)
        hr, style, generated = self._generate(network.eval(), 12)
        return grid([hr, resize(hr, self.config.lr_size), generated, style], cell=64)
