"""What a cluster says of a job before it runs there: a look by its own driver, and from a node of each kind."""

import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from facelab import storage
from facelab.cluster import ray_session
from facelab.config import JobConfig, places, without_secret
from facelab.errors import UsageError
from facelab.submission.checks import ANSWER, Check, NodeType, checked, demand_of, room
from facelab.tracking.client import experiment_id, tracking_uri

_IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_KIND = "ray.io/node-group"
"""Ray's label of a node that an autoscaler started: the name of its type."""
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its cluster file on the head, whose autoscaler reads it there."""


def probe(config: JobConfig, packages: dict[str, str], grows: bool) -> bool:
    """Look, on the cluster, print what is found as it is found, then the answer; whether nothing is wrong.

    Args:
        packages: name -> version in the lock file.
        grows: the user's word for it that there is an autoscaler.
    """
    answer: dict[str, Any] = {"uri": "", "experiment": None}
    well = _said(checked("the output is free", _output_is_free, config))
    well &= _said(checked("MLflow, from the driver", _note_tracking, answer, config))
    if well:
        with ray_session():
            for check in _looks(config, answer["uri"], packages, grows):
                well &= _said(check)
    _write(ANSWER + json.dumps(answer | {"well": well, "uri": without_secret(answer["uri"])}))
    return well


def _said(check: Check) -> bool:
    """Print it; whether it is well."""
    _write(str(check))
    return check.wrong is None


def _write(line: str) -> None:
    """At once, for Ray prints what workers say into the same log from another thread."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _note_tracking(answer: dict[str, Any], config: JobConfig) -> str:
    answer["uri"] = tracking_uri(config)
    if _on_server(answer["uri"]):
        answer["experiment"] = _experiment_id(answer["uri"], config.experiment)
    return without_secret(answer["uri"])


def _experiment_id(uri: str, name: str) -> str | None:
    """Asked with little patience, for a job that goes on in this process with more."""
    before = dict(os.environ)
    os.environ.update(_IMPATIENT)
    try:
        return experiment_id(uri, name)
    finally:
        for variable in _IMPATIENT:
            os.environ.pop(variable)
            if variable in before:
                os.environ[variable] = before[variable]


def _on_server(uri: str) -> bool:
    """A SQLite file would be made by looking at it."""
    return not uri.startswith("sqlite:")


def _output_is_free(config: JobConfig) -> None:
    config.check_files()
    config.check_output()
    goes_on = getattr(config, "resume", False) or getattr(config, "overwrite", False)
    if not goes_on and storage.exists(storage.join(config.output, "summary.json")):
        raise UsageError(
            f"{config.output}: has the summary.json of a finished job, which this one would replace: choose another "
            "--output"
        )


def node_types() -> tuple[list[NodeType], int] | None:
    """What the autoscaler of `ray up` may add, and how many nodes in all; None where there is no such file."""
    file = _BOOTSTRAP.expanduser()
    if not file.exists():
        return None
    cluster = yaml.safe_load(file.read_text())
    kinds = cluster["available_node_types"].values()
    found = [NodeType(kind.get("max_workers", 0), kind.get("resources", {})) for kind in kinds]
    return found, cluster.get("max_workers", sum(kind.most for kind in found))


def _one_of_each_kind(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Workers; the head where there is no other node yet."""
    here = ray.get_runtime_context().get_node_id()
    workers = [node for node in nodes if node["NodeID"] != here]
    return list({node["Labels"].get(_KIND): node for node in workers or nodes}.values())


def _looks(config: JobConfig, uri: str, packages: Mapping[str, str], grows: bool) -> Iterator[Check]:
    """At the cluster, and from its workers."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if demand := demand_of(config):
        types, most = node_types() or (None, None)
        resources = [node["Resources"] for node in nodes]
        check = checked("resources", room, demand, resources, types, most, grows)
        yield check
        if check.wrong:
            return
    written = [config.output, *([] if _on_server(uri) else [str(Path(uri.removeprefix("sqlite:///")).parent)])]
    for node in _one_of_each_kind(nodes):
        look = _look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        marks: dict[str, str] = {}
        try:
            for place in written:
                yield checked(f"{place}: the driver can write", _leave_mark, marks, place)
            yield from ray.get(look.remote(config, node["NodeManagerAddress"], marks, uri, packages))
        finally:
            for mark in marks.values():
                storage.delete(mark)


def _leave_mark(marks: dict[str, str], place: str) -> None:
    """Write an empty file, for a worker to find: in the folder, or in what there is above it."""
    above = place
    while not above.startswith("s3://") and not Path(above).exists():
        above = str(Path(above).parent)
    mark = storage.join(above, f".facelab-{uuid.uuid4().hex[:12]}")
    storage.write_bytes(mark, b"seen by the driver")
    marks[place] = mark


@ray.remote(num_cpus=0, max_retries=0)
def _look(config: JobConfig, node: str, marks: dict[str, str], uri: str, packages: Mapping[str, str]) -> list[Check]:
    """From the node that this runs on, which `node` names."""
    checks = [checked(f"{node}: packages as in uv.lock", _same_packages, node, packages)]
    for place, mark in marks.items():
        checks.append(checked(f"{place}: {node} can write", _find_mark, node, place, mark))
    for option, place in places(config):
        checks.append(checked(f"{node}: --{option} is there", _require, node, option, place))
    if _on_server(uri):
        checks.append(checked(f"{node}: MLflow answers", _answers, uri, config.experiment))
    return checks


def _answers(uri: str, experiment: str) -> None:
    _experiment_id(uri, experiment)


def _same_packages(node: str, packages: Mapping[str, str]) -> str:
    for name, locked in packages.items():
        has = metadata.version(name)
        if has.partition("+")[0] != locked:  # torch names its CUDA behind a +
            raise UsageError(
                f"{node}: has {name} {has}, uv.lock has {locked}: install uv.lock on every node, as cluster.yaml does, "
                "or say --uv"
            )
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _find_mark(node: str, place: str, mark: str) -> None:
    if not storage.exists(mark):
        raise UsageError(
            f"{place}: a worker on {node} does not see what the driver writes there: give s3://, or a folder that all "
            "nodes share"
        )
    storage.write_bytes(mark, b"seen by a worker")


def _require(node: str, option: str, place: str) -> None:
    if not storage.exists(place):
        raise UsageError(f"--{option} {place}: not found from {node}: mend the path, or put it where all nodes see it")
