"""Stage 2: any super-resolution network on pairs, synthesised or bicubic (§ 3.2)."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from facelab.config import REGISTRY, Uri, uri_or, with_options
from facelab.data.tensors import FaceSet, ImageSet, PairSet
from facelab.data.windows import Streamed, Windows
from facelab.errors import UsageError
from facelab.images import grid, to_float
from facelab.metrics.psnr_ssim import psnr, ssim
from facelab.trained import store
from facelab.trained.apply import super_resolve
from facelab.trained.weights import build_features
from facelab.training.adversarial import Opponent, add_discriminator, adversarial_step
from facelab.training.batches import cropped, draws, mirrored, turned
from facelab.training.config import ComputeConfig, TrainConfig, compiled
from facelab.training.context import Context
from facelab.training.images import (
    Ahead,
    Images,
    TrainingImages,
    load_training_faces,
    load_training_pairs,
    load_watched_pairs,
    on_device,
    order_of,
    take,
    to_device,
)
from facelab.training.optimiser import build_optimiser
from facelab.training.stage import WATCH
from facelab.training.update import Losses, Update
from models import SR_MODELS, build_sr
from models.features import FeatureNetwork
from models.losses import content_loss
from models.luma import luma
from models.network import Network
from models.resize import resize

_NETWORKS: Mapping[str, type[Network]] = {name: network for name, network in SR_MODELS.items() if name != "bicubic"}

HR, REAL_LR = "hr", "real lr"
"""Streams of batches."""
PIXEL, ADVERSARIAL = "pixel", "adversarial"
"""Phases: the pixel loss alone; then, for a network with a discriminator, against that."""


@with_options(**{name: network.Config for name, network in _NETWORKS.items()})
class TrainSRConfig(TrainConfig):
    """Train a super-resolution network, on synthesised pairs or on bicubic LR made on the fly."""

    kind = "sr"
    NETWORKS: ClassVar[Mapping[str, type[Network]]] = _NETWORKS
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"max_steps": 4, "batch_size": 4},  # seconds, to see that everything is connected
        "demo": {"max_steps": 300, "validation_images": 64, "checkpoint_minutes": 0.5},  # about a minute on two cores
        "mini": {},  # minutes on two cores: small networks, each by the small recipe in its file
        "paper": {},  # published sizes, each by the recipe of its own paper, which stands in its file
    }

    model: Literal[tuple(_NETWORKS)]  # pyrefly: ignore
    """The network to train; each file of models/ holds its recipe."""
    pairs: Uri | None = None
    """URI of pair shards made by jobs.synthesize. Either this or --hr."""
    hr: Uri | None = None
    """URI of sharp faces, shards or folder; their LR is bicubic. Either this or --pairs."""
    lr: Uri | None = None
    """Real low-resolution faces: with a discriminator, it is also shown what becomes of them. Ours, but for bulat."""
    init_from: Annotated[str, uri_or(REGISTRY)] | None = None
    """A trained model of the same method to start from, also of another scale (EDSR and RDN: x4 from x2)."""
    watch: Uri | None = None
    """Pairs, at most --validation-images of them, of which every epoch logs watch/psnr_rgb and watch/ssim_y beside
    val/…; nothing is chosen by them, and nothing trained on them."""
    pixel_loss: Literal["l1", "l2", "sse"] = "l1"
    """l1, l2: mean over pixels; sse: half an image's sum of squares. Of RGB in [-1, 1]; srcnn, vdsr: of Y in [0, 1]."""
    lr_patch_size: int | None = Field(default=None, ge=4)
    """Side of random crops of the LR face, px, and scale times as much of the sharp one; None, or a face that is no
    larger: whole faces."""
    rotate: bool = False
    """Also turn training faces by multiples of 90 degrees."""
    perceptual_weights: Uri | None = None
    """URI of the weights of adversarial.network; default: torchvision's download, or the installed package."""

    @model_validator(mode="after")
    def _one_source(self):
        if (self.pairs is None) == (self.hr is None):
            raise ValueError("give either --pairs (synthesised pairs) or --hr (bicubic LR)")
        if self.lr and not self.adversarial.weight:
            raise ValueError(f"lr: {self.model} is trained without a discriminator, which alone looks at real LR faces")
        return self

    def inputs(self) -> list[tuple[str, str]]:
        sources = [(self.pairs, "pairs")] if self.pairs else [(str(self.hr), "faces")]
        return sources + ([(self.lr, "faces")] if self.lr else [])

    def watched(self) -> list[tuple[str, str]]:
        return [(self.watch, "pairs")] if self.watch else []

    @property
    def lr_side(self) -> int:
        """Side of the LR images that training sees, crops or whole faces, px."""
        return min(self.lr_patch_size or self.lr_size, self.lr_size)


