"""Faces that a set has twice: they would count twice, and might be validated on after they were trained on."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from facelab.data import shards
from facelab.data.tables import chunks

_AT_A_TIME = 32_000_000
"""Faces whose digests, 8 bytes each, are held and sorted at a time."""


def drop_copies(uri: str, units: Sequence[str]) -> None:
    """Of files with equal bytes, the one whose name comes first stays; the others are set aside. Can be interrupted."""
    rows = {receipt.unit: receipt.rows for receipt in shards.read_receipts(uri, units) if receipt.rows}
    passes = -(-sum(rows.values()) // _AT_A_TIME)
    for residue in range(passes):
        parts = [np.array([k for k in keys if k % passes == residue], np.uint64) for _, _, keys in _faces(uri, rows)]
        keys, counts = np.unique(np.concatenate(parts), return_counts=True)
        if twice := set(keys[counts > 1].tolist()):
            _set_aside(uri, rows, twice)


def _set_aside(uri: str, rows: dict[str, int], twice: set[int]) -> None:
    """Of the faces whose keys come more than once."""
    first: dict[str, str] = {}
    found: dict[str, list[tuple[str, str]]] = {}
    for unit, (ids, digests), keys in _faces(uri, rows):
        for identifier, digest, key in zip(ids, digests, keys, strict=True):
            if key in twice:
                first[digest] = min(identifier, first.get(digest, identifier))
                found.setdefault(unit, []).append((identifier, digest))
    for unit, faces in found.items():
        copies = {i: f"copy: of {first[digest]}" for i, digest in faces if first[digest] != i}
        if copies:
            shards.set_aside(uri, unit, copies, shards.FACE_SCHEMA)


def _faces(uri: str, rows: dict[str, int]) -> Iterator[tuple[str, tuple[list[str], list[str]], list[int]]]:
    """Each unit with its ids, digests, and the digests' first 64 bits."""

    def read(unit: str) -> tuple[str, tuple[list[str], list[str]], list[int]]:
        ids, digests = shards.read_columns(shards.shard_uri(uri, unit), ["id", "sha256"])
        return unit, (ids, digests), [int(digest[:16], 16) for digest in digests]

    with ThreadPoolExecutor(16) as pool:
        for some in chunks(rows, 64):  # the pool would read all at once
            yield from pool.map(read, some)
