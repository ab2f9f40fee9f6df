"""A shard set while it is written: claimed by one job, cut into units, resumed where it broke off, and finished."""

import contextlib
import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facelab import storage
from facelab.data import shards
from facelab.data.manifest import (
    SCHEMA_VERSION,
    Manifest,
    Shard,
    is_shard,
    manifest_uri,
    read_manifest,
    write_manifest,
)
from facelab.data.owner import Owner
from facelab.data.tables import LongTable, chunks
from facelab.errors import UsageError
from facelab.version import git_sha


class ShardSet:
    """A set that this job writes; see `claimed`."""

    def __init__(self, uri: str, kind: str, settings: dict[str, Any], places: dict[str, str | None], owner: Owner):
        self.uri, self.kind, self.settings, self.places, self.owner = uri, kind, settings, places, owner
        self.schema = shards.SCHEMAS[kind]

    def unit_name(self, parts: Iterable[str]) -> str:
        """Of a unit made of such parts: with the settings in it, shards of two sets could never be taken for one's."""
        text = "\n".join([json.dumps([self.kind, SCHEMA_VERSION, self.settings], sort_keys=True), *parts])
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def finished(self) -> Manifest | None:
        """The manifest, if an earlier run of the same settings wrote it."""
        if not storage.exists(manifest_uri(self.uri)):
            return None
        manifest = read_manifest(self.uri)
        assert manifest is not None
        print(f"{self.uri}: finished before, with these settings: {manifest.rows} {self.kind}", flush=True)
        return manifest

    def done(self) -> set[str]:
        """Units with a receipt."""
        return {
            found.name.removesuffix(".json") for found in storage.scan(storage.join(self.uri, "receipts"), (".json",))
        }

    def totals(self, units: Sequence[str]) -> "Totals":
        """What the receipts of all units add up to; what was set aside, and why, goes to rejected.parquet.

        Raises:
            UsageError: a receipt is missing.
        """
        totals = Totals.of(shards.read_receipts(self.uri, units))
        if totals.rejected:
            receipts = shards.read_receipts(self.uri, units)
            _write_rejected(self.uri, (row for receipt in receipts for row in receipt.rejected))
        return totals

    def finish(self, totals: "Totals") -> Manifest:
        """Write manifest.json, last of all.

        Raises:
            StoreError: another job owns the set now.
        """
        self.owner.check()
        manifest = Manifest(
            kind=self.kind,
            rows=totals.rows,
            bytes=sum(shard.bytes for shard in totals.files),
            hash=totals.row_hash.hexdigest(),
            settings=self.settings | self.places,
            counts=totals.counts(self.kind),
            git_sha=git_sha(),
            shards=sorted(totals.files, key=lambda shard: shard.name),
        )
        write_manifest(self.uri, manifest)
        return manifest


_WRITTEN = r"(part-)?[0-9a-f]{20}\.(parquet|json)|rejected\.parquet|(settings|units|manifest)\.json|receipts|units"
"""What a killed writer may leave half-written; not owner.json, which this job's heartbeat may be writing now."""
SET_FILES = ("manifest.json", "settings.json", "units.json", "owner.json", "rejected.parquet")
"""What a job that writes a set writes beside the shards."""


@contextlib.contextmanager
def claimed(
    uri: str, kind: str, settings: dict[str, Any], places: dict[str, str | None], *, overwrite: bool = False
) -> Iterator[ShardSet]:
    """A set to write or go on with, which is this job's alone for the time of the block.

    Args:
        settings: what decides the rows; a set that was begun or finished with others is refused.
        places: the same of where the inputs lie, which decides nothing: elsewhere, equal inputs give equal shards.
        overwrite: such a set, and a finished one, is deleted instead.

    Raises:
        UsageError: of other settings, or being written by another job.
    """
    with Owner(uri) as owner:
        if overwrite:
            _clear(uri)
        refuse_other(uri, settings | places)
        for folder in (uri, storage.join(uri, "receipts"), storage.join(uri, "units")):
            storage.sweep(folder, _WRITTEN)
        if not storage.exists(manifest_uri(uri)):
            storage.write_text(_settings_uri(uri), json.dumps(settings | places, indent=1))
        yield ShardSet(uri, kind, settings, places, owner)


