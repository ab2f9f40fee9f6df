"""HR faces + any degrader -> pair shards, on Ray Data with a pool of model actors."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import ray
import ray.data
import torch
from pydantic import Field, model_validator

from facelab.cluster import READER_CPUS, require_room
from facelab.config import JobConfig, Uri, model_uri
from facelab.data import shards
from facelab.data.tensors import FaceSet, image_files, is_shard_set, load_faces, read_face
from facelab.errors import UsageError
from facelab.images import BadImage, encode_png, to_float, to_uint8, training_image
from facelab.seeding import generator_for, seed_for
from facelab.synthesis.classical import degrade_classically
from facelab.trained import store
from facelab.trained.apply import in_fixed_batches
from models.network import DegraderNetwork
from models.resize import resize

BUILT_IN = ("bicubic", "classical")
"""Degraders without weights."""


class SynthesizeConfig(JobConfig):
    """Degrade sharp faces realistically: write pair shards (hr, lr, provenance)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 16},
        "demo": {"rows_per_shard": 128, "actors": 2},
        "paper": {},
    }

    hr: Uri
    """URI of sharp faces: face shards or a folder of images."""
    lr: Uri | None = None
    """URI of real low-resolution faces, the style bank of a styleVAE. Needed by --style-mode bank."""
    degrader: Annotated[str, model_uri(*BUILT_IN)]
    """`bicubic`; `classical` (random blur, resize, noise and JPEG, twice); or the URI of a trained degrader: the
    --output of train_degrader, or models:/NAME/VERSION."""
    variants: int = Field(default=1, ge=1)
    """LR images per HR face; each has its own style."""
    style_mode: Literal["bank", "prior"] = "bank"
    """Of a styleVAE. bank: the style of a real LR face drawn from --lr; prior: z ~ N(0, I)."""
    hr_size: int = Field(default=64, ge=16)
    """Side of the sharp faces, px."""
    scale: int = Field(default=4, ge=2)
    """LR side = hr_size / scale; a trained degrader fixes it."""
    actors: int = Field(default=1, ge=1)
    """Model actors working at the same time; the pairs do not depend on it."""
    cpus_per_actor: float = Field(default=0.5, gt=0)
    """CPUs reserved per actor; below 1, several share a core."""
    gpus_per_actor: float = Field(default=0, ge=0)
    """GPUs reserved per actor; may be a fraction."""
    rows_per_shard: int = Field(default=1000, ge=1)
    """Faces read and written by one task."""
    overwrite: bool = False
    """Replace a finished shard set at --output."""

    @model_validator(mode="after")
    def _fits(self):
        if self.hr_size % self.scale:
            raise ValueError(f"hr_size {self.hr_size} is no multiple of scale {self.scale}")
        if self.output in (self.hr, self.lr):
            raise ValueError("output must not be one of the inputs, which it would replace")
        return self

    def check_output(self) -> None:
        super().check_output()
        shards.refuse_finished(self.output, self.overwrite)


def synthesize(config: SynthesizeConfig) -> dict[str, Any]:
    """Run the job; returns its summary.

    Raises:
        UsageError: unusable inputs, or a degrader made for other sizes.
    """
    require_room(config.actors, config.cpus_per_actor)
    degrader = Degrader.load(config)
    faces = _faces(config)
    shards.start_set(config.output, config.overwrite)
    shared = ray.put(degrader)  # read once, not by every actor
    results = faces.map_batches(
        PairWriter,
        batch_size=config.rows_per_shard,
        compute=ray.data.ActorPoolStrategy(size=config.actors),
        num_cpus=config.cpus_per_actor,
        num_gpus=config.gpus_per_actor,
        fn_constructor_args=(shared,),
    ).take_all()

    rejected = [row for result in results for row in result["rejected"]]
    summaries = [shards.ShardSummary(r["rows"], r["row_hash"]) for r in results if r["rows"]]
    if not summaries:
        reason = f": the first: {rejected[0]}" if rejected else ""
        raise UsageError(f"{config.hr}: no usable face{reason}")
    details = {"degrader": degrader.name, "style_mode": degrader.style_mode, "seed": config.seed}
    details |= {
        "variants": config.variants,
        "hr_size": config.hr_size,
        "scale": config.scale,
        "rejected": len(rejected),
    }
    manifest = shards.finish_set(config.output, "pairs", summaries, details)
    return {"n": manifest.rows, "n_rejected": len(rejected), "data_hash": manifest.hash, "model": degrader.name}


