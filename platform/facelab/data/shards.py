"""Parquet shard sets: the schemas of face and pair shards; a shard and its receipt; the manifest, last of all."""

import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from facelab import storage
from facelab.data.tables import LongTable, chunks, write_table
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
        ("split", pa.string()),
    ]
)
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
    sha256: str
    """Of the shard's bytes; empty where no row was usable, and there is no shard."""
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
        row_hash.add(_content(row))
    digest = ""
    if rows:
        digest = write_table(shard_uri(uri, unit), rows, schema)
    else:
        storage.delete(shard_uri(uri, unit))  # of an earlier commit, when there were rows
    receipt = Receipt(unit, len(rows), row_hash.hexdigest(), digest, rejected, enlarged)
    storage.write_text(_receipt_uri(uri, unit), json.dumps(vars(receipt)))
    return receipt


def _content(row: dict[str, Any]) -> dict[str, Any]:
    """What a row's hash is taken of: all of it, but not a pair's split where that is the rule's, so that a set which
    has no such column, and is read by the rule, has the same hash."""
    by_rule = "hr_id" in row and row.get("split") == split_of(row["hr_id"])
    return {key: value for key, value in row.items() if not (by_rule and key == "split")}


def set_aside(uri: str, unit: str, reasons: dict[str, str], schema: pa.Schema) -> None:
    """Commit a unit again, with some of its rows rejected: id -> why."""
    receipt = read_receipt(uri, unit)
    rows = read_shard(shard_uri(uri, unit), schema.names)
    rejected = [{"id": r["id"], "source": r["source"], "reason": reasons[r["id"]]} for r in rows if r["id"] in reasons]
    kept = [row for row in rows if row["id"] not in reasons]
    commit(uri, unit, kept, receipt.rejected + rejected, schema, receipt.enlarged)


def shard_uri(uri: str, unit: str) -> str:
    """Where the shard of a unit lies."""
    return storage.join(uri, f"part-{unit}.parquet")


def _receipt_uri(uri: str, unit: str) -> str:
    return storage.join(uri, "receipts", f"{unit}.json")


def read_receipt(uri: str, unit: str) -> Receipt:
    """
    Raises:
        UsageError: there is none.
    """
    return Receipt(**json.loads(storage.read_bytes(_receipt_uri(uri, unit))))


def read_receipts(uri: str, units: Iterable[str]) -> Iterator[Receipt]:
    """The receipts of units, in their order.

    Raises:
        UsageError: one is missing.
    """
    with ThreadPoolExecutor(16) as pool:
        for part in chunks(units, 64):  # the pool would read all at once
            yield from pool.map(partial(read_receipt, uri), part)


def settle(uri: str, units: Sequence[str]) -> "Totals":
    """What the receipts of all units add up to; what was set aside, and why, is listed in `uri`/rejected.parquet."""
    totals = Totals.of(read_receipts(uri, units))
    if totals.rejected:
        _write_rejected(uri, (row for receipt in read_receipts(uri, units) for row in receipt.rejected))
    return totals


def _write_rejected(uri: str, rejected: Iterable[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        file = Path(folder) / "rejected.parquet"
        with LongTable(file, REJECTED_SCHEMA) as table:
            for part in chunks(rejected, 10_000):
                table.add({name: [row[name] for row in part] for name in REJECTED_SCHEMA.names})
        storage.upload(file, storage.join(uri, "rejected.parquet"))


@dataclass
class Totals:
    """What the receipts of a set add up to."""

    rows: int = 0
    row_hash: RowHash = field(default_factory=RowHash)
    rejected: int = 0
    enlarged: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Kind of a rejection -> how many."""
    first: str = ""
    """One rejected row, which is no copy, and why."""

    @classmethod
    def of(cls, receipts: Iterable[Receipt]) -> "Totals":
        totals = cls()
        for receipt in receipts:
            totals.rows += receipt.rows
            totals.row_hash += RowHash(int(receipt.row_hash, 16))
            totals.rejected += len(receipt.rejected)
            totals.enlarged += receipt.enlarged
            totals.reasons.update(row["reason"].split(":")[0] for row in receipt.rejected)
            unusable = (row for row in receipt.rejected if not row["reason"].startswith("copy:"))
            if not totals.first and (row := next(unusable, None)):
                totals.first = f"{row['id']}: {row['reason']}"
        return totals


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
        if _SHARD.fullmatch(name) or name == "rejected.parquet":  # ours, nothing else of the user's
            storage.delete(leftover)
    for name, leftover in storage.list_files(storage.join(uri, "receipts"), (".json",)):
        if re.fullmatch(r"[0-9a-f]{20}\.json", name):
            storage.delete(leftover)


def finish_set(uri: str, kind: str, totals: Totals, details: dict[str, Any]) -> Manifest:
    """Write manifest.json, last of all."""
    manifest = Manifest(kind, totals.rows, totals.row_hash.hexdigest(), details)
    storage.write_text(storage.join(uri, "manifest.json"), json.dumps(vars(manifest), indent=2))
    return manifest


def read_manifest(uri: str) -> Manifest | None:
    """The manifest of a shard set, None where `uri` is no shard set.

    Raises:
        UsageError: shards without a manifest, or a manifest that cannot be read.
    """
    place = storage.join(uri, "manifest.json")
    if not storage.exists(place):
        if shard_uris(uri):
            raise UsageError(
                f"{uri}: shards without manifest.json: the job that wrote them did not finish; run it again"
            )
        return None
    try:
        return Manifest(**json.loads(storage.read_bytes(place)))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{place}: not a facelab manifest: write the shard set again") from error


def shard_uris(uri: str) -> list[str]:
    """The shards of a set, sorted; no other Parquet file that may lie there is among them."""
    return [found for name, found in storage.list_files(uri, (".parquet",)) if _SHARD.fullmatch(name)]


def read_shard(uri: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of one shard. Pairs may lack a split: then it is the rule's.

    Raises:
        UsageError: it cannot be read, or lacks another column.
    """
    try:
        table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        missing = {"split"} - set(table.column_names) if "hr_id" in table.column_names else set()
        return table.select([c for c in columns if c not in missing]).to_pylist()
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