def refuse_other(uri: str, settings: dict[str, Any]) -> None:
    """
    Raises:
        UsageError: a set of other settings was begun or finished there, or one of an older schema.
    """
    if not storage.exists(place := _settings_uri(uri)):
        if storage.exists(manifest_uri(uri)):
            read_manifest(uri)
            raise UsageError(f"{uri}: a shard set without settings.json: choose another --output or pass --overwrite")
        return
    try:
        there = json.loads(storage.read_bytes(place))
    except ValueError as error:
        raise UsageError(f"{place}: cannot be read: pass --overwrite, or choose another --output") from error
    for name, value in json.loads(json.dumps(settings)).items():
        if name in there and there[name] != value:
            raise UsageError(
                f"{uri}: was begun with {name} {there[name]!r}, not {value!r}: give the same, choose another --output, "
                "or pass --overwrite to delete what is there"
            )


def _settings_uri(uri: str) -> str:
    return storage.join(uri, "settings.json")


def _clear(uri: str) -> None:
    """Delete a set and nothing else of the user's; first what says that it is whole."""
    storage.delete(manifest_uri(uri))
    ours = [found.uri for found in storage.scan(uri, (".parquet",)) if is_shard(found.name)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(storage.delete, [*ours, storage.join(uri, "rejected.parquet")]))
    for name in ("receipts", "units", "units.json", "settings.json"):
        storage.delete(storage.join(uri, name))


def _write_rejected(uri: str, rejected: Iterable[dict[str, str]]) -> None:
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        file = Path(folder) / "rejected.parquet"
        with LongTable(file, shards.REJECTED_SCHEMA) as table:
            for part in chunks(rejected, 10_000):
                table.add({name: [row[name] for row in part] for name in shards.REJECTED_SCHEMA.names})
        storage.upload(file, storage.join(uri, "rejected.parquet"))


@dataclass
class Totals:
    """What the receipts of a set add up to."""

    rows: int = 0
    row_hash: shards.RowHash = field(default_factory=shards.RowHash)
    rejected: int = 0
    enlarged: int = 0
    files: list[Shard] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    """Kind of a rejection -> how many."""
    first: str = ""
    """One rejected row, which is no copy, and why."""

    @classmethod
    def of(cls, receipts: Iterable[shards.Receipt]) -> "Totals":
        totals = cls()
        for receipt in receipts:
            totals.rows += receipt.rows
            totals.row_hash += shards.RowHash(int(receipt.row_hash, 16))
            totals.rejected += len(receipt.rejected)
            totals.enlarged += receipt.enlarged
            if receipt.rows:
                name = shards.shard_name(receipt.unit)
                totals.files.append(Shard(name, receipt.rows, receipt.bytes, receipt.sha256, receipt.splits))
            totals.reasons.update(row["reason"].split(":")[0] for row in receipt.rejected)
            unusable = (row for row in receipt.rejected if not row["reason"].startswith("copy:"))
            if not totals.first and (row := next(unusable, None)):
                totals.first = f"{row['id']}: {row['reason']}"
        return totals

    def counts(self, kind: str) -> dict[str, int]:
        """For the summary of a set of faces or pairs."""
        splits: Counter[str] = Counter()
        for shard in self.files:
            splits.update(shard.splits)
        counts = {"n": self.rows, "n_train": splits["train"], "n_val": splits["val"]}
        counts |= {"n_test": splits["test"]} if splits["test"] else {}
        counts |= {"n_rejected": self.rejected} | ({"n_enlarged": self.enlarged} if kind == "pairs" else {})
        return counts | {f"rejected_{why.replace(' ', '_')}": count for why, count in sorted(self.reasons.items())}
