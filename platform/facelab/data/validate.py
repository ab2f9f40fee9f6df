"""A shard set, read again whole: is every shard as the manifest says?"""

import hashlib
import json
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from facelab import storage
from facelab.config import JobConfig, Uri
from facelab.data import shards
from facelab.data.manifest import Manifest, read_manifest
from facelab.data.shards import RowHash
from facelab.data.source import Unit, shard_items
from facelab.data.work import each
from facelab.errors import StoreError, UsageError
from facelab.job import Job

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun


class ValidateConfig(JobConfig):
    """Read a shard set again, hash every shard and every row, and compare with the manifest."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {}, "demo": {}, "paper": {}}
    WRITES = (*JobConfig.WRITES, "problems.json")

    input: Uri
    """A set that jobs.prepare or jobs.synthesize wrote."""


def validate(config: ValidateConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job; returns its summary.

    Raises:
        UsageError: no set there, or one that is not as it was written; problems.json lists what is wrong.
    """
    manifest = read_manifest(config.input) if storage.exists(config.input) else None
    if manifest is None:
        raise UsageError(f"{config.input}: no shard set there: give the output of jobs.prepare or jobs.synthesize")
    problems, total = _problems(config.input, manifest)
    if not problems and total.hexdigest() != manifest.hash:
        problems["manifest.json"] = f"the rows hash to {total.hexdigest()}, the manifest says {manifest.hash}"
    storage.write_text(storage.join(config.output, "problems.json"), json.dumps(problems, indent=1))
    if problems:
        name, what = min(problems.items())
        raise UsageError(
            f"{config.input}: {len(problems)} of {len(manifest.shards)} shards are not as they were written, such as "
            f"{name} ({what}): write the set again; {storage.join(config.output, 'problems.json')} lists them"
        )
    return {"n": manifest.rows, "n_shards": len(manifest.shards), "bytes": manifest.bytes, "data_hash": manifest.hash}


def _problems(uri: str, manifest: Manifest) -> tuple[dict[str, str], RowHash]:
    """Shard -> what is wrong with it; and the hash of all rows that could be read."""
    units = [Unit(uri, manifest.kind, (item,)) for item in shard_items(uri, manifest)]
    problems: dict[str, str] = {}
    total = RowHash()
    with tqdm(desc=f"hashing {uri}", total=manifest.bytes, unit="B", unit_scale=True) as bar:
        for found in each(units, _examine):
            if found["problem"]:
                problems[found["shard"]] = found["problem"]
            total += RowHash(int(found["row_hash"], 16))
            bar.update(found["bytes"])
    return problems, total


def _examine(unit: Unit) -> dict[str, Any]:
    """One shard: whether its bytes and its rows are those of the manifest, and the hash of the rows."""
    (item,) = unit.items
    row_hash, problem, count = RowHash(), "", 0
    try:
        data = storage.read_bytes(item.uri)
        if hashlib.sha256(data).hexdigest() != item.sha256:
            problem = "other bytes"
        for row in shards.parse_shard(item.uri, data, shards.SCHEMAS[unit.kind].names):
            row_hash.add(row)
            count += 1
        if count != item.rows:
            problem = f"{count} rows, not {item.rows}"
    except StoreError:
        raise
    except UsageError as error:
        problem = str(error)
    return {"shard": item.name, "problem": problem, "row_hash": row_hash.hexdigest(), "bytes": item.size}


def validate_plan(config: ValidateConfig) -> str:
    return f"read and hash every shard of {config.input}; write nothing there"


VALIDATE = Job("validate", ValidateConfig, validate, validate_plan)
