"""An experiment as a list of steps: each a job with a folder and an MLflow run of its own; what is finished is kept."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml

from facelab import storage
from facelab.config import JobConfig, to_yaml
from facelab.job import Job

C = TypeVar("C", bound=JobConfig)

_RECORDED = ("tracking_uri", "experiment", "config", "dry_run")


@dataclass(frozen=True)
class Step(Generic[C]):
    """One job of an experiment."""

    folder: str
    """Below the experiment's output; where the config's output is."""
    job: Job[C]
    config: C


@dataclass(frozen=True)
class Done:
    """What became of a step."""

    summary: dict[str, Any]
    seconds: float

    @property
    def run_id(self) -> str:
        """Of its MLflow run."""
        return self.summary["mlflow_run_id"]


def run_steps(steps: Iterable[Step], parent: str) -> dict[str, Done]:
    """Run the steps one after another, as runs nested below `parent`; folder -> what became of it.

    What an interrupted experiment of the same settings finished is not run again, and its trainings go on. A step of
    other settings, or from before an earlier one was run anew, is deleted.
    """
    done: dict[str, Done] = {}
    remaining = list(steps)
    for step in remaining:  # before anything is deleted
        step.config.check_files()
    while remaining:
        step = remaining.pop(0)
        began = time.perf_counter()
        summary = _kept(step.config)
        print(f"── {step.job.name}: {step.folder}{' (done before)' if summary else ''}", flush=True)
        if summary is None:
            for later in remaining:  # now: should this step be interrupted, nobody would know that they are from before
                _delete(later.config.output)
            summary = step.job.run(step.config, parent=parent)
        done[step.folder] = Done(summary, time.perf_counter() - began)
    return done


def _kept(config: JobConfig) -> dict[str, Any] | None:
    """The summary of an earlier run of just this step, if it came to its end; what has other settings is deleted."""
    was, summary = (storage.join(config.output, name) for name in ("config.yaml", "summary.json"))
    if not storage.exists(was):
        return None
    if _computed(storage.read_bytes(was)) != _computed(to_yaml(config)):
        storage.delete(config.output)
        return None
    return json.loads(storage.read_bytes(summary)) if storage.exists(summary) else None


def _delete(output: str) -> None:
    """What an earlier step left, nothing else."""
    if storage.exists(storage.join(output, "config.yaml")):
        storage.delete(output)


def _computed(settings: str | bytes) -> dict[str, Any]:
    """What a config.yaml says of the work itself, not of where it is recorded."""
    return {name: value for name, value in yaml.safe_load(settings).items() if name not in _RECORDED}
