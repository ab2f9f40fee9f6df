"""What the driver of a synthesis does beside the work itself, for a set of many shards: seconds and memory.

    python -m benchmarks.bookkeeping [SHARDS]

The shards are empty files and the receipts are of no pairs, but there are as many as said: by default 100,000, as a set
of 100 million faces has.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from facelab.data import shards
from facelab.data.manifest import Manifest, Shard, manifest_uri, write_manifest
from facelab.data.shard_set import claimed
from facelab.data.shards import Receipt
from facelab.data.source import find
from facelab.data.units import shard_units

ROWS, ROW_HASH = 1000, "0" * 64


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory(prefix="facelab-") as scratch:
        hr, pairs = f"{scratch}/hr", f"{scratch}/pairs"
        Path(hr).mkdir()
        names = [shards.shard_name(f"{i:020x}") for i in range(count)]
        splits = {"train": 900, "val": 100}
        files = [Shard(name, ROWS, 0, f"{i:064x}", splits) for i, name in enumerate(names)]
        write_manifest(hr, Manifest("faces", count * ROWS, 0, ROW_HASH, {}, {}, "", files))
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda name: Path(hr, name).touch(), names))
        del files, names
        print(f"before: {peak():.0f} MB")
        source = told("find: the manifest read, the shards listed", lambda: find(hr, "faces"))
        with claimed(pairs, "pairs", {}, {}) as target:
            units = told("shard_units: cut into units", lambda: shard_units(target, source, ROWS))
            Path(pairs, "receipts").mkdir()
            for unit in units:
                receipt = Receipt(unit.name, ROWS, ROW_HASH, 7_000_000, ROW_HASH, splits, [])
                Path(shards.receipt_uri(pairs, unit.name)).write_text(json.dumps(vars(receipt)))
            told("done: the receipts listed, as a resumed job does", target.done)
            totals = told("totals: every receipt read", lambda: target.totals([unit.name for unit in units]))
            told("finish: the manifest written", lambda: target.finish(totals))
        size = Path(manifest_uri(pairs)).stat().st_size
        print(f"manifest of the pairs: {size / 1e6:.1f} MB, {size / count:.0f} bytes a shard")


def told(what: str, work: Callable):
    began = time.perf_counter()
    result = work()
    print(f"{what}: {time.perf_counter() - began:.1f} s, peak {peak():.0f} MB", flush=True)
    return result


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
