"""Shards: the schemas of face and pair shards, a shard and its receipt, and how rows are read back."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facelab import storage
from facelab.data.tables import chunks, require_plain, write_table
from facelab.errors import StoreError, UsageError

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
        ("style_weights", pa.list_(pa.float32())),
        ("style_bank", pa.string()),
        ("seed", pa.int64()),
        ("model", pa.string()),
        ("split", pa.string()),
        ("hr_sha256", pa.string()),
    ]
)
SCHEMAS = {"faces": FACE_SCHEMA, "pairs": PAIR_SCHEMA}
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("reason", pa.string())])

VALIDATION_SHARE = 0.1
_SHARD = re.compile(r"part-[0-9a-f]{20}\.parquet")


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
class Receipt:
    """That a unit of work is done: written after its shard, never without it. Receipts alone make a set."""

    unit: str
    """Name of the unit; of its shard, too."""
    rows: int
    row_hash: str
    """RowHash of the rows, hex."""
    bytes: int
    """Of the shard."""
    sha256: str
    """Of the shard's bytes; empty where no row was usable, and there is no shard."""
    splits: dict[str, int]
    """Split -> rows."""
    rejected: list[dict[str, str]]
    """Rows of REJECTED_SCHEMA."""
    enlarged: int = 0
    """Rows whose face was smaller than wanted."""


def commit(
    uri: str,
    unit: str,
    rows: list[dict[str, Any]],
    rejected: list[dict[str, str]],
    schema: pa.Schema,
    enlarged: int = 0,
) -> Receipt:
    """Write a unit's shard below `uri`, then its receipt, each atomically. Done again, it writes the same files."""
    row_hash = RowHash()
    for row in rows:
        row_hash.add(row)
    written, digest = 0, ""
    if rows:
        written, digest = write_table(shard_uri(uri, unit), rows, schema)
    else:
        storage.delete(shard_uri(uri, unit))  # of an earlier commit, when there were rows
    splits = dict(sorted(Counter(row["split"] for row in rows).items()))
    receipt = Receipt(unit, len(rows), row_hash.hexdigest(), written, digest, splits, rejected, enlarged)
    storage.write_text(receipt_uri(uri, unit), json.dumps(vars(receipt)))
    return receipt


def set_aside(uri: str, unit: str, reasons: dict[str, str], schema: pa.Schema) -> None:
    """Commit a unit again, with some of its rows rejected: id -> why."""
    receipt = read_receipt(uri, unit)
    rows = read_shard(shard_uri(uri, unit), schema.names)
    rejected = [{"id": r["id"], "source": r["source"], "reason": reasons[r["id"]]} for r in rows if r["id"] in reasons]
    kept = [row for row in rows if row["id"] not in reasons]
    storage.delete(receipt_uri(uri, unit))  # until it fits the shard again: killed in between, the unit is made anew
    commit(uri, unit, kept, receipt.rejected + rejected, schema, receipt.enlarged)


def shard_name(unit: str) -> str:
    """What the shard of a unit is called."""
    return f"part-{unit}.parquet"


def shard_uri(uri: str, unit: str) -> str:
    """Where the shard of a unit lies."""
    return storage.join(uri, shard_name(unit))


def receipt_uri(uri: str, unit: str) -> str:
    return storage.join(uri, "receipts", f"{unit}.json")


def is_committed(uri: str, unit: str) -> bool:
    """Whether a unit has its receipt."""
    return storage.exists(receipt_uri(uri, unit))


def read_receipt(uri: str, unit: str) -> Receipt:
    """
    Raises:
        UsageError: there is none.
    """
    return Receipt(**json.loads(storage.read_bytes(receipt_uri(uri, unit))))


def read_receipts(uri: str, units: Iterable[str]) -> Iterator[Receipt]:
    """The receipts of units, in their order.

    Raises:
        UsageError: one is missing.
    """
    with ThreadPoolExecutor(16) as pool:
        for part in chunks(units, 64):  # the pool would read all at once
            yield from pool.map(partial(read_receipt, uri), part)


def read_shard(uri: str, columns: Sequence[str], sha256: str = "") -> list[dict[str, Any]]:
    """The rows of one shard.

    Args:
        sha256: of its bytes, by the manifest.

    Raises:
        UsageError: it is not there or not as it was written, cannot be read, or lacks a column.
    """
    try:
        data = storage.read_bytes(uri)
    except StoreError:
        raise
    except UsageError as error:
        raise UsageError(f"{error}: the set has lost a shard: write the set again") from error
    if sha256 and hashlib.sha256(data).hexdigest() != sha256:
        raise UsageError(f"{uri}: changed since the set was written (damaged shard): write the set again")
    return parse_shard(uri, data, columns)


def parse_shard(uri: str, data: bytes, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a shard's bytes.

    Raises:
        UsageError: they cannot be read, or lack a column.
    """
    try:
        table = pq.read_table(io.BytesIO(data)).select(list(columns))
        require_plain(uri, table.schema)
        return table.to_pylist()
    except KeyError as error:
        raise UsageError(f"{uri}: no column {error}: not the kind of shards that is wanted here") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError(f"{uri}: damaged shard ({str(error).splitlines()[0]}): write the set again") from error


def read_columns(uri: str, names: Sequence[str]) -> list[list[Any]]:
    """Some columns of a shard, without fetching the others.

    Raises:
        UsageError: it cannot be read, or lacks one.
    """
    filesystem, path = storage.resolve(uri)
    try:
        with storage.explained(uri):
            table = pq.read_table(path, columns=list(names), filesystem=filesystem)
        require_plain(uri, table.schema)
        return [table[name].to_pylist() for name in names]
    except (KeyError, pa.ArrowInvalid) as error:
        raise UsageError(f"{uri}: damaged shard ({str(error).splitlines()[0]}): write the set again") from error


def require_rows(uri: str, kind: str, found: int, expected: int) -> None:
    """
    Raises:
        UsageError: a set has not as many rows as its manifest counts.
    """
    if found != expected:
        raise UsageError(f"{uri}: {found} {kind} where the manifest counts {expected}: write the set again")
