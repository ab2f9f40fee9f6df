"""What a synthesis would take on a cluster: measured on a sample of the faces here, reckoned for the cluster."""

import math
import os
import pickle
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from pydantic import Field

from facelab import storage
from facelab.cluster import ray_session, require_room
from facelab.config import build
from facelab.data.items import Item, cut
from facelab.data.shard_set import claimed
from facelab.data.shards import PAIR_SCHEMA, read_receipt, receipt_uri
from facelab.data.source import Unit, find, kind_of, scan_images
from facelab.data.tables import chunks
from facelab.data.work import HELPER_CPUS, MODEL_THREADS, commit_rows, each, fill_with_actors
from facelab.errors import UsageError
from facelab.job import Job
from facelab.synthesis.job import PairsConfig, Steps, SynthesizeConfig, load_degrader, row_bytes
from facelab.synthesis.pairs import Faces, read_faces

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun

STAGES = ("read", "decode", "degrade", "encode", "commit")
R = TypeVar("R")


class PlanConfig(PairsConfig):
    """Measure a sample of what `synthesize` would do, and predict time, cost, bytes and the bottleneck on a cluster."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"rows_per_shard": 16, "sample": 32},
        "demo": {"rows_per_shard": 128},
        "paper": {},
    }

    nodes: int = Field(default=1, ge=1)
    """Nodes of the cluster."""
    cpus_per_node: int = Field(default=16, ge=1)
    """CPUs of each that are as fast as this machine's."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs of each that are as fast as this machine's, which must have one; 0: the network runs on CPUs."""
    cpus_per_actor: float = Field(default=0.5, gt=0)
    """As of `synthesize`: CPUs reserved for each actor."""
    gpus_per_actor: float = Field(default=1, gt=0)
    """As of `synthesize`, where nodes have GPUs."""
    price: float = Field(default=0, ge=0)
    """Of a node for an hour, in any currency."""
    faces: int | None = Field(default=None, ge=1)
    """Predict for so many faces like those of --hr; default: as many as there are."""
    sample: int = Field(default=256, ge=8)
    """Faces that are measured."""


@dataclass(frozen=True)
class Work:
    """A whole job, as far as the cluster does not matter."""

    faces: int
    units: int
    """What is committed as one, by one actor."""
    seconds: Mapping[str, float]
    """Stage -> of a processor, for one face."""
    startup: float
    """Seconds until the first faces are through: style bank, Ray where it is the job's own, actors and other
    processes."""


@dataclass(frozen=True)
class Cluster:
    """What there is."""

    cpus: int
    gpus: int = 0
    cpus_per_actor: float = 0.5
    gpus_per_actor: float = 1

    def actors(self, units: int) -> int:
        """As many as fit, but no more than have something to do: one for each core, as each has one thread, or for
        each share of a GPU; beside them there is room for a reader and a writer.

        Raises:
            UsageError: not one fits.
        """
        room = int((self.cpus - 2 * HELPER_CPUS) / self.cpus_per_actor)
        most = int(self.gpus / self.gpus_per_actor) if self.gpus else self.cpus
        if min(room, most) < 1:
            raise UsageError(
                f"no actor of {self.cpus_per_actor:g} CPUs and {self.gpus_per_actor if self.gpus else 0:g} GPUs fits "
                f"beside a reader and a writer on {self.cpus} CPUs and {self.gpus} GPUs: lower --cpus-per-actor or "
                "--gpus-per-actor"
            )
        return min(room, most, units)


@dataclass(frozen=True)
class Prediction:
    """What the work takes on a cluster."""

    actors: int
    seconds: float
    """Of the whole, with the start."""
    images_per_s: float
    """Faces a second, without it."""
    capacity: Mapping[str, float]
    """Stage -> faces a second, if it had its processors for itself."""
    utilisation: Mapping[str, float]
    """Stage -> share of its processors' time."""
    bottleneck: str
    """Stage that takes most of what is short."""


def predict(work: Work, cluster: Cluster) -> Prediction:
    """Stages run beside each other: on CPUs they share all cores, and on GPUs the network has its own.

    Raises:
        UsageError: not one actor fits.
    """
    actors = cluster.actors(work.units)
    on_cpus = [stage for stage in STAGES if not (stage == "degrade" and cluster.gpus)]
    slots = {stage: actors if stage == "degrade" else cluster.cpus for stage in STAGES}
    rounds = math.ceil(work.units / actors)  # the last may leave actors idle
    of_actors = rounds * work.faces / work.units * work.seconds["degrade"]
    of_cpus = work.faces * sum(work.seconds[stage] for stage in on_cpus) / cluster.cpus
    seconds = max(of_actors, of_cpus)
    utilisation = {stage: work.faces * work.seconds[stage] / slots[stage] / seconds for stage in STAGES}
    short = ["degrade"] if of_actors > of_cpus else on_cpus
    return Prediction(
        actors=actors,
        seconds=work.startup + seconds,
        images_per_s=work.faces / seconds,
        capacity={stage: slots[stage] / work.seconds[stage] for stage in STAGES},
        utilisation=utilisation,
        bottleneck=max(short, key=lambda stage: utilisation[stage]),
    )


