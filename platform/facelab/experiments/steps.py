"""An experiment as a list of steps: each a job with a folder and an MLflow run of its own, known by the hash of its
settings and of what it takes in; what is finished is kept."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from facelab import storage
from facelab.config import JobConfig, places
from facelab.data.manifest import read_manifest
from facelab.job import Job
from facelab.tracking.nested import Nested

C = TypeVar("C", bound=JobConfig)

_MARK = "step.json"
"""Says which step a folder is."""


@dataclass(frozen=True)
class Step(Generic[C]):
    """One job of an experiment."""

    folder: str
    """Below the experiment's output; where the config's output is."""
    job: Job[C]
    config: C
    tags: Mapping[str, str] = field(default_factory=dict)
    """Of its MLflow run, beside those of every job."""


@dataclass(frozen=True)
class Done:
    """What became of a step."""

    summary: dict[str, Any]
    seconds: float
    """Of now: next to none of what was done before."""

    @property
    def run_id(self) -> str:
        """Of its MLflow run."""
        return self.summary["mlflow_run_id"]


def run_steps(steps: Iterable[Step], parent: str) -> dict[str, Done]:
    """Run the steps one after another, as runs nested below `parent`; folder -> what became of it.

    What an interrupted experiment finished of just these steps is not run again, and its trainings go on; a step of
    other settings, or of other data, is deleted.
    """
    steps = list(steps)
    for step in steps:  # before anything is deleted
        step.config.check_files()
    return {step.folder: run_step(step, parent) for step in steps}


def run_step(step: Step, parent: str) -> Done:
    """Run one step, unless that is done; whatever it takes in has to be there."""
    began = time.perf_counter()
    summary = prepared(step)
    print(f"── {step.job.name}: {step.folder}{' (done before)' if summary else ''}", flush=True)
    return Done(summary or begin(step, parent), time.perf_counter() - began)


def begin(step: Step, parent: str) -> dict[str, Any]:
    """Run one step that is `prepared`; returns its summary."""
    return step.job.run(step.config, Nested(parent, step.folder.rpartition("/")[2], step.tags))


def prepared(step: Step) -> dict[str, Any] | None:
    """What this very step left when it was finished before; None if it has to be run. Then its folder is marked as this
    step's, and has no more in it than what an interruption left of it."""
    output = step.config.output
    own, known = key_of(step), _marked(output)
    begun = storage.exists(storage.join(output, "config.yaml"))
    if known.get("key") == own["key"] and begun:
        return finished(output)
    if begun or known:  # what a job left; anything else is somebody's own
        storage.delete(output)
    storage.write_text(storage.join(output, _MARK), json.dumps(own, indent=2))
    return None


def is_done(step: Step) -> bool:
    """Whether just this step was finished before, as far as what it takes in is there."""
    output = step.config.output
    return _marked(output).get("key") == key_of(step)["key"] and finished(output) is not None


def finished(output: str) -> dict[str, Any] | None:
    """The summary of a job that came to its end there."""
    return _object(storage.join(output, "summary.json"))


def _marked(output: str) -> dict[str, Any]:
    """What `key_of` said of the step that the folder is; nothing of any other folder."""
    return _object(storage.join(output, _MARK)) or {}


def _object(place: str) -> dict[str, Any] | None:
    return json.loads(storage.read_bytes(place)) if storage.exists(place) else None


def key_of(step: Step) -> dict[str, str]:
    """What decides a step's result: of another, no part is of use. Names for people, the hash for all."""
    inputs = {(option, uri): fingerprint(uri) for option, uri in places(step.config)}
    taken = {uri for _, uri in inputs}
    settings = {name: value for name, value in step.config.settings().items() if not _is_of(value, taken)}
    parts = [step.job.name, settings, sorted((option, digest) for (option, _), digest in inputs.items())]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"key": key, "job": step.job.name} | {f"{option} {uri}": digest for (option, uri), digest in inputs.items()}


def _is_of(value: Any, uris: set[str]) -> bool:
    """Whether a setting names inputs, which count by what they hold, wherever they lie."""
    return value in uris if isinstance(value, str) else isinstance(value, list) and bool(uris & {*map(str, value)})


def fingerprint(uri: str) -> str:
    """What is there, as a hash: of a model its weights, of a set its rows, of another step its key, of anything else
    its files by name, size and stamp.

    Raises:
        UsageError: it cannot be read.
    """
    for name in ("model.json", "model/model.json"):
        if storage.exists(place := storage.join(uri, name)):
            return json.loads(storage.read_bytes(place))["sha256"]
    if storage.is_file(uri):
        return hashlib.sha256(storage.read_bytes(uri)).hexdigest()
    if manifest := read_manifest(uri):
        return manifest.hash
    if (known := _marked(uri)) and finished(uri):
        return known["key"]
    digest = hashlib.sha256()
    for found in storage.scan(uri):
        digest.update(f"{found.name} {found.size} {found.stamp}\n".encode())
    return digest.hexdigest()