def _faces(config: SynthesizeConfig) -> ray.data.Dataset:
    """Rows with id, image, sha256 and, for files that cannot be used, the reason.

    Shards and files are fetched by our own reader: ray.data.read_parquet plans whole CPUs for listing and reading.
    """
    if is_shard_set(config.hr, "faces"):
        items, per_task = [{"name": "", "uri": uri} for uri in shards.shard_uris(config.hr)], 1
    else:
        items = [{"name": name, "uri": uri} for name, uri in image_files(config.hr)]
        per_task = config.rows_per_shard
    blocks = -(-len(items) // per_task)
    return ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        _read,  # pyrefly: ignore
        batch_size=per_task,
        num_cpus=READER_CPUS,
        fn_kwargs={"source": config.hr},
    )


def _read(batch: dict[str, np.ndarray], source: str) -> dict[str, list]:
    rows: dict[str, list] = {"id": [], "image": [], "sha256": [], "rejected": []}

    def add(row: dict[str, Any], rejected: str = "") -> None:
        for key, value in (row | {"rejected": rejected}).items():
            if key in rows:
                rows[key].append(value)

    for name, uri in zip(batch["name"], batch["uri"], strict=True):
        if not name:
            for row in shards.read_shard(uri, ["id", "image", "sha256"]):
                add(row)
            continue
        try:
            add(read_face(name, uri, source))
        except BadImage as error:
            add({"id": name, "image": b"", "sha256": ""}, str(error))
    return rows


