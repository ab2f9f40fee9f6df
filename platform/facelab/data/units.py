"""An input cut into the units of a shard set: a function of the input and of the set's settings alone."""

import json
import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from tqdm import tqdm

from facelab import storage
from facelab.data.items import Item, cut, write_items
from facelab.data.shard_set import ShardSet
from facelab.data.source import Source, Unit
from facelab.data.tables import chunks


def shard_units(target: ShardSet, source: Source, rows: int) -> list[Unit]:
    """Whole shards of an input, neighbours up to so many rows together."""
    return [
        Unit(
            source.uri, source.kind, items, target.unit_name(item.sha256 for item in items), sum(i.rows for i in items)
        )
        for items in cut(source.items, rows)
    ]


def image_units(target: ShardSet, uri: str, items: Iterable[Item], rows: int, size: float = math.inf) -> list[Unit]:
    """Images in their order, up to so many and so many bytes together.

    They are listed once, into tables beside the shards: whoever goes on with the set has the images that were there
    when it was begun, and no driver holds their names.
    """
    index = storage.join(target.uri, "units.json")
    if storage.exists(index):
        found: dict[str, int] = json.loads(storage.read_bytes(index))
    else:
        storage.delete(storage.join(target.uri, "units"))  # of a listing that broke off
        found = dict(_listed(target, uri, items, rows, size))
        storage.write_text(index, json.dumps(found))
    return [Unit(uri, "folder", (), name, count, _table(target, name)) for name, count in found.items()]


def _listed(target: ShardSet, uri: str, items: Iterable[Item], rows: int, size: float) -> Iterator[tuple[str, int]]:
    """(unit, images), whose tables are written."""

    def write(part: tuple[Item, ...]) -> tuple[str, int]:
        name = target.unit_name(item.name for item in part)
        write_items(_table(target, name), part)
        return name, len(part)

    with ThreadPoolExecutor(16) as pool, tqdm(desc=f"listing {uri}", unit="image", leave=False, delay=2) as bar:
        for name, count in chain.from_iterable(pool.map(write, some) for some in chunks(cut(items, rows, size), 64)):
            bar.update(count)
            yield name, count


def _table(target: ShardSet, unit: str) -> str:
    return storage.join(target.uri, "units", f"{unit}.parquet")
