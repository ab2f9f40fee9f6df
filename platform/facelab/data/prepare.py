"""Images -> face shards: every file becomes a row, or is set aside with its reason."""

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from facelab.config import JobConfig, Uri
from facelab.data import shards
from facelab.data.faces import MIN_SIDE
from facelab.data.recipes import RECIPES
from facelab.data.source import read
from facelab.data.work import fill
from facelab.errors import UsageError
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

    input: Uri
    """Folder or s3:// prefix of JPEG, PNG, WebP or BMP files; subfolders are searched."""
    recipe: Literal[tuple(RECIPES)] = "folder"  # pyrefly: ignore
    """How the input is laid out: `folder` takes every image file below it."""
    min_side: int = Field(default=MIN_SIDE, ge=1)
    """Faces whose shorter side has fewer px are rejected."""
    max_rejected: float = Field(default=0.5, ge=0, le=1)
    """Fail when more than this share of the files is rejected: something is wrong with the input as a whole."""
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
    reader = partial(read, columns=schema.names, min_side=config.min_side)
    totals = fill(config.output, schema, units, reader, overwrite=config.overwrite)
    if totals.rejected:
        receipts = shards.read_receipts(config.output, [unit.name for unit in units])
        shards.write_rejected(config.output, (row for receipt in receipts for row in receipt.rejected))
    if not totals.rows:
        raise UsageError(f"{config.input}: none of {source.rows} files is usable; the first: {totals.first}")
    if totals.rejected > config.max_rejected * source.rows:
        raise RuntimeError(
            f"{config.input}: {totals.rejected} of {source.rows} files rejected, more than --max-rejected "
            f"{config.max_rejected:g}; the first: {totals.first}; the whole list: {config.output}/rejected.parquet"
        )
    details = {"recipe": config.recipe, "source": source.uri, "rejected": totals.rejected, "min_side": config.min_side}
    manifest = shards.finish_set(config.output, "faces", totals, details)
    return {
        "n": manifest.rows,
        "n_rejected": totals.rejected,
        "data_hash": manifest.hash,
        **{f"rejected_{kind.replace(' ', '_')}": count for kind, count in sorted(totals.reasons.items())},
    }


def prepare_plan(config: PrepareConfig) -> str:
    return f"read every image below {config.input}, write face shards to {config.output}"


PREPARE = Job("prepare", PrepareConfig, prepare, prepare_plan)
