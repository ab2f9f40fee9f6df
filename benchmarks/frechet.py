"""Statistics of the Fréchet distance against pytorch-fid's, on the same 2048-wide features: time and peak memory.

    python -m benchmarks.frechet

Each measurement is a process of its own, so that one's memory is not the other's. Rows come in batches of 50, as from a
network; pytorch-fid keeps them all in one array, then takes np.cov and scipy's sqrtm of the product. The ratios go to
benchmarks/results.json.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

DIMS, BATCH = 2048, 50
FEW, ROWS, MANY = 1_000, 2_500, 20_000
GOAL_TIME, GOAL_MEMORY = 8.0, 1.1
RESULTS = Path(__file__).with_name("results.json")


def batches(rows: int, seed: int) -> Iterator[torch.Tensor]:
    """Non-negative features whose spectrum falls, as those of a ReLU network, float32."""
    spread = torch.linspace(2, 0.05, DIMS)
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, rows, BATCH):
        yield (torch.randn(min(BATCH, rows - start), DIMS, generator=generator) * spread + 0.3 * seed).relu()


def ours(rows: int) -> dict[str, float]:
    from facelab.metrics import FrechetDistance

    distance, seconds = FrechetDistance(), 0.0
    for is_real in (True, False):
        for batch in batches(rows, int(is_real)):
            began = time.perf_counter()
            distance.update(batch, real=is_real)
            seconds += time.perf_counter() - began
    began = time.perf_counter()
    value = distance.compute()
    return {"value": value, "updates": seconds, "distance": time.perf_counter() - began}


def theirs(rows: int) -> dict[str, float]:
    from pytorch_fid.fid_score import calculate_frechet_distance

    moments, seconds = [], 0.0
    for is_real in (True, False):
        features, start = np.empty((rows, DIMS)), 0
        for batch in batches(rows, int(is_real)):
            began = time.perf_counter()
            features[start : start + len(batch)] = batch.numpy()
            seconds += time.perf_counter() - began
            start += len(batch)
        began = time.perf_counter()
        moments += [np.mean(features, axis=0), np.cov(features, rowvar=False)]
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    value = calculate_frechet_distance(*moments)
    return {"value": float(value), "updates": seconds, "distance": time.perf_counter() - began}


def measured(side: str, rows: int) -> dict[str, float]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.frechet", side, str(rows)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(
        f"{side:6} {rows:6} rows  {found['updates'] + found['distance']:7.2f} s  "
        f"(moments {found['updates']:.2f}, distance {found['distance']:.2f})  "
        f"peak {found['peak_mb']:6.0f} MB  value {found['value']:.6f}",
        flush=True,
    )
    return found


def main() -> None:
    few, many = measured("ours", FEW), measured("ours", MANY)
    reference, large = measured("theirs", ROWS), measured("theirs", MANY)
    same = measured("ours", ROWS)
    error = abs(same["value"] - reference["value"]) / reference["value"]
    seconds = [sum(found[key] for key in ("updates", "distance")) for found in (reference, same)]
    results = [
        {
            "name": "frechet_statistics_time",
            "ratio": seconds[0] / seconds[1],
            "sense": "≥",
            "goal": GOAL_TIME,
            "detail": f"pytorch-fid {seconds[0]:.2f} s, ours {seconds[1]:.2f} s for {ROWS} rows of {DIMS} on each "
            f"side, moments and distance; relative difference of the two {error:.1e}",
        },
        {
            "name": "frechet_statistics_memory",
            "ratio": many["peak_mb"] / few["peak_mb"],
            "sense": "≤",
            "goal": GOAL_MEMORY,
            "detail": f"peak of a process at {MANY} rows on each side over {FEW}: {many['peak_mb']:.0f} and "
            f"{few['peak_mb']:.0f} MB; pytorch-fid's at {MANY}: {large['peak_mb']:.0f} MB",
        },
    ]
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [entry for entry in kept if entry["name"] not in {result["name"] for result in results}]
    RESULTS.write_text(json.dumps(kept + results, indent=2, ensure_ascii=False) + "\n")
    for result in results:
        print(f"{result['name']}: {result['ratio']:.2f} (goal {result['sense']} {result['goal']}): {result['detail']}")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        found = {"ours": ours, "theirs": theirs}[sys.argv[1]](int(sys.argv[2]))
        print(json.dumps(found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
    else:
        main()
