"""Units of an input, worked on side by side; each is committed as one shard with its receipt. Only this file of the
room knows Ray."""

import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import ray
import ray.data
import torch
from tqdm import tqdm

from facelab.cluster import ray_session, require_room
from facelab.config import ActorConfig
from facelab.data import shards
from facelab.data.shard_set import ShardSet
from facelab.data.source import Row, Unit
from facelab.data.tables import chunks

U = TypeVar("U", bound=Unit)
Reader = Callable[[U], Any]
"""What is made of a unit before the model."""
Encoder = Callable[[Any], Iterable[Row]]
"""What is made of what the model made; a row that cannot be used says why in `rejected`."""
Receipt = dict[str, Any]
"""Name of a unit that is committed, and how many of its rows were rejected."""

HELPER_CPUS = 0.25
"""Of what reads or writes beside model actors: a whole CPU would never be free where they fill a small machine."""
_HELPER_THREADS = 4
MODEL_THREADS = 1
"""Of a model: their number changes the last bits of sums, so it is the same on every actor and machine."""
_UNITS_AHEAD = 4
"""For each model actor, between those who read and those who write: Ray alone would fill half of its object store."""
_WAVE = 4096
"""Units given to Ray at a time: it remembers something of each."""


class Model(Protocol):
    """What an actor holds."""

    def to(self, device: torch.device) -> "Model": ...
    def __call__(self, given: Any, /) -> Any: ...


def fill(target: ShardSet, units: Sequence[U], read: Callable[[U], Iterable[Row]]) -> None:
    """Commit the rows that `read` gives for each unit, in tasks of one CPU; units with a receipt are done."""

    uri, schema = target.uri, target.schema

    def task(row: dict[str, Any]) -> Receipt:
        unit = _unit(row)
        return _receipt(uri, unit) or commit_rows(uri, schema, unit, read(unit))

    with ray_session():
        _see_through(target, units, lambda wave: _dataset(wave).map(task).iter_rows())


def fill_here(target: ShardSet, units: Sequence[U], read: Reader[U], model: Model, encode: Encoder) -> None:
    """The same by a model, in this process and without Ray."""

    def commit(unit: U) -> Receipt:
        return commit_rows(target.uri, target.schema, unit, encode(model(read(unit))))

    threads = torch.get_num_threads()
    torch.set_num_threads(MODEL_THREADS)
    try:
        _see_through(target, units, lambda wave: map(commit, wave))
    finally:
        torch.set_num_threads(threads)


def fill_with_actors(
    target: ShardSet,
    units: Sequence[U],
    read: Reader[U],
    model: Model,
    encode: Encoder,
    pool: ActorConfig,
    row_bytes: int,
) -> None:
    """The same where one actor reads a unit, another applies the model to it, and a third encodes what that made.

    Args:
        read, encode: are copied to everyone who reads or writes, unlike the model, of which a node has one copy.
        row_bytes: about what a row takes on its way from one to the next.
    """
    helpers = _helpers(pool)
    largest = max((unit.rows for unit in units), default=0) * row_bytes
    limits = ray.data.ExecutionResources.for_limits(object_store_memory=_UNITS_AHEAD * _most(pool) * largest)

    def work(wave: Sequence[U]) -> Iterable[Receipt]:
        dataset = _dataset(wave)
        dataset.context.execution_options.resource_limits = limits
        return (
            dataset.map(_Reading, fn_constructor_args=(target.uri, read), **helpers)  # pyrefly: ignore  (a class is fine)
            .map(_Making, fn_constructor_args=(held, pool, target.uri), **_reserved(pool))  # pyrefly: ignore
            .map(_Committing, fn_constructor_args=(target.uri, target.schema, encode), **helpers)  # pyrefly: ignore
            .iter_rows()
        )

    with ray_session():
        held = ray.put(model)
        _see_through(target, units, work)


def _see_through(target: ShardSet, units: Sequence[U], work: Callable[[Sequence[U]], Iterable[Receipt]]) -> None:
    """
    Args:
        work: commits some units.
    """
    done = target.done()
    left = [unit for unit in units if unit.name not in done]
    sizes = {unit.name: unit.rows for unit in left}
    total = sum(unit.rows for unit in units)
    if before := total - sum(sizes.values()):
        print(f"{target.uri}: {before} of {total} images were committed before; going on", flush=True)
    committed, rejected = len(units) - len(left), 0
    try:
        with tqdm(total=total, initial=before, unit="image", desc=target.kind, dynamic_ncols=True) as bar:
            for wave in chunks(left, _WAVE):
                for receipt in work(wave):
                    target.owner.check()
                    committed, rejected = committed + 1, rejected + receipt["rejected"]
                    bar.set_postfix(rejected=rejected, refresh=False)
                    bar.update(sizes[receipt["unit"]])
    except (KeyboardInterrupt, SystemExit):
        print(
            f"\n{target.uri}: {committed} of {len(units)} units are committed; the same command goes on from there",
            file=sys.stderr,
        )
        raise


def each(units: Sequence[U], act: Callable[[U], dict[str, Any]], gpus: float = 0) -> Iterator[dict[str, Any]]:
    """What `act` tells of each unit, in tasks of one CPU and so many GPUs, in any order."""

    def task(row: dict[str, Any]) -> dict[str, Any]:
        return act(_unit(row))

    with ray_session():
        for wave in chunks(units, _WAVE):
            yield from _dataset(wave).map(task, num_cpus=1, num_gpus=gpus).iter_rows()


