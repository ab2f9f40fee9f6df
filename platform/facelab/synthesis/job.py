"""Sharp faces + any degrader -> pair shards with provenance."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from facelab import storage
from facelab.cluster import ray_session
from facelab.config import REGISTRY, ActorConfig, Uri, uri_or
from facelab.data import shards
from facelab.data.decoding import faces_of
from facelab.data.faces import FacesConfig, require_usable
from facelab.data.manifest import Manifest
from facelab.data.shard_set import SET_FILES, ShardSet, claimed, refuse_other
from facelab.data.source import Row, Source, Unit, find, kind_of, manifest_of, scan_images
from facelab.data.units import image_units, shard_units
from facelab.data.work import fill_here, fill_with_actors, require_actors
from facelab.errors import UsageError
from facelab.job import Job
from facelab.synthesis.classical import Classical
from facelab.synthesis.degrader import Bicubic, Degrader
from facelab.synthesis.learnt import Learnt
from facelab.synthesis.pairs import DegradeFaces, Faces, Origin, Variants, decode_faces, encode_pairs, read_faces
from facelab.synthesis.styles import StyleBank, encode_bank, load_bank, save_bank
from facelab.trained import store
from facelab.trained.apply import MICRO_BATCH
from models.network import DegraderNetwork
from models.stylevae import StyleVAE

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun

BUILT_IN: dict[str, type[Degrader]] = {"bicubic": Bicubic, "classical": Classical}
"""Degraders without weights."""


class PairsConfig(FacesConfig):
    """What decides pairs, and how many are written as one."""

    WRITES = (*FacesConfig.WRITES, "style_bank.parquet")

    hr: Uri
    """URI of sharp faces: face shards or a folder of images."""
    lr: Uri | None = None
    """URI of real low-resolution faces, the style bank of a styleVAE. Needed by every --style-mode but prior."""
    degrader: Annotated[str, uri_or(REGISTRY, *BUILT_IN)]
    """`bicubic`; `classical` (random blur, resize, noise and JPEG, twice); or the URI of a trained degrader: the
    --output of train_degrader, or models:/NAME/VERSION."""
    variants: int = Field(default=1, ge=1)
    """LR images per HR face; each has its own style."""
    style_mode: Literal["random", "nearest", "interpolated", "prior"] = "random"
    """Of a styleVAE. random: the style of any real LR face of --lr; nearest: of one that is about as bright as the
    sharp face; interpolated: between those of any two; prior: z of the prior, which is N(0, I) without a camera."""
    scale: int = Field(default=4, ge=2)
    """LR side = hr_size / scale; a trained degrader fixes it."""
    rows_per_shard: int = Field(default=1000, ge=1)
    """At most so many sharp faces are worked on, and written with their variants, as one shard; of face shards, whole
    ones are put together."""
    micro_batch: int = Field(default=MICRO_BATCH, ge=1)
    """Sharp faces that a trained degrader is given at a time, the last ones filled up. A GPU wants more; there, other
    sizes may round a pixel otherwise."""


class SynthesizeConfig(PairsConfig, ActorConfig):
    """Degrade sharp faces realistically: write pair shards (hr, lr, provenance)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 16, "actors": 0},
        "demo": {"rows_per_shard": 128, "actors": 2},
        "paper": {},
    }

    WRITES = (*PairsConfig.WRITES, *SET_FILES)

    overwrite: bool = False
    """Delete the shard set at --output, begun or finished, and write it anew."""

    def settings(self) -> dict[str, Any]:
        names = (
            "seed", "variants", "style_mode", "hr_size", "scale", "allow_enlarged", "rows_per_shard", "micro_batch",
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | self.places()

    def places(self) -> dict[str, str | None]:
        """Where the inputs are."""
        return {"hr": self.hr, "lr": self.lr, "degrader": self.degrader}

    def check_output(self) -> None:
        super().check_output()
        if not self.overwrite:
            refuse_other(self.output, self.settings())


def synthesize(config: SynthesizeConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job; returns its summary. What an interrupted run of the same settings committed is kept.

    Raises:
        UsageError: unusable inputs, or a degrader made for other sizes; at --output is a set of other settings, or one
            that another job is writing.
    """
    source = None if kind_of(config.hr, "faces") == "folder" else find(config.hr, "faces")
    if run and source:
        run.takes("hr", config.hr, source.hash, source.rows)
    if run and config.lr and (styles := manifest_of(config.lr, "faces")):
        run.takes("lr", config.lr, styles.hash, styles.rows)
    degrader = load_degrader(config, run)
    what = {"hr_hash": source.hash if source else "", "model": degrader.name, "style_bank": degrader.style_bank}
    with ray_session() if config.actors else nullcontext():
        if config.actors:
            require_actors(config, "a reader", "a writer")
        settings = config.settings() | what
        places = {name: settings.pop(name) for name in config.places()}
        with claimed(config.output, "pairs", settings, places, overwrite=config.overwrite) as target:
            manifest = target.finished() or _fill(config, target, source, degrader)
    return manifest.counts | {"data_hash": manifest.hash, "model": degrader.name}


def _fill(config: SynthesizeConfig, target: ShardSet, source: Source | None, degrader: Degrader) -> Manifest:
    """`source`: shards; None: a folder, which is listed."""
    if source is None:
        units = image_units(target, config.hr, scan_images(config.hr), config.rows_per_shard)
    else:
        units = shard_units(target, source, config.rows_per_shard)
    steps = Steps.of(config, degrader)
    if config.actors:
        fill_with_actors(target, units, steps.read, steps.degrade, steps.encode, config, row_bytes(config))
    else:
        fill_here(target, units, steps.read, steps.degrade, steps.encode)
    totals = target.totals([unit.name for unit in units])
    faces, wanted = totals.rows // config.variants + totals.rejected, sum(unit.rows for unit in units)
    shards.require_rows(config.hr, "faces", faces, wanted)
    require_usable(config.hr, totals.rejected, faces, totals.first, config.max_rejected)
    return target.finish(totals)


def row_bytes(config: PairsConfig) -> int:
    """Of a sharp face: its pixels, and its file, which is hardly larger."""
    return 2 * 3 * config.hr_size**2


@dataclass(frozen=True)
class Steps:
    """What becomes of the faces of a unit, step by step."""

    decode: Callable[[Iterable[Row]], Faces]
    degrade: DegradeFaces
    encode: Callable[[Variants], Iterable[Row]]

    @classmethod
    def of(cls, config: PairsConfig, degrader: Degrader) -> "Steps":
        size, least = config.hr_size, config.least_side(config.hr_size, sharp=True)
        decode = partial(decode_faces, hr_size=size, least_side=least)
        return cls(decode, DegradeFaces(degrader, config.variants), partial(encode_pairs, origin=Origin.of(degrader)))

    @property
    def read(self) -> Callable[[Unit], Faces]:
        """Holds no degrader: everyone who reads has a copy of it."""
        return partial(_read, decode=self.decode)


def _read(unit: Unit, decode: Callable[[Iterable[Row]], Faces]) -> Faces:
    return decode(read_faces(unit))


def load_degrader(config: PairsConfig, run: "JobRun | None" = None) -> Degrader:
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
    if not model.network.uses_style or config.style_mode == "prior":
        return Learnt(model, config.seed, config.micro_batch)
    if config.lr is None:
        raise UsageError(
            f"{config.degrader}: --style-mode {config.style_mode} needs --lr, the real LR faces of the styles"
        )
    return Learnt(model, config.seed, config.micro_batch, _style_bank(config, model), config.style_mode)


def _style_bank(config: PairsConfig, model: store.TrainedModel) -> StyleBank:
    """The codes of --lr, from an earlier run or encoded now and kept beside the pairs."""
    assert config.lr is not None
    assert isinstance(model.network, StyleVAE)
    faces = faces_of(config.lr, config.lr_size, config.least_side(config.lr_size, sharp=False))
    place, key = storage.join(config.output, "style_bank.parquet"), f"{faces.key} {model.digest}"
    if storage.exists(place) and (bank := load_bank(storage.read_bytes(place), key)):
        return bank
    bank = encode_bank(model.network, faces, config.max_rejected, progress=True)
    storage.write_bytes(place, save_bank(bank, key))
    return bank


def synthesize_plan(config: SynthesizeConfig) -> str:
    who = f"by {config.actors} actors" if config.actors else "in this process"
    return (
        f"degrade the faces of {config.hr} with {config.degrader}, {config.variants} LR each, {who}; "
        f"write pair shards to {config.output}"
    )


SYNTHESIZE = Job("synthesize", SynthesizeConfig, synthesize, synthesize_plan)