def plan(config: PlanConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job; returns its summary.

    Raises:
        UsageError: unusable inputs, no usable face in the sample, GPUs of which none is here, or a node on which no
            actor fits.
    """
    began = time.perf_counter()
    degrader = load_degrader(config, run)  # with the style bank, which the driver of `synthesize` encodes, too
    shape = Cluster(
        config.nodes * config.cpus_per_node, config.nodes * config.gpus_per_node,
        config.cpus_per_actor, config.gpus_per_actor,
    )  # fmt: skip
    shape.actors(1)  # told before anything is measured
    sample, there = _sample(config)
    steps, scratch = Steps.of(config, degrader), storage.join(config.output, "sample")
    with ray_session():
        if shape.gpus:
            require_room("--gpus-per-node needs here, to be measured,", {"GPU": 1}, "it to 0")
        _first_faces(config, steps, sample, scratch)
        startup = time.perf_counter() - began
        measure = partial(
            _measure, steps=steps, scratch=scratch, count=-(-config.sample // len(sample)), gpu=shape.gpus > 0
        )
        found = [one for one in each(sample, measure, gpus=float(shape.gpus > 0)) if one["faces"]]
    storage.delete(scratch)
    if not found:
        raise UsageError(f"{config.hr}: no usable face among {config.sample}: nothing to measure")
    faces = config.faces or there.faces
    units = math.ceil(there.units * faces / there.faces)
    seconds = {stage: sum(one[stage] for one in found) / len(found) for stage in STAGES}
    work = Work(faces, units, seconds, startup)
    prediction = predict(work, shape)
    hours = prediction.seconds / 3600
    mean = {name: sum(one[name] for one in found) / len(found) for name in ("face_bytes", "unit_bytes", "between")}
    print(_table(prediction, seconds, shape))
    flat = {f"{stage}_ms": 1000 * seconds[stage] for stage in STAGES}
    flat |= {f"{stage}_utilisation": prediction.utilisation[stage] for stage in STAGES}
    return {
        "faces": faces,
        "units": units,
        "measured": sum(one["faces"] for one in found),
        "actors": prediction.actors,
        "bottleneck": prediction.bottleneck,
        "images_per_s": prediction.images_per_s,
        "startup_s": work.startup,
        "seconds": prediction.seconds,
        "hours": hours,
        "cost": hours * config.nodes * config.price,
        "bytes_read": round(there.bytes * faces / there.faces),
        "bytes_written": round(faces * mean["face_bytes"] + units * mean["unit_bytes"]),
        "bytes_between_tasks": round(faces * mean["between"]),
        "read_mb_per_s": sum(one["mb_per_s"] for one in found) / len(found),
    } | flat


@dataclass(frozen=True)
class _Input:
    """All of --hr."""

    faces: int
    bytes: int
    units: int


def _sample(config: PlanConfig) -> tuple[list[Unit], _Input]:
    """Some shards, or images, by the seed: enough units for every core of this machine."""
    rng, parts = random.Random(config.seed), 2 * (os.cpu_count() or 1)
    if kind_of(config.hr, "faces") == "folder":
        images, count, size = _drawn(scan_images(config.hr), config.sample, rng)
        units = [Unit(config.hr, "folder", tuple(some)) for some in chunks(images, -(-len(images) // parts))]
        return _named(units), _Input(count, size, -(-count // config.rows_per_shard))
    source = find(config.hr, "faces")
    enough = -(-config.sample * len(source.items) // source.rows)
    items, _, size = _drawn(source.items, max(parts, enough), rng)
    whole = _Input(source.rows, size, len(list(cut(source.items, config.rows_per_shard))))
    return _named([Unit(config.hr, "faces", (item,)) for item in items]), whole


def _drawn(items: Iterable[Item], count: int, rng: random.Random) -> tuple[list[Item], int, int]:
    """`count` of them at random, in one pass; and how many there are, of how many bytes."""
    drawn: list[Item] = []
    seen = size = 0
    for item in items:
        seen, size = seen + 1, size + item.size
        if len(drawn) < count:
            drawn.append(item)
        elif (place := rng.randrange(seen)) < count:  # each is kept with the same probability
            drawn[place] = item
    return drawn, seen, size


def _named(units: list[Unit]) -> list[Unit]:
    return [Unit(unit.source, unit.kind, unit.items, f"{i:020x}") for i, unit in enumerate(units)]


def _first_faces(config: PlanConfig, steps: Steps, sample: list[Unit], scratch: str) -> None:
    """A face of some units, all the way that the job's take: with as many actors as fit here, and as they start."""
    here = Cluster(os.cpu_count() or 1, int(config.gpus_per_node > 0), config.cpus_per_actor, config.gpus_per_actor)
    pool = build(
        SynthesizeConfig, hr=config.hr, degrader=config.degrader, output=scratch, actors=here.actors(len(sample)),
        cpus_per_actor=config.cpus_per_actor, gpus_per_actor=config.gpus_per_actor * here.gpus,
    )  # fmt: skip

    decode = steps.decode  # alone: readers have no use for a degrader

    def read(unit: Unit) -> Faces:
        return decode(islice(read_faces(unit), 1))

    with claimed(scratch, "pairs", {}, {}) as target:
        fill_with_actors(target, sample[: pool.actors], read, steps.degrade, steps.encode, pool, row_bytes(config))


def _measure(unit: Unit, steps: Steps, scratch: str, count: int, gpu: bool) -> dict[str, Any]:
    """CPU seconds of each stage for one face of a unit, of which `count` are worked on; on a GPU, seconds by the clock
    are the network's."""
    torch.set_num_threads(MODEL_THREADS)
    degrade = steps.degrade.to(torch.device("cuda" if gpu else "cpu"))
    rows = list(read_faces(unit))[:count]
    one, many = (Unit(unit.source, unit.kind, name=f"{k}{unit.name[1:]}") for k in (1, 2))
    commit_rows(scratch, PAIR_SCHEMA, one, steps.encode(degrade(steps.decode(rows[:1]))))  # what is loaded once
    read, cpu, wall = _timed(lambda: list(read_faces(unit)))
    times = {"read": cpu / len(read)}
    faces, cpu, _ = _timed(lambda: steps.decode(rows))
    times["decode"] = cpu / len(rows)
    made, cpu, clock = _timed(lambda: degrade(faces))
    times["degrade"] = (clock if gpu else cpu) / len(rows)
    pairs, cpu, _ = _timed(lambda: list(steps.encode(made)))
    times["encode"] = cpu / len(rows)
    _, cpu, _ = _timed(lambda: commit_rows(scratch, PAIR_SCHEMA, many, pairs))
    times["commit"] = cpu / len(rows)
    first, last = (_written(scratch, part.name) for part in (one, many))
    per_face = (last - first) / (len(rows) - 1) if len(rows) > 1 else last
    return times | {
        "faces": len(faces.rows),
        "mb_per_s": sum(len(row["image"]) for row in read if not row["rejected"]) / 1e6 / wall,
        "face_bytes": per_face,
        "unit_bytes": first - per_face,
        "between": (len(pickle.dumps(faces)) + len(pickle.dumps(made))) / len(rows),
    }


def _timed(work: Callable[[], R]) -> tuple[R, float, float]:
    """What it returns, its CPU seconds, its seconds by the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - cpu, time.perf_counter() - wall


def _written(uri: str, unit: str) -> int:
    """Bytes of a unit's shard and receipt."""
    return read_receipt(uri, unit).bytes + len(storage.read_bytes(receipt_uri(uri, unit)))


def _table(prediction: Prediction, seconds: Mapping[str, float], cluster: Cluster) -> str:
    lines = [f"{'stage':10} {'ms a face':>10} {'faces/s':>14} {'utilisation':>12}"]
    for stage in STAGES:
        mark = "  <- bottleneck" if stage == prediction.bottleneck else ""
        lines.append(
            f"{stage:10} {1000 * seconds[stage]:10.3f} {prediction.capacity[stage]:14.0f} "
            f"{prediction.utilisation[stage]:12.1%}{mark}"
        )
    where = f"{cluster.cpus} CPUs, {cluster.gpus} GPUs"
    return "\n".join([
        *lines,
        f"{prediction.images_per_s:.0f} faces a second by {prediction.actors} actors on {where}: synthesize --actors "
        f"{prediction.actors}",
        "Not modelled: processors of another kind than this machine's, the cluster's network, limits of the store.",
    ])  # fmt: skip


def plan_plan(config: PlanConfig) -> str:
    return (
        f"measure {config.sample} faces of {config.hr} with {config.degrader} on this machine; predict for "
        f"{config.nodes} nodes of {config.cpus_per_node} CPUs and {config.gpus_per_node} GPUs"
    )


PLAN = Job("plan", PlanConfig, plan, plan_plan)
