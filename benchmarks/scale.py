"""20,000 drawn faces through prepare, synthesize and train_sr: time beside what jobs.plan predicted, and memory.

    python -m benchmarks.scale [--faces 20000] [--output outputs/scale]

The styleVAE is that of preset paper, untrained; two workers train a small SRCNN. Every second, what the processes of a
job hold is written to memory.csv: proportional set sizes, so that what is shared counts once, of the driver, of Ray's
workers, of Ray itself; of the object store; and of the files that are mapped, which are libraries and the training
cache, and which the system takes back when it needs the room. memory.png shows them. Linux alone.
"""

import argparse
import csv
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import matplotlib
from facelab.trained import store

from benchmarks.drawn import write_drawn
from models import build_degrader
from models.stylevae import StyleVAE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIDE, SCALE, ROWS = 64, 4, 500
PARTS = ("driver", "workers", "ray", "object store", "mapped files")
PAPER = {key.split(".")[1]: value for key, value in StyleVAE.presets["paper"].items()}


def descendants(root: int) -> list[int]:
    """A process and all that it began."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # has just ended
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def memory(root: int) -> Counter[str]:
    """MB by PARTS."""
    held: Counter[str] = Counter()
    for pid in descendants(root):
        try:
            sizes = Path(f"/proc/{pid}/smaps_rollup").read_text()
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        part = "driver" if pid == root else "workers" if command.startswith(b"ray::") else "ray"
        found = {name: int(kb) / 1000 for name, kb in re.findall(r"^(Pss\w*): +(\d+) kB", sizes, re.MULTILINE)}
        held[part] += found.get("Pss_Anon", 0)
        held["object store"] += found.get("Pss_Shmem", 0)
        held["mapped files"] += found.get("Pss_File", 0)  # an ended process has none of them
    return held


def run(job: str, *arguments: str, samples: list[dict]) -> float:
    """A job as a user calls it, watched; its seconds."""
    print(f"python -m jobs.{job}", *arguments, flush=True)
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", f"jobs.{job}", *arguments])
    while process.poll() is None:
        samples.append({"job": job, "seconds": round(time.perf_counter() - began, 1), **memory(process.pid)})
        time.sleep(1)
    if process.returncode:
        raise SystemExit(f"jobs.{job} ended with {process.returncode}")
    return time.perf_counter() - began


def plot(samples: list[dict], jobs: list[str], place: Path) -> None:
    figure, axes = plt.subplots(1, len(jobs), figsize=(10, 3.2), sharey=True, squeeze=False)
    for axis, job in zip(axes[0], jobs, strict=True):
        some = [sample for sample in samples if sample["job"] == job]
        for part in PARTS:
            axis.plot([s["seconds"] for s in some], [s.get(part, 0) for s in some], label=part)
        axis.set(title=job, xlabel="s")
    axes[0][0].set(ylabel="MB, proportional set size", ylim=(0, None))
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(place, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faces", type=int, default=20_000)
    parser.add_argument("--output", type=Path, default=Path("outputs/scale"))
    given = parser.parse_args()
    out, samples = given.output, []
    images, lr = write_drawn(out / "images", given.faces, SIDE), write_drawn(out / "lr", 1000, SIDE, SCALE)
    hr, pairs, degrader = (str(out / name) for name in ("hr", "pairs", "degrader"))
    store.save_model(degrader, "degrader", "stylevae", build_degrader("stylevae", SCALE, **PAPER), SCALE, SIDE)

    rows = ("--rows-per-shard", str(ROWS))
    inputs = ("--hr", hr, "--lr", lr, "--degrader", degrader, *rows)
    seconds = {"prepare": run("prepare", "--input", images, "--output", hr, *rows, samples=samples)}
    run("plan", *inputs, "--output", str(out / "plan"), "--cpus-per-node", "2", samples=[])
    seconds["synthesize"] = run("synthesize", *inputs, "--output", pairs, "--actors", "2", samples=samples)
    training = ("--preset", "mini", "--model", "srcnn", "--pairs", pairs, "--output", str(out / "sr"), "--workers", "2")
    training += ("--max-steps", "600", "--cache-folder", str(out / "cache"))
    seconds["train_sr"] = run("train_sr", *training, samples=samples)

    with (out / "memory.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ("job", "seconds", *PARTS), restval=0)
        table.writeheader()
        table.writerows(samples)
    plot(samples, list(seconds), out / "memory.png")
    for job in seconds:
        held = [sum(s.get(part, 0) for part in PARTS) for s in samples if s["job"] == job]
        third = -(-len(held) // 3)
        middle, end = (statistics.median(part) for part in (held[third : 2 * third] or held, held[-third:]))
        print(f"{job:12} {seconds[job]:7.1f} s  median of its middle third {middle:.0f} MB, of its last {end:.0f} MB")
    planned = json.loads((out / "plan" / "summary.json").read_text())
    written = sum(file.stat().st_size for file in [*Path(pairs).glob("part-*"), *Path(pairs, "receipts").glob("*")])
    print(f"synthesize   predicted {planned['seconds']:.1f} s, of which start {planned['startup_s']:.1f}")
    print(f"bytes        predicted {planned['bytes_written']}, written {written}")


if __name__ == "__main__":
    main()
