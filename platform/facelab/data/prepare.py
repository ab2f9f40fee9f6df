"""images -> face shards, on Ray Data: every file becomes a row or is set aside with its reason."""

from typing import Any, ClassVar, Literal

import numpy as np
import ray.data
from pydantic import Field

from facelab import storage
from facelab.config import JobConfig, Uri
from facelab.data import shards
from facelab.data.tensors import MIN_SIDE, image_files, read_face
from facelab.errors import UsageError
from facelab.images import BadImage
from facelab.seeding import seed_for


class PrepareConfig(JobConfig):
    """Turn a folder of images into face shards; bad files are set aside and counted."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 64},
        "demo": {"rows_per_shard": 256},
        "paper": {},
    }

    input: Uri
    """Folder or s3:// prefix of JPEG, PNG, WebP or BMP files; subfolders are searched."""
    recipe: Literal["folder"] = "folder"
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


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Run the job; returns its summary.

    Raises:
        UsageError: no images, none usable, or too many rejected.
    """
    files = image_files(config.input)
    shards.start_set(config.output, config.overwrite)
    # Shuffled by hash: neighbours in a folder are often alike, in size and in being broken.
    files.sort(key=lambda file: seed_for("prepare", file[0]))
    source = storage.normalise(config.input)

    def task(batch: dict[str, np.ndarray]) -> dict[str, list]:
        return _prepare_batch(list(zip(batch["name"], batch["uri"], strict=True)), source, config)

    blocks = -(-len(files) // config.rows_per_shard)
    dataset = ray.data.from_items([{"name": n, "uri": u} for n, u in files], override_num_blocks=blocks)
    results = dataset.map_batches(task, batch_size=config.rows_per_shard).take_all()  # pyrefly: ignore

    rejected = [row for result in results for row in result["rejected"]]
    usable = sum(result["rows"] for result in results)
    if rejected:
        shards.write_rejected(config.output, rejected)
    share = len(rejected) / len(files)
    if not usable:
        raise UsageError(f"{config.input}: none of {len(files)} files is usable; {_first(rejected)}")
    if share > config.max_rejected:
        raise RuntimeError(
            f"{config.input}: {len(rejected)} of {len(files)} files rejected, more than --max-rejected "
            f"{config.max_rejected:g}; {_first(rejected)}; the whole list: {config.output}/rejected.parquet"
        )
    summaries = [shards.ShardSummary(r["rows"], r["row_hash"]) for r in results if r["rows"]]
    details = {"recipe": config.recipe, "source": source, "rejected": len(rejected), "min_side": config.min_side}
    manifest = shards.finish_set(config.output, "faces", summaries, details)
    reasons: dict[str, int] = {}
    for row in rejected:
        kind = row["reason"].split(":")[0]
        reasons[kind] = reasons.get(kind, 0) + 1
    return {
        "n": manifest.rows,
        "n_rejected": len(rejected),
        "data_hash": manifest.hash,
        **{f"rejected_{kind.replace(' ', '_')}": count for kind, count in sorted(reasons.items())},
    }


def _prepare_batch(files: list[tuple[str, str]], source: str, config: PrepareConfig) -> dict[str, list]:
    rows, rejected = [], []
    for name, uri in files:
        try:
            rows.append(read_face(name, uri, source, config.min_side))
        except BadImage as error:
            rejected.append({"id": name, "source": source, "reason": str(error)})
    summary = shards.ShardSummary(0, "0")
    if rows:
        summary = shards.write_shard(config.output, rows, shards.FACE_SCHEMA)
    return {"rows": [summary.rows], "row_hash": [summary.row_hash], "rejected": [rejected]}


def _first(rejected: list[dict[str, str]]) -> str:
    return f"the first: {rejected[0]['id']}: {rejected[0]['reason']}" if rejected else "none was rejected"
