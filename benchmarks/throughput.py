"""`synthesize` beside the bare network and beside a plain DataLoader script, with the network of preset `paper`.

    python -m benchmarks.throughput

Faces a second on two cores, in one run, by turns, medians. What is compared, on drawn faces of 64 px:

    bare     the network's forward alone, on float tensors in memory, 16 at a time as in the job; as many processes of
             one thread as the job has actors
    script   what one would write without facelab: a DataLoader of two workers that reads and decodes the same shards,
             the network in the main process on both cores, PNG and Parquet written there; from its first batch on
    job      facelab's synthesize: over its second half, when what starts late, such as who encodes, has caught up

Start-up is what is left of the job's time: style bank, Ray, actors, the first faces in, the last ones out. The CPU
seconds of each step for one face, by jobs.plan, say what can be reached at all.
"""

import io
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from facelab.config import build
from facelab.data.prepare import PrepareConfig, prepare
from facelab.synthesis.job import SynthesizeConfig, synthesize
from facelab.synthesis.plan import STAGES, PlanConfig, plan
from facelab.trained import store
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from benchmarks.drawn import write_drawn
from models import build_degrader
from models.stylevae import StyleVAE, reparameterise

SIDE, SCALE, BATCH, UNIT = 64, 4, 16, 128
FACES = 2048
REPEATS = 3
PAPER = {key.split(".")[1]: value for key, value in StyleVAE.presets["paper"].items()}
GOALS = {"bare": 0.9, "script": 1.1}


class Bare:
    """Processes of one thread that hold the network and a batch."""

    def __init__(self, processes: int):
        self.pool = multiprocessing.get_context("spawn").Pool(processes, _hold)

    def rate(self, faces: int) -> float:
        began = time.perf_counter()
        self.pool.map(_forward, range(faces // BATCH), chunksize=1)
        return faces / (time.perf_counter() - began)


def _hold() -> None:
    global _held
    torch.set_num_threads(1)
    network = build_degrader("stylevae", SCALE, **PAPER).eval()
    _held = network, torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1, torch.randn(BATCH, network.noise_dim(SIDE))
    _forward(0)


@torch.no_grad()
def _forward(_: int) -> None:
    network, faces, noise = _held
    network.degrade(faces, noise)


class Faces(IterableDataset):
    """The script's data: every worker has its own shards."""

    def __init__(self, folder: str):
        self.files = sorted(Path(folder).glob("*.parquet"))

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        info = get_worker_info()
        for file in self.files[info.id :: info.num_workers]:
            for row in pq.read_table(file, columns=["id", "image"]).to_pylist():
                image = np.array(Image.open(io.BytesIO(row["image"])).convert("RGB"))
                yield row["id"], torch.from_numpy(image).permute(2, 0, 1)


@torch.no_grad()
def script(hr: str, lr: str, model: str, output: Path) -> float:
    """Faces a second."""
    network = store.load_model(model, "degrader").network
    real = np.stack([np.array(Image.open(file)) for file in sorted(Path(lr).rglob("*.png"))])
    codes = [network.encode_style(part.permute(0, 3, 1, 2) / 127.5 - 1) for part in torch.from_numpy(real).split(64)]
    mu, logvar = (torch.cat(each) for each in zip(*codes, strict=True))
    output.mkdir()
    rows, count = [], 0
    for ids, faces in DataLoader(Faces(hr), batch_size=BATCH, num_workers=2):
        if not count:
            began = time.perf_counter()
        style = torch.randint(len(mu), (len(ids),))
        low = network.degrade(faces / 127.5 - 1, reparameterise(mu[style], logvar[style], torch.randn(mu[style].shape)))
        low = ((low + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        for name, face, small in zip(ids, faces, low, strict=True):
            rows.append({"id": name, "hr": png(face), "lr": png(small), "style": "", "split": "train"})
        if len(rows) >= UNIT:
            pq.write_table(pa.Table.from_pylist(rows), output / f"{count}.parquet", compression="zstd")
            rows = []
        count += len(ids)
    return count / (time.perf_counter() - began)


def png(image: torch.Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def job(output: Path, actors: int, **inputs: str) -> tuple[float, float]:
    """Faces a second; seconds of start-up."""
    began = time.perf_counter()
    synthesize(build(SynthesizeConfig, output=str(output), actors=actors, rows_per_shard=UNIT, **inputs))
    seconds = time.perf_counter() - began
    committed = sorted(receipt.stat().st_mtime for receipt in output.glob("receipts/*"))
    rate = FACES / 2 / (committed[-1] - committed[len(committed) // 2 - 1])
    return rate, seconds - FACES / rate


def measure(place: Path) -> dict[str, list[float]]:
    """Name -> a number of each repeat. Every job has a Ray of its own, as a user's."""
    model, hr, lr = str(place / "model"), str(place / "hr"), write_drawn(place / "lr", 256, SIDE, SCALE)
    store.save_model(model, "degrader", "stylevae", build_degrader("stylevae", SCALE, **PAPER), SCALE, SIDE)
    images = write_drawn(place / "images", FACES, SIDE)
    prepare(build(PrepareConfig, input=images, output=hr, rows_per_shard=UNIT))
    bare = {actors: Bare(actors) for actors in (1, 2)}
    found: dict[str, list[float]] = {}
    for repeat in range(REPEATS):
        now = {"script": script(hr, lr, model, place / f"script{repeat}")}
        for actors in (2, 1):
            now[f"bare {actors}"] = bare[actors].rate(FACES // 2)
            pairs = place / f"pairs{repeat}-{actors}"
            now[f"job {actors}"], now[f"start-up {actors}"] = job(pairs, actors, hr=hr, lr=lr, degrader=model)
        for name, value in now.items():
            found.setdefault(name, []).append(value)
        print({name: round(value, 1) for name, value in now.items()}, flush=True)
    planned = plan(build(PlanConfig, hr=hr, lr=lr, degrader=model, output=str(place / "plan"), cpus_per_node=2))
    return found | {f"{stage}_ms": [planned[f"{stage}_ms"]] for stage in STAGES}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="facelab-") as place:
        found = {name: statistics.median(values) for name, values in measure(Path(place)).items()}
    steps = {stage: found[f"{stage}_ms"] for stage in STAGES}
    print("CPU ms of a face: " + ", ".join(f"{k} {v:.2f}" for k, v in steps.items()))
    print(f"so two busy cores can reach {steps['degrade'] / sum(steps.values()):.2f} of the bare network")
    for actors in (1, 2):
        rate = found[f"job {actors}"]
        print(
            f"{actors} actors: {rate:.0f} faces/s; bare {found[f'bare {actors}']:.0f}, script {found['script']:.0f}; "
            f"of the bare network {rate / found[f'bare {actors}']:.2f} (goal ≥ {GOALS['bare']}), "
            f"of the script {rate / found['script']:.2f} (goal ≥ {GOALS['script']}); "
            f"start-up {found[f'start-up {actors}']:.1f} s"
        )


if __name__ == "__main__":
    main()
