"""What would stop a job on a cluster, each with the line that mends it; of the cluster's own view: probe.py."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from facelab.config import JobConfig, flatten, places, without_secret
from facelab.errors import UsageError, one_line

ANSWER = "facelab-look "
"""How the line begins, in the log of a job that looks around first, that follows its checks: its answer in JSON."""
_WELL, _WRONG = "✓ ", "✗ "
_LARGEST = 10
"""Files named where an upload is too large."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    what: str
    wrong: str | None = None
    """What is wrong and how to mend it; None where all is well."""

    def __str__(self) -> str:
        # A cluster said some of it: nothing that a terminal would obey.
        return one_line(f"{_WRONG}{self.wrong}" if self.wrong else f"{_WELL}{self.what}")


def check_in(line: str) -> Check | None:
    """The one that was printed as this line of a log; None in any other."""
    text = line[len(_WELL) :]
    return {_WELL: Check(text), _WRONG: Check(text, text)}.get(line[: len(_WELL)])


def checked(what: str, look: Callable[..., str | None], *arguments: Any) -> Check:
    """Look; what it returns is said behind `what`, the UsageError that it raises in its place."""
    try:
        found = look(*arguments)
    except UsageError as error:
        return Check(what, without_secret(str(error).splitlines()[0]))
    return Check(f"{what}: {found}" if found else what)


_SECRET = re.compile("TOKEN|SECRET|PASSWORD|PASSWD|ACCESS_KEY|API_?KEY")
"""In the name of an environment variable whose value is one."""
_NO_SECRET = re.compile("_(PATH|FILE|MODE)$")
"""And those that say where it lies."""
_SHORTEST = 8
"""Characters of a secret that is looked for by its value: shorter ones are in words by chance."""


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Name -> value of what an environment holds in secret."""
    return {
        name: value.strip()
        for name, value in environment.items()
        if _SECRET.search(name.upper()) and not _NO_SECRET.search(name.upper()) and len(value.strip()) >= _SHORTEST
    }


def no_secrets(
    arguments: Iterable[str], env_vars: Mapping[str, str], environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse secrets in a command line or in environment variables of a job: Ray shows both in its dashboard.

    Args:
        environment: of this process, whose secrets are looked for by their values.
    """
    arguments = list(arguments)
    for name, secret in secrets_of(environment).items():
        for place, text in (
            *(("a job's options", argument) for argument in arguments),
            *((f"runtime_env.yaml: {each}", str(value)) for each, value in env_vars.items()),
        ):
            if secret in text:
                raise UsageError(
                    f"{place}: the value of {name} stands there, and Ray would show it to all who see the dashboard: "
                    "take it out, and set it in the environment of the nodes"
                )
    for argument in arguments:
        if (shown := without_secret(argument)) != argument:
            raise UsageError(
                f"{shown}: Ray would show the secret in it to all who see the dashboard: give the plain address, and "
                "set the secret in the environment of the nodes"
            )
    for name, value in env_vars.items():
        if (shown := without_secret(str(value))) != str(value):
            raise UsageError(
                f"runtime_env.yaml: {name}: {shown}: Ray would show the secret in it to all who see the dashboard: set "
                "it in the environment of the nodes"
            )
        if _SECRET.search(name.upper()):
            raise UsageError(
                f"runtime_env.yaml: {name} is no place for a secret: set it in the environment of the nodes"
            )


def no_local_places(config: JobConfig, folder: Path) -> str | None:
    """Refuse inputs and outputs in the checkout, where relative paths lead: the job has a copy of it that dies with it.

    Returns:
        What other paths there are: the probe looks whether the nodes share them.
    """
    local = [(option, uri) for option, uri in [("output", config.output), *places(config)] if uri.startswith("/")]
    for option, uri in local:
        if f"{uri}/".startswith(f"{folder}/"):
            raise UsageError(
                f"--{option} {uri}: is a relative path or lies in this checkout, of which the job has a copy that dies "
                "with it: give s3://, or the absolute path of a folder that all nodes share"
            )
    return f"{', '.join(f'--{option}' for option, _ in local)} on disks that all nodes must share" if local else None


def works_on_workers(config: JobConfig) -> None:
    """Refuse what would be computed by the driver, on the head."""
    values = flatten(config.model_dump())
    for option in ("workers", "actors"):
        if values.get(option) == 0 and "cpus_per_trial" not in values:
            raise UsageError(
                f"--{option} 0: would work on the head, beside what Ray itself runs there: give --{option} 1 or more"
            )


