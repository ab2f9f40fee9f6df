"""Images -> face shards: each becomes a row, or is set aside with its reason."""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from facelab.config import JobConfig, Uri, with_options
from facelab.data import shards
from facelab.data.copies import drop_copies
from facelab.data.faces import MIN_SIDE, require_side, require_usable
from facelab.data.manifest import Manifest
from facelab.data.recipes import RECIPES
from facelab.data.recipes.recipe import Recipe
from facelab.data.shard_set import SET_FILES, ShardSet, claimed, refuse_other
from facelab.data.source import Row, Unit, read
from facelab.data.units import image_units
from facelab.data.work import fill
from facelab.images import BadImage
from facelab.job import Job

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun


@with_options(**{name: recipe for name, recipe in RECIPES.items() if fields(recipe)})
class PrepareConfig(JobConfig):
    """Turn a dataset as it is published, or anybody's images, into face shards; bad files are set aside and counted."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 64},
        "demo": {"rows_per_shard": 256},
        "paper": {},
    }

    WRITES = (*JobConfig.WRITES, *SET_FILES)

    input: Uri
    """Folder or s3:// prefix of JPEG, PNG, WebP or BMP files, of archives of them, or of the dataset that --recipe
    names; or one archive. Subfolders are searched."""
    recipe: Literal[tuple(RECIPES)] = "folder"  # pyrefly: ignore
    """How the input is laid out, which docs/datasets.md shows. `folder` takes every image file below it, `zip`, `tar`,
    `webdataset` and `parquet` every image in such files; the others are datasets of the paper, with their options."""
    min_side: int = Field(default=MIN_SIDE, ge=1)
    """Faces whose shorter side has fewer px are rejected."""
    max_rejected: float = Field(default=0.5, ge=0, le=1)
    """Fail when more than this share of the files, copies aside, is rejected: something is wrong with the input as a
    whole."""
    rows_per_shard: int = Field(default=2000, ge=1)
    """At most so many images are read and written by one task, as one shard."""
    shard_mib: float = Field(default=128, gt=0)
    """Of so many MiB of image files at most."""
    overwrite: bool = False
    """Delete the shard set at --output, begun or finished, and write it anew."""

    def settings(self) -> dict[str, Any]:
        names = ("recipe", "min_side", "rows_per_shard", "shard_mib")
        options = {f"{self.recipe}.{name}": value for name, value in vars(self.layout()).items()}
        return {name: getattr(self, name) for name in names} | {"input": self.input} | options

    def layout(self) -> Recipe:
        """The recipe with the options given."""
        return getattr(self, self.recipe, None) or RECIPES[self.recipe]()

    def check_output(self) -> None:
        super().check_output()
        if not self.overwrite:
            refuse_other(self.output, self.settings())


def prepare(config: PrepareConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job; returns its summary. What an interrupted run of the same settings committed is kept.

    Raises:
        UsageError: no images, none usable, or too many rejected; at --output is a set of other settings, or one that
            another job is writing.
    """
    with claimed(config.output, "faces", config.settings(), {}, overwrite=config.overwrite) as target:
        manifest = target.finished() or _fill(config, target)
    return manifest.counts | {"data_hash": manifest.hash}


def _fill(config: PrepareConfig, target: ShardSet) -> Manifest:
    units = image_units(
        target, config.input, config.layout().find(config.input), config.rows_per_shard, config.shard_mib * 2**20
    )
    fill(target, units, partial(_faces, min_side=config.min_side))
    names = [unit.name for unit in units]
    drop_copies(target.uri, names)
    totals = target.totals(names)
    copies, small = totals.reasons["copy"], "lower --min-side (jobs.demo: give --allow-enlarged)"
    unusable, files = totals.rejected - copies, totals.rows + totals.rejected - copies
    require_usable(config.input, unusable, files, totals.first, config.max_rejected, small)
    return target.finish(totals)


def _faces(unit: Unit, min_side: int) -> Iterator[Row]:
    for row in read(unit, shards.FACE_SCHEMA.names):
        try:
            if not row["rejected"]:
                require_side(row["width"], row["height"], min_side)
            yield row
        except BadImage as error:
            yield row | {"rejected": str(error)}


def prepare_plan(config: PrepareConfig) -> str:
    return f"read the images of {config.input} by the recipe {config.recipe}, write face shards to {config.output}"


PREPARE = Job("prepare", PrepareConfig, prepare, prepare_plan)
