"""What a cluster says of a job before it runs there: a look by its own driver, and from a node of each kind."""

import json
import os
import uuid
from collections.abc import Mapping
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
from facelab.submission.checks import Check, NodeType, checked, demand_of, room
from facelab.tracking.client import experiment_id, tracking_uri

ANSWER = "facelab-probe "
"""How the line begins that holds the answer, in JSON."""
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_KIND = "ray.io/node-group"
"""Ray's label of a node that an autoscaler started: the name of its type."""
_BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its cluster file on the head, whose autoscaler reads it there."""


def probe(config: JobConfig, packages: dict[str, str], grows: bool) -> None:
    """Look, on the cluster, and print the answer.

    Args:
        packages: name -> version in the lock file.
        grows: the user's word for it that there is an autoscaler.
    """
    os.environ.update(_IMPATIENT)
    answer: dict[str, Any] = {"experiment": None}
    checks = [checked("the output is free", _output_is_free, config)]
    try:
        uri = tracking_uri(config)
    except UsageError as error:
        checks.append(Check("the tracking URI", str(error)))
        uri = None
    with ray_session():
        nodes = [node for node in ray.nodes() if node["Alive"]]
        if demand := demand_of(config):
            types = node_types()
            resources = [node["Resources"] for node in nodes]
            checks.append(checked("resources", room, demand, resources, *(types or (None, None)), grows))
        if uri and not uri.startswith("sqlite:"):
            checks.append(checked("MLflow, from the head", _note_experiment, answer, uri, config.experiment))
        checks += _looks_from(_one_of_each_kind(nodes), config, uri, packages)
        answer |= {"uri": without_secret(uri or ""), "head": "head" in ray.cluster_resources()}
    print(ANSWER + json.dumps(answer | {"checks": [vars(check) for check in checks]}))


def _note_experiment(answer: dict[str, Any], uri: str, name: str) -> None:
    answer["experiment"] = experiment_id(uri, name)


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


def _looks_from(
    nodes: list[dict[str, Any]], config: JobConfig, uri: str | None, packages: Mapping[str, str]
) -> list[Check]:
    written = [config.output]
    if uri and uri.startswith("sqlite:///"):
        written.append(str(Path(uri.removeprefix("sqlite:///")).parent))
    checks: list[Check] = []
    for node in nodes:
        affinity = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        marks: dict[str, str] = {}
        try:
            for place in written:
                checks.append(checked(f"{place} can be written by the driver", _leave_mark, marks, place))
            look = _look.options(scheduling_strategy=affinity)
            checks += ray.get(look.remote(config, node["NodeManagerAddress"], marks, uri, packages))
        finally:
            for mark in marks.values():
                storage.delete(mark)
    return checks


def _leave_mark(marks: dict[str, str], place: str) -> None:
    """Write an empty file, for a worker to find: in the folder, or in what there is above it."""
    above = place
    while not above.startswith("s3://") and not Path(above).exists():
        above = str(Path(above).parent)
    mark = storage.join(above, f".facelab-{uuid.uuid4().hex[:12]}")
    storage.write_bytes(mark, b"seen by the driver")
    marks[place] = mark


@ray.remote(num_cpus=0, max_retries=0)
def _look(
    config: JobConfig, node: str, marks: dict[str, str], uri: str | None, packages: Mapping[str, str]
) -> list[Check]:
    """From the node that this runs on, which `node` names."""
    os.environ.update(_IMPATIENT)
    checks = [checked(f"{node}: packages as in uv.lock", _same_packages, node, packages)]
    for place, mark in marks.items():
        checks.append(checked(f"{node}: {place} can be written", _find_mark, node, place, mark))
    for option, place in places(config):
        checks.append(checked(f"{node}: --{option} is there", _require, node, option, place))
    if uri and not uri.startswith("sqlite:"):
        checks.append(checked(f"{node}: MLflow answers", _answers, uri, config.experiment))
    return checks


def _answers(uri: str, experiment: str) -> None:
    experiment_id(uri, experiment)


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
