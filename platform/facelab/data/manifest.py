"""manifest.json, the last thing written of a shard set: without it, no set. What a reader knows of the shards."""

import json
import re
from dataclasses import dataclass
from typing import Any

from facelab import storage
from facelab.errors import UsageError

SCHEMA_VERSION = 2
"""Of the columns and of the manifest; a set of another is written again."""
_SHARD = re.compile(r"part-[0-9a-f]{20}\.parquet")


@dataclass(frozen=True)
class Shard:
    """A file of a set."""

    name: str
    rows: int
    bytes: int
    sha256: str
    """Of its bytes."""
    splits: dict[str, int]
    """Split -> rows."""


@dataclass(frozen=True)
class Manifest:
    """What a shard set is, and that it is whole."""

    kind: str
    """"faces" or "pairs"."""
    rows: int
    bytes: int
    hash: str
    """Of the rows alone: not of their order, the shards, or who wrote them."""
    settings: dict[str, Any]
    """What decided the rows: recipe, degrader, seed, sizes, hashes of the inputs."""
    counts: dict[str, int]
    """n, n_rejected and the like, for a summary."""
    git_sha: str
    """Of the code that finished it."""
    shards: list[Shard]
    schema: int = SCHEMA_VERSION


def manifest_uri(uri: str) -> str:
    """Where the manifest of a set lies."""
    return storage.join(uri, "manifest.json")


def read_manifest(uri: str) -> Manifest | None:
    """The manifest of a shard set, None where `uri` is no shard set.

    Raises:
        UsageError: shards without a manifest, or one that cannot be read or is of another schema.
    """
    place = manifest_uri(uri)
    if not storage.exists(place):
        if any(is_shard(found.name) for found in storage.scan(uri, (".parquet",))):
            raise UsageError(
                f"{uri}: shards without manifest.json: the job that wrote them did not finish; run it again"
            )
        return None
    try:
        values = json.loads(storage.read_bytes(place))
        if (version := values.get("schema", 1)) != SCHEMA_VERSION:
            raise UsageError(f"{place}: of schema {version}, not {SCHEMA_VERSION}: write the shard set again")
        manifest = Manifest(**values | {"shards": [Shard(**shard) for shard in values["shards"]]})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{place}: not a facelab manifest: write the shard set again") from error
    for shard in manifest.shards:
        if not is_shard(shard.name):
            raise UsageError(f"{place}: names {shard.name!a}, which is no shard: write the set again")
    return manifest


def require_shards(uri: str, manifest: Manifest) -> None:
    """By one listing; whether their bytes are the same is found out by who reads them.

    Raises:
        UsageError: a shard is missing, or has another size.
    """
    found = {found.name: found.size for found in storage.scan(uri, (".parquet",))}
    for shard in manifest.shards:
        if (size := found.get(shard.name)) != shard.bytes:
            what = (
                "not found" if size is None else f"changed since the set was written ({size} bytes, not {shard.bytes})"
            )
            raise UsageError(f"{storage.join(uri, shard.name)}: {what}: write the set again")


def write_manifest(uri: str, manifest: Manifest) -> None:
    shards = [vars(shard) for shard in manifest.shards]
    storage.write_text(manifest_uri(uri), json.dumps(vars(manifest) | {"shards": shards}, indent=1))


def is_shard(name: str) -> bool:
    """Whether a file is called as shards are; any other Parquet file is the user's."""
    return _SHARD.fullmatch(name) is not None