class PixelLoss(nn.Module):
    """Distance of super-resolved and sharp faces, (B, 3, H, W) in [-1, 1]; of their Y in [0, 1] with `on_luma`."""

    def __init__(self, kind: str, on_luma: bool):
        super().__init__()
        self.kind, self.on_luma = kind, on_luma

    def forward(self, sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
        a, b = (luma(x) if self.on_luma else x for x in (sr.float(), hr))
        if self.kind == "l1":
            return F.l1_loss(a, b)
        return F.mse_loss(a, b) if self.kind == "l2" else 0.5 * (a - b).square().sum() / len(a)


class SRObjective(nn.Module):
    """What an SR network minimises, as a module for data-parallel training.

    Without an opponent, or before it begins, the pixel loss. With it, the content loss (of pixels, or of features in
    SRGAN, or of both) and the weighted adversarial loss.
    """

    def __init__(
        self, network: nn.Module, pixel: PixelLoss, features: FeatureNetwork | None, opponent: Opponent | None
    ):
        super().__init__()
        self.network, self.pixel, self.features, self.opponent = network, pixel, features, opponent

    def forward(
        self, lr: torch.Tensor, hr: torch.Tensor, real_lr: torch.Tensor | None = None, adversarial: bool = False
    ) -> Losses:
        """lr (B, 3, h, w), hr (B, 3, H, W), real_lr (B, 3, h, w) without a sharp face, all in [-1, 1]."""
        sr = self.network(lr)
        if not adversarial:
            return Losses(self.pixel(sr, hr), {})
        assert self.opponent is not None
        options = self.opponent.options
        if self.features is None:
            terms = {"pixel": self.pixel(sr, hr)}
            content = terms["pixel"]
        else:
            with torch.no_grad():
                target = self.features(hr)
            terms = {"perceptual": content_loss(self.features(sr), target)}
            content = options.perceptual_weight * terms["perceptual"]
            if options.pixel_weight:
                terms["pixel"] = self.pixel(sr, hr)
                content = content + options.pixel_weight * terms["pixel"]
        fake = sr if real_lr is None else torch.cat([sr, self.network(real_lr)])
        terms["adversarial"] = self.opponent.loss(fake)
        return Losses(content + options.weight * terms["adversarial"], terms, fake)


class SRStage:
    """Stage 2 for the training loop. `data` are pairs, or faces whose LR is bicubic; `real_lr` have no sharp face."""

    selection: tuple[str, str] = ("psnr_rgb", "max")
    phase: str = PIXEL

    @classmethod
    def load(cls, config: TrainSRConfig, progress: bool) -> Self:
        """Read the pairs or faces that a config names.

        Raises:
            UsageError: nothing usable there, or too little.
        """
        watched, real_lr = None, None
        if config.lr:
            real_lr = load_training_faces(config, config.lr, REAL_LR, sharp=False, progress=progress)
        if config.watch:
            watched = load_watched_pairs(config, config.watch, progress=progress)
        if config.pairs:
            return cls(config, load_training_pairs(config, config.pairs, HR, progress=progress), real_lr, watched)
        assert config.hr is not None
        faces = load_training_faces(config, config.hr, HR, sharp=True, progress=progress)
        return cls(config, faces, real_lr, watched)

    def __init__(
        self,
        config: TrainSRConfig,
        data: PairSet | FaceSet | Streamed,
        real_lr: FaceSet | Streamed | None = None,
        watched: PairSet | None = None,
    ):
        self.config = config
        kind, hash_ = "pairs" if config.pairs else "hr", data.hash[:16]
        self.facts: dict[str, Any] = {"data_hash": hash_, f"{kind}_hash": hash_, f"n_{kind}": len(data)} | data.counts
        self.train: TrainingImages = data.subset("train")
        self.held_hr, held_lr = _hr_lr(data.subset("val").first(config.validation_images))
        if len(self.train) < config.images_per_update or len(self.held_hr) < 1:
            raise UsageError(
                f"{config.pairs or config.hr}: {len(self.train)} faces to train on and {len(self.held_hr)} held out "
                f"(10 %, unless their shards say otherwise), but --batch-size is {config.images_per_update}: give more "
                "faces or a smaller batch"
            )
        self.held_lr = resize(self.held_hr, config.lr_size) if held_lr is None else held_lr
        _require_sizes(config, config.pairs, self.held_hr, self.held_lr)
        self.watched: tuple[torch.Tensor, torch.Tensor] | None = None
        if watched is not None:
            found = watched.first(config.validation_images)
            self.watched = found["hr"], found["lr"]
            _require_sizes(config, config.watch, *self.watched)
            self.facts |= {"watch_hash": watched.hash[:16], "n_watch": len(self.watched[0])}
        self.real_lr: TrainingImages | None = None
        if real_lr is not None:
            self.real_lr = real_lr.subset("train")
            self.facts |= {"lr_hash": real_lr.hash[:16], "n_lr": len(real_lr)}
            if not len(self.real_lr):
                raise UsageError(
                    f"{config.lr}: no face left to train on (90 %, unless their shards say otherwise): give more"
                )
        self.images = {"images": data.hash[:16], "order of images (--cache)": order_of(hr=self.train, lr=self.real_lr)}
        self.images |= {} if real_lr is None else {"real LR images": real_lr.hash[:16]}
        self.steps_per_epoch = -(-len(self.train) // config.images_per_update)
        torch.manual_seed(config.seed)
        network = build_sr(config.model, config.scale, **config.network_options)
        if config.init_from:
            self.facts["init_from_sha256"] = start_from(network, config)
        self.networks = nn.ModuleDict({"main": network})
        groups = network.parameter_groups(config.rate)
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "main": build_optimiser(config.optimiser, groups, config.rate)
        }
        pixel = PixelLoss(config.pixel_loss, on_luma=network.on_luma)
        self.opponent: Opponent | None = None
        features = None
        if config.adversarial.weight:
            self.selection = ("psnr_rgb", "last")  # what a discriminator is for costs PSNR
            side = config.scale * config.lr_side
            self.opponent = add_discriminator(network, side, config, self.networks, self.optimisers)
            features = self._features(data.subset("train")) if config.adversarial.perceptual_weight else None
        self.objective: nn.Module = SRObjective(network, pixel, features, self.opponent)
        self.batches = Ahead(lambda step: (*self._batch(step), self._real_lr(step)))

    def _features(self, faces: ImageSet | Windows) -> FeatureNetwork:
        """The perceptual loss's, at the size of the faces."""
        options = self.config.adversarial
        features = build_features(options.network, (options.layer,), self.config.perceptual_weights, min_size=1)
        if options.feature_scale:
            features.rms.fill_(options.feature_scale)
        else:
            features.calibrate(to_float(_hr_lr(faces.first(64))[0]))
        return features

    def prepare(self, context: Context, compute: ComputeConfig) -> None:
        self.context = context
        self.train = on_device(self.train, context.device, self.config.cache_on_gpu)
        if self.real_lr is not None:
            self.real_lr = on_device(self.real_lr, context.device, self.config.cache_on_gpu)
        self.objective = context.prepare(compiled(self.objective, compute))
        if self.opponent is not None:
            self.opponent.prepare(context, compute)

    def step(self, step: int, update: Update) -> dict[str, torch.Tensor]:
        lr, hr, real_lr = self.batches(step)
        pretrained = update.progress >= self.config.adversarial.pretrain
        if self.phase == PIXEL and self.opponent is not None and pretrained:
            self.phase = ADVERSARIAL  # for good: a resumed run may be longer, and its progress smaller
            self.optimisers["main"].state.clear()  # as if with a new Adam
        if self.phase == PIXEL:
            return update.minimise(self.objective, lr, hr, by=["main"])[0]
        assert self.opponent is not None
        return adversarial_step(update, self.objective, (lr, hr, real_lr, True), hr, self.opponent)

    @property
    def waited(self) -> float:
        return self.batches.waited

    def close(self) -> None:
        self.batches.close(self.train, self.real_lr)

    def _ranks(self) -> dict[str, int]:
        return {"seed": self.config.seed, "rank": self.context.rank, "world_size": self.context.world_size}

    def _batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        c, ranks = self.config, self._ranks()
        hr, lr = _hr_lr(take(self.train, c.images_per_update, step, stream=HR, **ranks))
        lr = resize(hr, c.lr_size) if lr is None else lr
        if c.lr_side < c.lr_size:
            place = self._place("", step)
            hr = cropped(hr, c.scale * c.lr_side, place, c.scale)
            lr = cropped(lr, c.lr_side, place)
        flip = draws("flip", c.images_per_update, step, **ranks)
        hr, lr = mirrored(hr, flip), mirrored(lr, flip)
        if c.rotate:
            turn = draws("turn", c.images_per_update, step, **ranks)
            hr, lr = turned(hr, turn), turned(lr, turn)
        return to_float(to_device(lr, self.context.device)), to_float(to_device(hr, self.context.device))

    def _real_lr(self, step: int) -> torch.Tensor | None:
        if self.real_lr is None:
            return None
        c = self.config
        real_lr = take(self.real_lr, c.images_per_update, step, stream=REAL_LR, **self._ranks())["image"]
        if c.lr_side < c.lr_size:
            real_lr = cropped(real_lr, c.lr_side, self._place("real ", step))
        return to_float(to_device(real_lr, self.context.device))

    def _place(self, what: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the crops of a step lie, as fractions."""
        size, ranks = self.config.images_per_update, self._ranks()
        return draws(f"{what}top", size, step, **ranks), draws(f"{what}left", size, step, **ranks)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """psnr_rgb and psnr_y in dB on held-out faces, with the LR kind of the training set; psnr_rgb and ssim_y on the
        watched pairs, where there are some."""
        assert isinstance(network, Network)
        sr = super_resolve(network.eval(), self.held_lr)
        values = {
            "psnr_rgb": float(psnr(sr, self.held_hr).mean()),
            "psnr_y": float(psnr(sr, self.held_hr, colour="y").mean()),
        }
        if self.watched is not None:
            hr, lr = self.watched
            sr = super_resolve(network, lr)
            values[f"{WATCH}psnr_rgb"] = float(psnr(sr, hr).mean())
            values[f"{WATCH}ssim_y"] = float(ssim(sr, hr, colour="y").mean())
        return values | network.diagnostics()

    def picture(self, network: nn.Module) -> np.ndarray:
        """Rows: LR, bicubic, super-resolved, sharp face."""
        lr, hr = self.held_lr[:12], self.held_hr[:12]
        sr = super_resolve(network.eval(), lr)
        return grid([lr, resize(lr, self.config.hr_size), sr, hr], cell=96)


def start_from(network: nn.Module, config: TrainSRConfig) -> str:
    """Take over every weight from a trained model of the same method and options; at another scale, those that fit.
    Returns its digest.

    Raises:
        UsageError: another method, or other options.
    """
    assert config.init_from is not None
    given = store.load_model(config.init_from, "sr")
    if given.name != config.model:
        raise UsageError(f"--init-from {config.init_from}: is a {given.name} model, not {config.model}")
    if given.network.config != network.config:
        raise UsageError(
            f"--init-from {config.init_from}: has other options ({given.network.config}) than this network "
            f"({network.config}): give the same"
        )
    own = network.state_dict()
    fitting = {k: v for k, v in given.network.state_dict().items() if k in own and own[k].shape == v.shape}
    network.load_state_dict(fitting, strict=False)
    if fresh := sorted(own.keys() - fitting.keys()):  # the upsampler of another scale
        print(f"{config.init_from}: {len(fitting)} of {len(own)} tensors fit; fresh are {', '.join(fresh)}", flush=True)
    return given.digest


def _require_sizes(config: TrainSRConfig, uri: str | None, hr: torch.Tensor, lr: torch.Tensor) -> None:
    if (lr.shape[-1], hr.shape[-1]) != (config.lr_size, config.hr_size):
        raise UsageError(
            f"{uri}: pairs are {lr.shape[-1]} -> {hr.shape[-1]} px, but --hr-size {config.hr_size} and --scale "
            f"{config.scale} want {config.lr_size} -> {config.hr_size} px"
        )


def _hr_lr(images: Images) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of pairs, or of faces, which have no LR."""
    return (images["hr"], images["lr"]) if "hr" in images else (images["image"], None)
