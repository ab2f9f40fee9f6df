"""Settings that the training of every network shares."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import nn

from facelab import storage
from facelab.config import Config, flatten
from facelab.data.cache import Cache, default_folder
from facelab.data.faces import FacesConfig
from facelab.errors import UsageError
from facelab.trained import checkpoint
from models.network import Network
from models.recipe import Adversarial, Optimiser, Recipe


class ComputeConfig(Config):
    """How the arithmetic is done. Speed only: the mathematics is the same."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, or fp16 with a loss scale, runs the forward pass under autocast (GPUs; slower than fp32 on CPUs); critical
    losses stay fp32."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a worker cuts its share of a batch into, one after another, where it does not fit in memory at once.
    Batch norm sees a part at a time."""
    channels_last: bool = False
    """NHWC memory layout of the networks: faster convolutions on GPUs with tensor cores."""
    compile: bool = False
    """torch.compile the objectives; on CPU that needs a C++ compiler, without which they run as they are."""
    gpu: bool | None = None
    """Train on GPUs, one per Ray worker. None: if there are enough now; a cluster that grows when it is asked has to be
    asked."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs reserved per Ray worker, and its number of threads."""
    max_failures: int = Field(default=2, ge=0)
    """Restarts from the newest checkpoint after a worker or node was lost, that bring no newer one: while a training
    gets on, any number is survived."""


def compiled(module: nn.Module, compute: ComputeConfig) -> nn.Module:
    """`module`, compiled if asked for and if this machine can; said where it cannot."""
    if compute.compile:
        if torch.cuda.is_available() or shutil.which(os.environ.get("CXX", "g++")):
            module.compile()
        else:
            print("--compute.compile: no C++ compiler here (g++ or $CXX), running uncompiled", file=sys.stderr)
    return module


def _local(path: str) -> str:
    place = storage.normalise(path)
    if place.startswith("s3://"):
        raise ValueError(f"{path}: a folder on each node's own disk is wanted here")
    return place


