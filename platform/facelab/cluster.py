"""Which Ray a job runs on: its own local one, unless it was told of a cluster."""

import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import ray
import ray.data
from ray._common.constants import HEAD_NODE_RESOURCE_NAME

from facelab.errors import UsageError

_WORKING_FOLDER = os.getcwd()

_DRIVER = 0.01
"""Of the head: a hundred of them at a time."""

_TOO_SLOW = "timed out during startup"
"""In what Ray raises when its own processes take longer than 30 s."""

_QUIET = {
    "ray.data": logging.WARNING,
    "ray.data._internal.progress": logging.ERROR,  # that progress bars are off
    "ray._private.authentication.authentication_token_setup": logging.ERROR,  # that a local Ray has a token
    # Tracebacks of what a task raised: job.main tells every error, once.
    "ray.data.exceptions": logging.CRITICAL,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
}


@contextmanager
def ray_session(*, dashboard: bool = False) -> Iterator[None]:
    """Connect for the time of the block; inside another session, use that one.

    RAY_ADDRESS, which `ray job submit` sets for its jobs, names a cluster; otherwise a local Ray is started. Ray would
    also join whatever cluster is found lying about on the machine: "local" forbids that.

    Args:
        dashboard: start the local Ray's dashboard, on loopback (2 s, 900 MB). It carries the State API, without which
            Ray Train never frees the workers of a trial that Tune stopped, and the next trial waits for ever.
    """
    try:
        if ray.is_initialized():
            yield
        else:
            with _connection(dashboard):
                yield
    finally:
        _return_to_working_folder()


def on_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster, which may grow; a local Ray never does."""
    return bool(os.environ.get("RAY_ADDRESS"))


def room() -> dict[str, float]:
    """CPUs, GPUs and other resources of the Ray that is connected."""
    return dict(ray.cluster_resources())


def driver_resources() -> dict[str, float]:
    """For a task or a trial that only waits for the workers that it starts: some of the head node, which is not taken
    away, and none of what those need. Whole CPUs would do so until all are held by who waits."""
    return {HEAD_NODE_RESOURCE_NAME: _DRIVER}


def cluster_environment() -> dict[str, str]:
    """For processes that Ray starts, which are not told to which cluster they belong, and would think that it cannot
    grow."""
    return {"RAY_ADDRESS": os.environ["RAY_ADDRESS"]} if on_cluster() else {}


def places_for(bundle: dict[str, float]) -> int:
    """How many such bundles of resources the nodes hold at once, each on one node; 0: none has room for it."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    asked = {name: amount for name, amount in bundle.items() if amount}
    return sum(min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in asked.items()) for node in nodes)


def require_room(what: str, wanted: dict[str, float], lower: str) -> None:
    """Refuse what would wait for ever on a machine that cannot grow; a cluster still may.

    Args:
        what: the sentence's subject and verb, such as "--workers 4 needs".
        wanted: resource -> amount.
        lower: the options that ask for less.

    Raises:
        UsageError: there is less.
    """
    has = room()
    for name, amount in wanted.items():
        if has.get(name, 0) < amount and not on_cluster():
            raise UsageError(
                f"{what} {amount:g} {name}s, but this machine has {has.get(name, 0):g}: lower {lower}, or set "
                "RAY_ADDRESS to a cluster"
            )


def _return_to_working_folder() -> None:
    """Two Ray nodes of one machine share the folder that a submitted job was unpacked to, and the second unpacks it
    anew beneath the driver, whose working folder then no longer exists, though one of its name does."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir(_WORKING_FOLDER)


@contextmanager
def _connection(dashboard: bool) -> Iterator[None]:
    context = ray.data.DataContext.get_current()
    # The user's errors keep their type on the way to the driver.
    context.raise_original_map_exception = True
    # Progress bars where someone watches; in a log they would be a page of lines every ten seconds.
    context.enable_progress_bars = sys.stderr.isatty()
    for name, level in _QUIET.items():
        logging.getLogger(name).setLevel(level)
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=True, logging_level=logging.WARNING)
    else:
        try:
            _start(dashboard)
        except Exception as error:  # Ray has no class for it
            if _TOO_SLOW not in str(error):
                raise
            print("this machine is busy: Ray did not start in 30 s; once more", file=sys.stderr)
            _start(dashboard)
    try:
        yield
    finally:
        ray.shutdown()
        if not address:
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)


def _start(dashboard: bool) -> None:
    """A local Ray; what is left of one that did not start ends with this process."""
    port = _free_port()
    if dashboard:
        # For Ray Train's watcher: it would ask whatever Ray is the newest on this machine whether the training is
        # alive, and where that knows nothing of it, take its workers away.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    # At least 2 CPUs by count, so that a worker and its data do not wait for each other on a small machine.
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, 2),
        include_dashboard=dashboard,
        dashboard_host="127.0.0.1",
        dashboard_port=port,
        logging_level=logging.WARNING,
    )


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
