"""Memory of a training's worker on small and on large sets of pairs: what is its own, not what its node shares.

    python -m benchmarks.memory [ROWS ...]

Pairs of 64 and 16 px with names of their own and a few images over and over, in shards of 5000, are decoded into a
cache in a temporary folder; then two workers, each a process, load the set and take a hundred batches at the same time.
Listed are anonymous memory (RssAnon of /proc/self/status) before loading, at the end, and at its highest while the set
is built and while it is used, and the mapped files, which all workers of a node share. The default, 20000 and 200000
rows, takes some 6 GB below $TMPDIR.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from facelab.data import shards
from facelab.data.cache import Cache
from facelab.data.shard_set import claimed
from facelab.data.tables import chunks
from facelab.data.tensors import load_pairs
from facelab.images import encode_png
from facelab.training.batches import batch_indices

ROWS_PER_SHARD, BATCH, STEPS, WORKERS = 5_000, 16, 100, 2


def write_pairs(place: str, count: int) -> None:
    """A shard set of noise, whose rows differ in their names alone; no two of them are copies by what they say."""
    draw = np.random.default_rng(0)
    images = [[encode_png(draw.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(50)] for side in (64, 16)]
    unknown, units = dict.fromkeys(shards.PAIR_SCHEMA.names), []
    with claimed(place, "pairs", {}, {}) as target:
        for numbers in chunks(range(count), ROWS_PER_SHARD):
            rows = []
            for i in numbers:
                name, hr, lr = f"{i:08d}.png", images[0][i % 50], images[1][i % 50]
                known = {"id": f"{name}#0", "hr_id": name, "split": shards.split_of(name), "hr": hr, "lr": lr}
                rows.append(unknown | known | {"hr_sha256": sha256(name.encode()).hexdigest()})
            units.append(target.unit_name(row["id"] for row in rows))
            shards.commit(place, units[-1], rows, [], target.schema)
        target.finish(target.totals(units))


def memory(what: str) -> float:
    """A line of /proc/self/status, MB."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return int(found.split()[1]) / 1024


class Highest:
    """The highest anonymous memory in the time of a block, MB."""

    def __enter__(self) -> "Highest":
        self.value, self._over = memory("RssAnon"), threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.value = max(self.value, memory("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def worker(place: str, cache: str, rank: int) -> None:
    torch.set_num_threads(1)
    torch.zeros(1).add(1)
    before, began = memory("RssAnon"), time.perf_counter()
    with Highest() as loading:
        train = load_pairs(place, cache=Cache(Path(cache), 2**40)).subset("train")
    seconds = time.perf_counter() - began
    with Highest() as training:
        for step in range(STEPS):
            ranks = {"rank": rank, "world_size": WORKERS}
            train.images_of(batch_indices(len(train), BATCH, step, seed=0, stream="hr", **ranks))
    found = {"before": before, "loading": loading.value, "training": training.value, "end": memory("RssAnon")}
    print(json.dumps(found | {"files": memory("RssFile"), "peak": memory("VmHWM"), "seconds": seconds}))


def measure(place: Path, cache: Path, rows: int, what: str) -> None:
    """A line of what each of the workers tells."""
    command = [sys.executable, "-m", "benchmarks.memory", "worker", str(place), str(cache)]
    workers = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(WORKERS)]
    found = [json.loads(each.communicate()[0]) for each in workers]
    for rank, told in enumerate(found):
        columns = "  ".join(f"{told[name]:8.1f}" for name in ("before", "loading", "training", "end", "files", "peak"))
        print(f"{rows:7}  {what:7}  {rank:6}  {columns}  {told['seconds']:8.1f}", flush=True)


def main() -> None:
    print("   rows  set      worker    before   loading  training       end     files      peak  loaded in")
    print("                              MB of its own .......................   shared     VmHWM          s")
    for rows in [int(each) for each in sys.argv[1:]] or [20_000, 200_000]:
        with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
            place, cache = Path(folder) / "pairs", Path(folder) / "cache"
            write_pairs(str(place), rows)
            for what in ("decoded", "found"):
                measure(place, cache, rows, what)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