def upload(folder: Path, files: Mapping[str, int], size: int, limit: int, needed: Iterable[str]) -> str:
    """Refuse what Ray's dashboard would, and what lacks a file that the job reads.

    Args:
        files: what Ray would upload of the folder: path in it -> bytes.
        size: bytes of the archive.
        needed: paths in the folder.
    """
    if missing := sorted(set(needed) - files.keys()):
        raise UsageError(
            f"{missing[0]}: the job needs it, but .gitignore, .rayignore or the excludes of runtime_env.yaml keep it "
            f"from being uploaded ({len(missing)} such files): take it out of them"
        )
    if size > limit:
        largest = sorted(files, key=lambda name: files[name], reverse=True)[:_LARGEST]
        listed = ", ".join(f"{name} ({_mib(files[name])})" for name in largest)
        raise UsageError(
            f"{folder}: its upload of {_mib(size)} exceeds Ray's {_mib(limit)}: add the largest to .rayignore or "
            f"to the excludes of runtime_env.yaml: {listed}"
        )
    return f"{len(files)} files, {_mib(size)} of {_mib(limit)}"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def config_file(config: JobConfig, folder: Path) -> list[str]:
    """The path of --config in the upload; none if it is not given, or on S3.

    Raises:
        UsageError: it is on this machine alone.
    """
    if config.config is None or config.config.startswith("s3://"):
        return []
    name = Path(config.config)
    if name.is_absolute() or ".." in name.parts or "://" in config.config:
        raise UsageError(
            f"--config {config.config}: the job sees nothing of this machine but the upload: copy it into {folder} and "
            "give its relative path"
        )
    return [str(name)]


class Demand(NamedTuple):
    """So many times these resources, each on one node."""

    option: str
    count: int
    each: dict[str, float]

    def __str__(self) -> str:
        return f"{self.count} × ({', '.join(f'{amount:g} {name}' for name, amount in self.each.items())})"


def demand_of(config: JobConfig) -> Demand | None:
    """What a job reserves; None for one that takes what there is."""
    values = flatten(config.model_dump())
    option = "actors" if "actors" in values else "workers"
    count = values.get(option) or int("cpus_per_trial" in values)  # a trial without workers
    if not count:
        return None

    def first(default: float, *names: str) -> float:
        return float(next((values[name] for name in names if values.get(name) is not None), default))

    each = {
        "CPU": first(1, "cpus_per_actor", "cpus_per_trial", "compute.cpus_per_worker"),
        "GPU": first(0, "gpus_per_actor", "gpus_per_trial", "compute.gpu", "gpu"),
    }
    return Demand(f"--{option}", count, {name: amount for name, amount in each.items() if amount})


class NodeType(NamedTuple):
    """Nodes that an autoscaler may start."""

    most: int
    resources: Mapping[str, float]


def room(
    demand: Demand,
    nodes: Iterable[Mapping[str, float]],
    types: Iterable[NodeType] | None,
    most_nodes: int | None = None,
    grows: bool = False,
) -> str:
    """Refuse what would wait for ever.

    Args:
        nodes: the resources of each node that is there, busy or not.
        types: what the autoscaler may add; None where nothing tells.
        most_nodes: so many nodes in all.
        grows: the user's word for it that there is an autoscaler.
    """
    now = sum(_holds(node, demand.each) for node in nodes)
    if now >= demand.count:
        return f"{demand} fit now"
    largest = sorted(((_holds(kind.resources, demand.each), kind.most) for kind in types or ()), reverse=True)
    grown, left = 0, math.inf if most_nodes is None else most_nodes
    for held, most in largest:
        grown += held * min(most, left)
        left -= min(most, left)
    if max(now, grown) >= demand.count or (types is None and grows):
        return f"{demand}: room for {now} now, the others wait for the autoscaler"
    future = "nothing tells of an autoscaler" if types is None else f"may grow to {max(now, grown):g}"
    mend = f"lower {demand.option}" + (", or say --grows if one will add nodes" if types is None else "")
    raise UsageError(
        f"{demand.option} {demand.count} needs {demand}, the cluster has room for {now}, and {future}: {mend}"
    )


def _holds(resources: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many of those a node of these resources holds; fractions of a core add up to it."""
    return min(math.floor(resources.get(name, 0) / amount + 1e-6) for name, amount in each.items())
