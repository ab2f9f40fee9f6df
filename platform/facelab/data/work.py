"""Units of an input, worked on side by side; each is committed as one shard with its receipt. Only this file of the
room knows Ray."""

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import pyarrow as pa
import ray
import ray.data
import torch

from facelab.cluster import ray_session, require_room
from facelab.config import ActorConfig
from facelab.data import shards
from facelab.data.source import Row, Unit

U = TypeVar("U", bound=Unit)
Reader = Callable[[U], Iterable[Row]]
"""What a task does with a unit; a row that cannot be used says why in `rejected`."""

_READER_CPUS = 0.25
"""Of a task that reads for model actors: a whole CPU would never be free beside actors that fill a small machine."""


class Model(Protocol):
    """What an actor holds."""

    def to(self, device: torch.device) -> "Model": ...
    def __call__(self, given: Any, /) -> Any: ...


def fill(output: str, schema: pa.Schema, units: Sequence[U], read: Reader[U], *, overwrite: bool = False) -> None:
    """Commit the rows that `read` gives for each unit, in tasks of one CPU.

    Raises:
        UsageError: a finished set is there, and not to `overwrite`.
    """

    def task(row: dict[str, Any]) -> dict[str, Any]:
        return _commit(output, schema, unit := _unit(row), read(unit))

    with ray_session():
        shards.start_set(output, overwrite)
        _dataset(units).map(task).materialize()


def fill_with_model(
    output: str,
    schema: pa.Schema,
    units: Sequence[U],
    read: Reader[U],
    model: Model,
    pool: ActorConfig,
    *,
    overwrite: bool = False,
) -> None:
    """The same for the rows that `model`, on actors, makes of those that `read` gives for each unit.

    Args:
        model: rows of one unit -> rows; those that cannot be used say why in `rejected`.

    Raises:
        UsageError: also where there is no room for the actors; what lies at `output` is then left as it is.
    """

    def task(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"rows": list(read(_unit(row)))}

    with ray_session():
        _require_room(pool)
        shards.start_set(output, overwrite)
        _dataset(units).map(task, num_cpus=_READER_CPUS).map(
            _Committing,  # pyrefly: ignore  (an actor's class is welcome)
            fn_constructor_args=(ray.put(model), pool, output, schema),
            **_reserved(pool),
        ).materialize()


def stream(
    units: Sequence[U], read: Reader[U], model: Model, pool: ActorConfig, batch_size: int
) -> Iterator[dict[str, Any]]:
    """What `model`, on actors, makes of the rows of all units, in their order.

    Args:
        model: columns of some rows -> columns of as many rows.
        batch_size: rows that the model is given, and that are yielded, at a time.
    """

    def task(row: dict[str, Any]) -> list[Row]:
        return list(read(_unit(row)))

    with ray_session():
        _require_room(pool)
        dataset = _dataset(units)
        dataset.context.execution_options.preserve_order = True
        results = dataset.flat_map(task, num_cpus=_READER_CPUS).map_batches(
            _Holding,  # pyrefly: ignore
            batch_size=batch_size,
            fn_constructor_args=(ray.put(model), pool),
            **_reserved(pool),
        )
        yield from results.iter_batches(batch_size=batch_size, batch_format="numpy")  # pyrefly: ignore


def _require_room(pool: ActorConfig) -> None:
    what = f"--actors {pool.actors} of --cpus-per-actor {pool.cpus_per_actor:g} and a reader need"
    require_room(what, {"CPU": pool.actors * pool.cpus_per_actor + _READER_CPUS}, "one of them")


def _dataset(units: Sequence[Unit]) -> ray.data.Dataset:
    # As bytes: of objects, Ray would try to make columns.
    return ray.data.from_items([{"unit": pickle.dumps(unit)} for unit in units], override_num_blocks=len(units))


def _unit(row: dict[str, Any]) -> Any:
    return pickle.loads(row["unit"])


def _reserved(pool: ActorConfig) -> dict[str, Any]:
    compute = ray.data.ActorPoolStrategy(size=pool.actors)
    return {"compute": compute, "num_cpus": pool.cpus_per_actor, "num_gpus": pool.gpus_per_actor}


class _Holding:
    """A Ray actor around a model."""

    def __init__(self, shared: ray.ObjectRef, pool: ActorConfig):
        # The number of threads changes the last bits of sums: the same on every actor and machine.
        torch.set_num_threads(1)
        gpu = pool.gpus_per_actor and torch.cuda.is_available()
        model: Model = ray.get(shared)  # read once, not by every actor
        self.model = model.to(torch.device("cuda" if gpu else "cpu"))

    def __call__(self, given: Any) -> Any:
        return self.model(given)


class _Committing(_Holding):
    """The same, which commits what the model makes of a unit."""

    def __init__(self, shared: ray.ObjectRef, pool: ActorConfig, output: str, schema: pa.Schema):
        super().__init__(shared, pool)
        self.output, self.schema = output, schema

    def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
        return _commit(self.output, self.schema, _unit(given), self.model(given["rows"]))


def _commit(output: str, schema: pa.Schema, unit: Unit, rows: Iterable[Row]) -> dict[str, Any]:
    """Rejected rows stay with the unit; the driver hears nothing but its name."""
    usable: list[Row] = []
    rejected: list[dict[str, str]] = []
    enlarged = 0
    for row in rows:
        if row["rejected"]:
            rejected.append({"id": row["id"], "source": unit.source, "reason": row["rejected"]})
        else:
            usable.append({name: row[name] for name in schema.names})
            enlarged += row.get("enlarged", False)
    shards.commit(output, unit.name, usable, rejected, schema, enlarged)
    return {"unit": unit.name}