@dataclass(frozen=True)
class Degrader:
    """Everything that a pair depends on besides its HR face: what an actor holds."""

    config: SynthesizeConfig
    model: store.TrainedModel | None
    bank: FaceSet | None

    @classmethod
    def load(cls, config: SynthesizeConfig) -> "Degrader":
        """Read the model and the style bank.

        Raises:
            UsageError: unusable, or trained for other sizes.
        """
        if config.degrader in BUILT_IN:
            return cls(config, None, None)
        model = store.load_model(config.degrader, "degrader")
        assert isinstance(model.network, DegraderNetwork)
        if (model.scale, model.hr_size) != (config.scale, config.hr_size):
            raise UsageError(
                f"{config.degrader}: trained for --hr-size {model.hr_size} --scale {model.scale}, "
                f"not {config.hr_size} and {config.scale}"
            )
        bank = None
        if model.network.uses_style and config.style_mode == "bank":
            if config.lr is None:
                raise UsageError(
                    f"{config.degrader}: --style-mode bank needs --lr, the real low-resolution faces of the styles"
                )
            bank = load_faces(config.lr, config.hr_size // config.scale)
        return cls(config, model, bank)

    @property
    def name(self) -> str:
        """Name and weight hash, as in every pair's provenance."""
        return f"{self.model.name}@{self.model.digest[:16]}" if self.model else self.config.degrader

    @property
    def style_mode(self) -> str:
        network = self.model.network if self.model else None
        return self.config.style_mode if isinstance(network, DegraderNetwork) and network.uses_style else "none"

    def degrade(self, hr: torch.Tensor, digests: list[str], variant: int) -> tuple[torch.Tensor, list[list[str]]]:
        """One variant of each face: (B, 3, H, W) uint8 and its digests -> LR (B, 3, h, w) uint8, style ids.

        Each image's style and noise are keyed by (seed, its digest, variant): neither batch nor worker matters.
        """
        if self.config.degrader == "bicubic":
            return resize(hr, self.config.hr_size // self.config.scale), [[] for _ in digests]
        if self.config.degrader == "classical":
            low = [self._classical(face, digest, variant) for face, digest in zip(hr, digests, strict=True)]
            return torch.stack(low), [[] for _ in digests]
        chosen = [self._style_of(digest, variant) for digest in digests]
        lr = self._forward(hr, digests, chosen, variant)
        ids = [[] if index is None else [self.bank.ids[index]] for index in chosen] if self.bank else [[] for _ in hr]
        return lr, ids

    def _style_of(self, digest: str, variant: int) -> int | None:
        return None if self.bank is None else seed_for(self.config.seed, "style", digest, variant) % len(self.bank)

    def _classical(self, face: torch.Tensor, digest: str, variant: int) -> torch.Tensor:
        rng = np.random.default_rng(seed_for(self.config.seed, "classical", digest, variant))
        low = degrade_classically(face.permute(1, 2, 0).numpy(), self.config.scale, rng)
        return torch.from_numpy(low).permute(2, 0, 1)

    @torch.no_grad()
    def _forward(self, hr: torch.Tensor, digests: list[str], chosen: list[int | None], variant: int) -> torch.Tensor:
        assert self.model is not None
        network = self.model.network
        assert isinstance(network, DegraderNetwork)
        device = next(network.parameters()).device
        generators = [generator_for(self.config.seed, "noise", digest, variant) for digest in digests]
        noise = torch.stack([torch.randn(network.noise_dim, generator=generator) for generator in generators])
        style = [] if self.bank is None else [self.bank.images[chosen]]

        def degrade(faces: torch.Tensor, z: torch.Tensor, *styles: torch.Tensor) -> torch.Tensor:
            given = to_float(styles[0].to(device)) if styles else None
            return to_uint8(network.degrade(to_float(faces.to(device)), z.to(device), given))

        return in_fixed_batches(degrade, hr, noise, *style)


class PairWriter:
    """A Ray actor: a batch of faces -> one shard of pairs; returns what it wrote."""

    def __init__(self, shared: ray.ObjectRef):
        degrader: Degrader = ray.get(shared)
        # The number of threads changes the last bits of sums: the same on every actor and machine.
        torch.set_num_threads(1)
        self.config, self.degrader = degrader.config, degrader
        if self.config.gpus_per_actor and degrader.model:
            degrader.model.network.cuda()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        ids, digests, images, rejected = [], [], [], []
        for identifier, data, digest, fault in zip(
            batch["id"], batch["image"], batch["sha256"], batch["rejected"], strict=True
        ):
            try:
                if fault:
                    raise BadImage(fault)
                images.append(training_image(data, self.config.hr_size))
            except BadImage as error:
                rejected.append(f"{identifier}: {error}")
            else:
                ids.append(str(identifier))
                digests.append(str(digest))
        summary = shards.ShardSummary(0, "0")
        if ids:
            rows = self._pairs(ids, digests, torch.stack(images))
            summary = shards.write_shard(self.config.output, rows, shards.PAIR_SCHEMA)
        return {"rows": [summary.rows], "row_hash": [summary.row_hash], "rejected": [rejected]}

    def _pairs(self, ids: list[str], digests: list[str], hr: torch.Tensor) -> list[dict[str, Any]]:
        degrader = self.degrader
        encoded = [encode_png(image) for image in hr]
        rows = []
        for variant in range(self.config.variants):
            lr, style_ids = degrader.degrade(hr, digests, variant)
            for i, identifier in enumerate(ids):
                rows.append(
                    dict(
                        id=f"{identifier}#{variant}",
                        hr_id=identifier,
                        variant=variant,
                        hr=encoded[i],
                        lr=encode_png(lr[i]),
                        style_mode=degrader.style_mode,
                        style_ids=style_ids[i],
                        style_bank=degrader.bank.hash if degrader.bank else "",
                        seed=self.config.seed,
                        model=degrader.name,
                    )
                )
        return rows