def stream(
    units: Sequence[U], read: Callable[[U], Iterable[Row]], model: Model, pool: ActorConfig, batch_size: int
) -> Iterator[dict[str, Any]]:
    """What `model`, on actors, makes of the rows of all units, in their order.

    Args:
        model: columns of some rows -> columns of as many rows.
        batch_size: rows that the model is given, and that are yielded, at a time.
    """

    def task(row: dict[str, Any]) -> list[Row]:
        return list(read(_unit(row)))

    with ray_session():
        require_actors(pool, "a reader")
        dataset = _dataset(units)
        dataset.context.execution_options.preserve_order = True
        results = dataset.flat_map(task, num_cpus=HELPER_CPUS).map_batches(
            _Holding,  # pyrefly: ignore
            batch_size=batch_size,
            fn_constructor_args=(ray.put(model), pool),
            **_reserved(pool),
        )
        yield from results.iter_batches(batch_size=batch_size, batch_format="numpy")  # pyrefly: ignore


def require_actors(pool: ActorConfig, *helpers: str) -> None:
    """
    Args:
        helpers: who works beside them, such as "a reader".

    Raises:
        UsageError: there is no room for them, and never will be.
    """
    what = f"--actors {pool.actors} of --cpus-per-actor {pool.cpus_per_actor:g} beside {' and '.join(helpers)} need"
    require_room(what, {"CPU": pool.actors * pool.cpus_per_actor + len(helpers) * HELPER_CPUS}, "one of them")


def _dataset(units: Sequence[Unit]) -> ray.data.Dataset:
    # As bytes: of objects, Ray would try to make columns.
    return ray.data.from_items([{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=len(units))


def _unit(row: dict[str, Any]) -> Any:
    return pickle.loads(row["unit"])


def _most(pool: ActorConfig) -> int:
    return max(pool.actors, pool.max_actors or 0)


def _reserved(pool: ActorConfig) -> dict[str, Any]:
    compute = ray.data.ActorPoolStrategy(min_size=pool.actors, max_size=_most(pool), initial_size=pool.actors)
    return {"compute": compute, "num_cpus": pool.cpus_per_actor, "num_gpus": pool.gpus_per_actor}


def _helpers(pool: ActorConfig) -> dict[str, Any]:
    """Of those who read, or write, for model actors. They are actors, too, as Ray ends a process that had no task for a
    second, and the next one takes seconds to begin; with threads, as images and stores leave Python's lock alone. How
    many there are follows their work: a network on a core keeps a part of one busy, on a GPU several."""
    most = 4 * _most(pool) if pool.gpus_per_actor else -(-_most(pool) // 2)
    compute = ray.data.ActorPoolStrategy(
        min_size=1, max_size=most, max_concurrent_calls_per_actor=_HELPER_THREADS, enable_true_multi_threading=True
    )
    return {"compute": compute, "num_cpus": HELPER_CPUS}


class _Reading:
    """Reads units; nothing of those that are committed."""

    def __init__(self, output: str, read: Reader):
        self.output, self.read = output, read

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        unit = _unit(given)
        return given | {"made": b"" if shards.is_committed(self.output, unit.name) else pickle.dumps(self.read(unit))}


class _Committing:
    """Writes what was made of units."""

    def __init__(self, output: str, schema: pa.Schema, encode: Encoder):
        self.output, self.schema, self.encode = output, schema, encode

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        unit = _unit(given)
        return _receipt(self.output, unit) or commit_rows(
            self.output, self.schema, unit, self.encode(pickle.loads(given["made"]))
        )


class _Holding:
    """A Ray actor around a model."""

    def __init__(self, shared: ray.ObjectRef, pool: ActorConfig):
        torch.set_num_threads(MODEL_THREADS)
        gpu = pool.gpus_per_actor and torch.cuda.is_available()
        model: Model = ray.get(shared)  # read once, not by every actor
        self.model = model.to(torch.device("cuda" if gpu else "cpu"))

    def __call__(self, given: Any) -> Any:
        return self.model(given)


class _Making(_Holding):
    """The same for what was read of one unit."""

    def __init__(self, shared: ray.ObjectRef, pool: ActorConfig, output: str):
        super().__init__(shared, pool)
        self.output = output

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        # A unit comes again where a node died with what it had made, though it may have been committed.
        if not given["made"] or shards.is_committed(self.output, _unit(given).name):
            return given | {"made": b""}
        return given | {"made": pickle.dumps(self.model(pickle.loads(given["made"])))}


def _receipt(uri: str, unit: Unit) -> Receipt | None:
    """What `commit_rows` gave for a unit that comes again."""
    if not shards.is_committed(uri, unit.name):
        return None
    return {"unit": unit.name, "rejected": len(shards.read_receipt(uri, unit.name).rejected)}


def commit_rows(uri: str, schema: pa.Schema, unit: Unit, rows: Iterable[Row]) -> Receipt:
    """Rejected rows stay with the unit; the driver hears nothing but its name and how many they are."""
    usable: list[Row] = []
    rejected: list[dict[str, str]] = []
    enlarged = 0
    for row in rows:
        if row["rejected"]:
            rejected.append({"id": row["id"], "source": unit.source, "reason": row["rejected"]})
        else:
            usable.append({name: row[name] for name in schema.names})
            enlarged += row.get("enlarged", False)
    shards.commit(uri, unit.name, usable, rejected, schema, enlarged)
    return {"unit": unit.name, "rejected": len(rejected)}
