"""Images -> face shards: every file becomes a row, or is set aside with its reason."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from facelab.config import JobConfig, Uri
from facelab.data import shards
from facelab.data.faces import MIN_SIDE, require_side, require_usable
from facelab.data.recipes import RECIPES
from facelab.data.source import Row, Unit, read
from facelab.data.work import fill
from facelab.images import BadImage
from facelab.job import Job

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun


class PrepareConfig(JobConfig):
    """Turn a folder of images into face shards; bad files are set aside and counted."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 64},
        "demo": {"rows_per_shard": 256},
        "paper": {},
    }

    WRITES = (*JobConfig.WRITES, "manifest.json", "rejected.parquet")

    input: Uri
    """Folder or s3:// prefix of JPEG, PNG, WebP or BMP files; subfolders are searched."""
    recipe: Literal[tuple(RECIPES)] = "folder"  # pyrefly: ignore
    """How the input is laid out: `folder` takes every image file below it."""
    min_side: int = Field(default=MIN_SIDE, ge=1)
    """Faces whose shorter side has fewer px are rejected."""
    max_rejected: float = Field(default=0.5, ge=0, le=1)
    """Fail when more than this share of the files, copies aside, is rejected: something is wrong with the input as a
    whole."""
    rows_per_shard: int = Field(default=2000, ge=1)
    """Files read and written by one task."""
    overwrite: bool = False
    """Replace a finished shard set at --output."""

    def check_output(self) -> None:
        super().check_output()
        shards.refuse_finished(self.output, self.overwrite)


def prepare(config: PrepareConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job; returns its summary.

    Raises:
        UsageError: no images, none usable, or too many rejected.
    """
    source = RECIPES[config.recipe](config.input)
    units, schema = source.units(config.rows_per_shard), shards.FACE_SCHEMA
    fill(config.output, schema, units, partial(_faces, min_side=config.min_side), overwrite=config.overwrite)
    names = [unit.name for unit in units]
    _drop_copies(config.output, names)
    totals = shards.settle(config.output, names)
    copies, small = totals.reasons["copy"], "lower --min-side (jobs.demo: give --allow-enlarged)"
    unusable, files = totals.rejected - copies, source.rows - copies
    require_usable(config.input, unusable, files, totals.first, config.max_rejected, small)
    details = {"recipe": config.recipe, "source": source.uri, "rejected": totals.rejected, "min_side": config.min_side}
    manifest = shards.finish_set(config.output, "faces", totals, details)
    return {
        "n": manifest.rows,
        "n_rejected": totals.rejected,
        "data_hash": manifest.hash,
        **{f"rejected_{kind.replace(' ', '_')}": count for kind, count in sorted(totals.reasons.items())},
    }


def _faces(unit: Unit, min_side: int) -> Iterator[Row]:
    for row in read(unit, shards.FACE_SCHEMA.names):
        try:
            if not row["rejected"]:
                require_side(row["width"], row["height"], min_side)
            yield row
        except BadImage as error:
            yield row | {"rejected": str(error)}


def _drop_copies(output: str, units: Sequence[str]) -> None:
    """Of files with equal bytes, the one whose name comes first stays: the others would be counted twice, and might be
    validated on after they were trained on."""
    first: dict[str, str] = {}
    rows = {
        receipt.unit: shards.read_columns(shards.shard_uri(output, receipt.unit), ["id", "sha256"])
        for receipt in shards.read_receipts(output, units)
        if receipt.rows
    }
    for columns in rows.values():
        for identifier, digest in zip(*columns, strict=True):
            first[digest] = min(identifier, first.get(digest, identifier))
    for unit, columns in rows.items():
        copies = {i: f"copy: of {first[digest]}" for i, digest in zip(*columns, strict=True) if first[digest] != i}
        if copies:
            shards.set_aside(output, unit, copies, shards.FACE_SCHEMA)


def prepare_plan(config: PrepareConfig) -> str:
    return f"read every image below {config.input}, write face shards to {config.output}"


PREPARE = Job("prepare", PrepareConfig, prepare, prepare_plan)
