"""Parquet shard sets: schemas of face and pair shards, atomic writes, manifest last, hash of the rows alone."""

import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facelab import storage
from facelab.errors import UsageError

FACE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.binary()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("source", pa.string()),
        ("split", pa.string()),
        ("sha256", pa.string()),
    ]
)
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("hr_id", pa.string()),
        ("variant", pa.int32()),
        ("hr", pa.binary()),
        ("lr", pa.binary()),
        ("style_mode", pa.string()),
        ("style_ids", pa.list_(pa.string())),
        ("style_bank", pa.string()),
        ("seed", pa.int64()),
        ("model", pa.string()),
    ]
)
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

VALIDATION_SHARE = 0.1


def split_of(identifier: str) -> str:
    """ "val" for a tenth of all ids by their hash, else "train": the same wherever and whenever it is asked."""
    share = int.from_bytes(hashlib.sha256(identifier.encode()).digest()[:8], "big") / 2**64
    return "val" if share < VALIDATION_SHARE else "train"


class RowHash:
    """A hash of a set of rows that depends on the rows alone: not on order, shards or workers. Mergeable by +.

    Each row's fields are hashed by SHA-256; the sum modulo 2^256 is the set's hash.
    """

    def __init__(self, total: int = 0):
        self.total = total

    def add(self, row: dict[str, Any]) -> None:
        digest = hashlib.sha256()
        for key in sorted(row):
            value = row[key] if isinstance(row[key], bytes) else json.dumps(row[key], sort_keys=True).encode()
            digest.update(f"{key}:{len(value)}:".encode() + value)
        self.total = (self.total + int.from_bytes(digest.digest(), "big")) % 2**256

    def __add__(self, other: "RowHash") -> "RowHash":
        return RowHash((self.total + other.total) % 2**256)

    def hexdigest(self) -> str:
        return f"{self.total:064x}"


@dataclass(frozen=True)
class ShardSummary:
    """What writing one shard reports."""

    rows: int
    row_hash: str
    """RowHash of the shard's rows, hex."""


def write_table(uri: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Rows as one Parquet file, atomically."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    storage.write_bytes(uri, buffer.getvalue())


def write_shard(uri: str, rows: list[dict[str, Any]], schema: pa.Schema) -> ShardSummary:
    """Write rows as one Parquet file below `uri`, atomically, named by a hash of its ids.

    A retried task writes the same file again, not a second one.
    """
    name = hashlib.sha256("\n".join(row["id"] for row in rows).encode()).hexdigest()[:20]
    row_hash = RowHash()
    for row in rows:
        row_hash.add(row)
    write_table(storage.join(uri, f"part-{name}.parquet"), rows, schema)
    return ShardSummary(len(rows), row_hash.hexdigest())


def write_rejected(uri: str, rejected: list[dict[str, str]]) -> None:
    """`uri`/rejected.parquet: rows of REJECTED_SCHEMA, the files that were set aside and why."""
    write_table(storage.join(uri, "rejected.parquet"), rejected, REJECTED_SCHEMA)


@dataclass(frozen=True)
class Manifest:
    """manifest.json: its presence says that a shard set is whole."""

    kind: str
    """"faces" or "pairs"."""
    rows: int
    hash: str
    """Of the rows alone."""
    details: dict[str, Any] = field(default_factory=dict)
    """How the set was made: recipe, model, seed, counts."""


def refuse_finished(uri: str, overwrite: bool) -> None:
    """Raises UsageError where a finished shard set is that must not be replaced."""
    if not overwrite and storage.exists(storage.join(uri, "manifest.json")):
        raise UsageError(f"{uri}: a finished shard set is there: choose another --output or pass --overwrite")


def start_set(uri: str, overwrite: bool = False) -> None:
    """Make `uri` ready for a new shard set: refuse a finished one, clear what a broken run left."""
    refuse_finished(uri, overwrite)
    storage.delete(storage.join(uri, "manifest.json"))
    for name, leftover in storage.list_files(uri, (".parquet",)):
        if re.fullmatch(r"part-[0-9a-f]{20}\.parquet|rejected\.parquet", name):  # ours, nothing else of the user's
            storage.delete(leftover)


def finish_set(uri: str, kind: str, summaries: Iterable[ShardSummary], details: dict[str, Any]) -> Manifest:
    """Write manifest.json, last of all."""
    rows, row_hash = 0, RowHash()
    for summary in summaries:
        rows += summary.rows
        row_hash = row_hash + RowHash(int(summary.row_hash, 16))
    manifest = Manifest(kind, rows, row_hash.hexdigest(), details)
    storage.write_text(storage.join(uri, "manifest.json"), json.dumps(vars(manifest), indent=2))
    return manifest


def read_manifest(uri: str) -> Manifest | None:
    """The manifest of a shard set, None where `uri` is no shard set.

    Raises:
        UsageError: shards without a manifest, or a manifest that cannot be read.
    """
    place = storage.join(uri, "manifest.json")
    if not storage.exists(place):
        if storage.list_files(uri, (".parquet",)):
            raise UsageError(
                f"{uri}: shards without manifest.json: the job that wrote them did not finish; run it again"
            )
        return None
    try:
        return Manifest(**json.loads(storage.read_bytes(place)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: not a facelab manifest: write the shard set again") from error


def shard_uris(uri: str) -> list[str]:
    """The shards of a set, sorted; the table of rejected files is not among them."""
    return [found for name, found in storage.list_files(uri, (".parquet",)) if name.startswith("part-")]


def read_shard(uri: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of one shard.

    Raises:
        UsageError: it cannot be read, or lacks a column.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        return table.select(columns).to_pylist()
    except KeyError as error:
        raise UsageError(f"{uri}: no column {error}: not the kind of shards that is wanted here") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{uri}: damaged shard ({str(error).splitlines()[0]}): write the set again") from error


def read_column(uri: str, name: str) -> list[Any]:
    """One column of a shard, without fetching the others.

    Raises:
        UsageError: it cannot be read, or has no such column.
    """
    filesystem, path = storage.resolve(uri)
    try:
        return pq.read_table(path, columns=[name], filesystem=filesystem)[name].to_pylist()
    except (KeyError, pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{uri}: damaged shard ({str(error).splitlines()[0]}): write the set again") from error


def require_rows(uri: str, kind: str, found: int, expected: int) -> None:
    """
    Raises:
        UsageError: a set has not as many rows as its manifest counts.
    """
    if found != expected:
        raise UsageError(f"{uri}: {found} {kind} where the manifest counts {expected}: write the set again")


def read_rows(uri: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Every row of a finished set, shard by shard.

    Raises:
        UsageError: as for `read_shard`, or, at the end, when rows are missing.
    """
    count = 0
    for shard in shard_uris(uri):
        rows = read_shard(shard, columns)
        count += len(rows)
        yield from rows
    manifest = read_manifest(uri)
    if manifest is not None:
        require_rows(uri, manifest.kind, count, manifest.rows)
