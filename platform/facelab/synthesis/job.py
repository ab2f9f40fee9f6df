"""Sharp faces + any degrader -> pair shards with provenance."""

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from facelab.config import REGISTRY, ActorConfig, Uri, uri_or
from facelab.data import shards
from facelab.data.faces import FacesConfig, require_usable, training_face
from facelab.data.source import Row, find, read
from facelab.data.tensors import load_faces_for
from facelab.data.work import fill_with_model
from facelab.errors import UsageError
from facelab.images import BadImage, encode_png
from facelab.job import Job
from facelab.synthesis.classical import Classical
from facelab.synthesis.degrader import Bicubic, Degrader
from facelab.synthesis.learnt import Learnt
from facelab.trained import store
from models.network import DegraderNetwork

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun

BUILT_IN: dict[str, type[Degrader]] = {"bicubic": Bicubic, "classical": Classical}
"""Degraders without weights."""


class SynthesizeConfig(FacesConfig, ActorConfig):
    """Degrade sharp faces realistically: write pair shards (hr, lr, provenance)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 16},
        "demo": {"rows_per_shard": 128, "actors": 2},
        "paper": {},
    }

    WRITES = (*FacesConfig.WRITES, "manifest.json", "rejected.parquet")

    hr: Uri
    """URI of sharp faces: face shards or a folder of images."""
    lr: Uri | None = None
    """URI of real low-resolution faces, the style bank of a styleVAE. Needed by --style-mode bank."""
    degrader: Annotated[str, uri_or(REGISTRY, *BUILT_IN)]
    """`bicubic`; `classical` (random blur, resize, noise and JPEG, twice); or the URI of a trained degrader: the
    --output of train_degrader, or models:/NAME/VERSION."""
    variants: int = Field(default=1, ge=1)
    """LR images per HR face; each has its own style."""
    style_mode: Literal["bank", "prior"] = "bank"
    """Of a styleVAE. bank: the style of a real LR face drawn from --lr; prior: z ~ N(0, I)."""
    scale: int = Field(default=4, ge=2)
    """LR side = hr_size / scale; a trained degrader fixes it."""
    rows_per_shard: int = Field(default=1000, ge=1)
    """Files of a folder read and written by one task; of face shards, each is one task."""
    overwrite: bool = False
    """Replace a finished shard set at --output."""

    def check_output(self) -> None:
        super().check_output()
        shards.refuse_finished(self.output, self.overwrite)


def synthesize(config: SynthesizeConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job; returns its summary.

    Raises:
        UsageError: unusable inputs, or a degrader made for other sizes.
    """
    degrader = load_degrader(config, run)
    source = find(config.hr, "faces")
    units, reader = source.units(config.rows_per_shard), partial(read, columns=("id", "image", "split", "sha256"))
    maker = PairMaker(degrader, config.hr_size, config.variants, config.least_side(config.hr_size, sharp=True))
    fill_with_model(config.output, shards.PAIR_SCHEMA, units, reader, maker, config, overwrite=config.overwrite)
    totals = shards.settle(config.output, [unit.name for unit in units])
    read_rows = totals.rows // config.variants + totals.rejected
    shards.require_rows(config.hr, source.kind, read_rows, source.rows)
    require_usable(config.hr, totals.rejected, source.rows, totals.first, config.max_rejected)
    details = {
        "degrader": degrader.name,
        "style_mode": degrader.style_mode,
        "seed": config.seed,
        "variants": config.variants,
        "hr_size": config.hr_size,
        "scale": config.scale,
        "rejected": totals.rejected,
    }
    manifest = shards.finish_set(config.output, "pairs", totals, details)
    counts = {"n": manifest.rows, "n_rejected": totals.rejected, "n_enlarged": totals.enlarged}
    return counts | {"data_hash": manifest.hash, "model": degrader.name}


def load_degrader(config: SynthesizeConfig, run: "JobRun | None" = None) -> Degrader:
    """What --degrader names, with its style bank; a models:/ URI is resolved by the run.

    Raises:
        UsageError: unusable, or trained for other sizes.
    """
    if config.degrader in BUILT_IN:
        return BUILT_IN[config.degrader](config.scale, config.seed)
    with run.model_folder(config.degrader) if run else nullcontext(config.degrader) as place:
        model = store.load_model(place, "degrader")
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
        bank = load_faces_for(config, config.lr, sharp=False)
    return Learnt(model, config.seed, bank)


class PairMaker:
    """Rows of sharp faces -> rows of pairs: what an actor does with a unit."""

    def __init__(self, degrader: Degrader, hr_size: int, variants: int, least_side: int):
        self.degrader, self.hr_size, self.variants, self.least_side = degrader, hr_size, variants, least_side

    def to(self, device: torch.device) -> "PairMaker":
        self.degrader.to(device)
        return self

    def __call__(self, rows: list[Row]) -> list[Row]:
        usable, images, made = [], [], []
        for row in rows:
            reason = row["rejected"]
            try:
                if not reason:
                    image, enlarged = training_face(row["image"], self.hr_size, self.least_side)
                    images.append(image)
                    usable.append(row | {"enlarged": enlarged})
            except BadImage as error:
                reason = str(error)
            if reason:
                made.append({"id": row["id"], "rejected": reason})
        return made + (self._pairs(usable, torch.stack(images)) if usable else [])

    def _pairs(self, faces: list[Row], hr: torch.Tensor) -> list[Row]:
        encoded = [encode_png(image) for image in hr]
        rows = []
        for variant in range(self.variants):
            lr, style_ids = self.degrader.degrade(hr, [face["sha256"] for face in faces], variant)
            side = self.hr_size // self.degrader.scale
            assert (lr.shape, lr.dtype) == ((len(faces), 3, side, side), torch.uint8), self.degrader.name
            for i, face in enumerate(faces):
                rows.append(
                    dict(
                        id=f"{face['id']}#{variant}",
                        hr_id=face["id"],
                        variant=variant,
                        hr=encoded[i],
                        lr=encode_png(lr[i]),
                        style_mode=self.degrader.style_mode,
                        style_ids=style_ids[i],
                        style_bank=self.degrader.style_bank,
                        seed=self.degrader.seed,
                        model=self.degrader.name,
                        split=face["split"],
                        enlarged=face["enlarged"],
                        rejected="",
                    )
                )
        return rows


def synthesize_plan(config: SynthesizeConfig) -> str:
    return (
        f"degrade the faces of {config.hr} with {config.degrader}, {config.variants} LR each, by "
        f"{config.actors} actors; "
        f"write pair shards to {config.output}"
    )


SYNTHESIZE = Job("synthesize", SynthesizeConfig, synthesize, synthesize_plan)