class TrainConfig(FacesConfig):
    """What train_degrader and train_sr have in common."""

    kind: ClassVar[str]
    """"sr" or "degrader": what is trained."""
    model: str
    """The network to train."""
    workers: int = Field(default=0, ge=0)
    """Ray Train workers; 0 trains in the process itself, without Ray."""
    min_workers: int | None = Field(default=None, ge=1)
    """Also train with fewer workers, down to so many, while the cluster has no room for more; batch and rate stay."""
    epochs: int | None = Field(default=None, ge=1)
    """Passes over the training faces."""
    max_steps: int | None = Field(default=None, ge=1)
    """Stop after so many updates; the end is where the first of the two is reached."""
    batch_size: int = Field(default=16, ge=2)
    """Images per update, of all workers together, however many there are; a multiple of their number."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """At the start, of that batch; see optimiser.decay_at."""
    batch_per_worker: int | None = Field(default=None, ge=1)
    """Instead of batch_size: images per update of each of --workers. The learning rate is then multiplied by what the
    batch grew by, for SGD (Goyal et al., 1706.02677), or by its root, for Adam (Malladi et al., 2205.10287)."""
    optimiser: Optimiser = Optimiser()
    """Update rule and schedule."""
    adversarial: Adversarial = Adversarial()
    """Discriminator and perceptual loss, for srgan, bulat and attentive."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Moving average of the weights, which is what is validated and kept; 0 keeps the raw weights."""
    max_skipped: float = Field(default=0.01, ge=0, lt=1)
    """Share of some hundred updates whose gradient may be inf or nan, which are not made; with more than that, and than
    five, the training fails; one of a few updates, with more than half of them."""
    redraw: int = Field(default=0, ge=0)
    """Another number draws other noise, from where --resume goes on."""
    checkpoint_minutes: float = Field(default=5, gt=0)
    """Between checkpoints; each is written while the training goes on. The last step makes one, and so does the notice
    that a machine will be taken away."""
    checkpoint_every: int | None = Field(default=None, ge=1)
    """Also every so many steps."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Older ones are deleted; the best network so far is kept beside them."""
    validation_images: int = Field(default=512, ge=2)
    """At most so many held-out images choose the best epoch; of watched pairs, as many are looked at."""
    resume: bool = False
    """Go on from the newest checkpoint below --output, if there is one; without it, such an --output is refused."""
    cache: float = Field(default=100, gt=0)
    """GiB that the decoded images of a set may take on a node's disk. Shards that need more are read in windows of a
    third of it, whose size decides the order of the images: --resume wants the same."""
    cache_folder: Annotated[str, AfterValidator(_local)] | None = None
    """Where they lie, on each node: a disk of its own, shared by the workers on it. Default: facelab in $XDG_CACHE_HOME
    or ~/.cache. Sets not in use are deleted, the longest unused first, when all would take more than --cache."""
    cache_on_gpu: float = Field(default=0, ge=0)
    """GiB that the training images of a set may take in the memory of each GPU; a larger set stays on the disk."""
    register_as: str | None = None
    """Name in the MLflow model registry; default facelab-NETWORK."""
    compute: ComputeConfig = ComputeConfig()
    """Precision, memory layout, resources."""

    KEEPS_RUN = True
    OPERATIONAL = FacesConfig.OPERATIONAL | {
        "resume", "register_as", "min_workers", "checkpoint_minutes", "checkpoint_every", "keep_checkpoints",
        "cache_folder", "cache_on_gpu", "compute.max_failures", "compute.cpus_per_worker", "compute.gpu",
    }  # fmt: skip
    WRITES = (*FacesConfig.WRITES, "run.json", "training.json", "model/model.json", "model/model.safetensors")
    NETWORKS: ClassVar[Mapping[str, type[Network]]]
    """What `model` may name: networks with recipes and presets."""

    def settings(self) -> dict[str, Any]:
        """Without the options of networks that are not trained, and of a discriminator that is not there."""
        unused = self.NETWORKS.keys() - {self.model} | (set() if self.adversarial.weight else {"adversarial"})
        return {name: value for name, value in super().settings().items() if name.partition(".")[0] not in unused}

    @classmethod
    def preset_options(cls, preset: str, values: dict[str, Any]) -> dict[str, Any]:
        """The recipe of the chosen network, its authors' for `paper`, the small one for others; above it what the
        networks have of the preset, and what the job has."""
        options: dict[str, Any] = {}
        if (network := cls.NETWORKS.get(str(values.get("model") or cls.model_fields["model"].default))) is not None:
            recipe: Recipe = network.paper_recipe if preset == "paper" else network.mini_recipe
            options = {k: v for k, v in flatten(dataclasses.asdict(recipe)).items() if v is not None}
        for each in cls.NETWORKS.values():
            options |= each.presets.get(preset, {})
        return options | super().preset_options(preset, values)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.scale not in self.NETWORKS[self.model].scales:
            choices = ", ".join(map(str, self.NETWORKS[self.model].scales))
            raise ValueError(f"scale {self.scale}: {self.model} has {choices}")
        return super()._sizes_fit()  # pyrefly: ignore  (a validator is still a method)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.epochs is None and self.max_steps is None:
            raise ValueError("give --epochs or --max-steps")
        if self.adversarial.weight and not self.NETWORKS[self.model].has_discriminator:
            raise ValueError(f"adversarial.weight: {self.model} has no discriminator to train against")
        most = max(self.workers, 1)
        if (self.min_workers or 1) > most:
            raise ValueError(f"min_workers {self.min_workers} is more than --workers {self.workers}")
        for count in range(self.min_workers or most, most + 1):
            if self.images_per_update % (count * self.compute.accumulate):
                raise ValueError(
                    f"batch_size {self.images_per_update} is no multiple of {count} workers x "
                    f"{self.compute.accumulate} parts (compute.accumulate)"
                )
        return self

    def check_output(self) -> None:
        super().check_output()
        if self.resume:
            return
        if started := checkpoint.newest_step(self.checkpoints):
            raise UsageError(
                f"{self.output}: has checkpoints up to step {started}: pass --resume to go on, or another --output"
            )

    @property
    def checkpoints(self) -> str:
        """Where they lie."""
        return storage.join(self.output, "checkpoints")

    @property
    def images_per_update(self) -> int:
        """Of all workers together, however many there are."""
        return self.batch_size if self.batch_per_worker is None else self.batch_per_worker * max(self.workers, 1)

    @property
    def rate(self) -> float:
        """The learning rate at the start, of such a batch."""
        grown = self.images_per_update / self.batch_size
        return self.learning_rate * (grown if self.optimiser.name == "sgd" else grown**0.5)

    @property
    def resumes(self) -> bool:
        return self.resume

    @property
    def image_cache(self) -> Cache:
        """Of the node that asks."""
        return Cache(Path(self.cache_folder or default_folder()), int(self.cache * 2**30))

    def inputs(self) -> list[tuple[str, str]]:
        """(URI, kind of shards) of what is trained on."""
        raise NotImplementedError

    def watched(self) -> list[tuple[str, str]]:
        """The same of what is only looked at."""
        return []

    @property
    def registry_name(self) -> str:
        """In the MLflow model registry, unless register_as names another."""
        return f"facelab-{self.model}"

    @property
    def network_options(self) -> dict[str, Any]:
        """Of the chosen network."""
        return vars(getattr(self, self.model))
