"""A job's MLflow run: the driver creates and ends it, workers log into it by its id."""

import json
import os
import platform
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from facelab.config import REGISTRY, RUN, JobConfig, flatten, to_yaml, without_secret
from facelab.errors import UsageError
from facelab.tracking.client import client_of, tracking_uri
from facelab.tracking.logger import RunLogger
from facelab.tracking.registry import fetched_model, register_model
from facelab.version import git_sha

_HIDDEN = ("tracking_uri", "output", "config", "dry_run", "experiment")  # said by tags and artifacts, or of no interest


class JobRun:
    """One MLflow run, from the driver's side."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str):
        self.client, self.uri, self.id = client, uri, run_id

    def summary(self, values: dict[str, Any]) -> None:
        """Final numbers as metrics (best_… as best/…), the rest as tags."""
        now = int(time.time() * 1000)
        metrics, tags = [], []
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                tags.append(RunTag(name, str(value)))
            elif np.isfinite(value):
                key = f"best/{name.removeprefix('best_')}" if name.startswith("best_") else name
                metrics.append(Metric(key, float(value), now, 0))
        self.client.log_batch(self.id, metrics=metrics, tags=tags)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self.client.log_artifact(self.id, str(path), folder)

    def text(self, text: str, name: str) -> None:
        self.client.log_text(self.id, text, name)

    def logger(self, output: str) -> RunLogger:
        """For workers: picklable."""
        return RunLogger(self.uri, self.id, output)

    def register_model(self, folder: str, name: str) -> str:
        """Log and register a model folder; returns its models:/ URI."""
        return register_model(self.uri, self.id, folder, name)

    @contextmanager
    def model_folder(self, uri: str) -> Iterator[str]:
        """Where the model of a models:/ URI lies for the time of the block; any other URI as it is."""
        if not uri.startswith(REGISTRY):
            yield uri
            return
        with fetched_model(self.uri, uri) as folder:
            yield folder


@contextmanager
def job_run(job: str, config: JobConfig, parent: str | None = None) -> Iterator[JobRun]:
    """The run of one job: FINISHED at the end of the block, FAILED when it raises, KILLED when it is interrupted."""
    uri = tracking_uri(config)
    try:
        client = client_of(uri)
        run = client.create_run(
            _experiment(client, uri, config.experiment),
            run_name=f"{job} {Path(config.output).name}",
            tags={
                "job": job,
                "preset": config.preset,
                "seed": str(config.seed),
                "output": config.output,
                "git_sha": git_sha(),
            }
            | ({"mlflow.parentRunId": parent} if parent else {}),
        )
    except mlflow.MlflowException as error:
        reason = str(error).splitlines()[0][:200]
        raise UsageError(f"--tracking-uri {uri}: MLflow cannot be reached: {reason}") from error
    tracked = JobRun(client, uri, run.info.run_id)
    status = "FAILED"
    try:
        values = flatten(json.loads(config.model_dump_json(exclude=set(_HIDDEN))))
        client.log_batch(
            tracked.id, params=[Param(key, without_secret(str(value))[:500]) for key, value in values.items()]
        )
        tracked.text(to_yaml(config), "config.yaml")
        tracked.text(environment(), "environment.txt")
        yield tracked
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # Tune stops a trial by SystemExit
        status = "KILLED"
        raise
    finally:
        client.set_terminated(tracked.id, status)


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    location = None
    if uri.startswith("sqlite:///"):  # beside the database, wherever the job was started
        location = str(Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts")
    try:
        return client.create_experiment(name, artifact_location=location)
    except mlflow.MlflowException:
        found = client.get_experiment_by_name(name)  # another job was faster
        if found is None:
            raise
        return found.experiment_id


def find_runs(uri: str, experiment: str, query: str, job: str) -> list[str]:
    """Ids of an experiment's finished runs of one job that match an MLflow search, oldest first.

    Raises:
        UsageError: no such experiment, or a query that MLflow does not understand.
    """
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise UsageError(f"--experiment {experiment}: not at {without_secret(uri)}")
    whole = f"attributes.status = 'FINISHED' and tags.job = '{job}'" + (f" and {query}" if query else "")
    try:
        runs = client.search_runs(
            [found.experiment_id], whole, max_results=10_000, order_by=["attributes.start_time ASC"]
        )
    except mlflow.MlflowException as error:
        raise UsageError(f"--filter {query}: {str(error).splitlines()[0][:300]}") from error
    return [run.info.run_id for run in runs]


def run_artifacts(uri: str, run: str, folder: str) -> str:
    """Download the artifacts of a run (runs:/ID) into a subfolder of a local folder; returns it."""
    client_of(uri)
    run_id = run.removeprefix(RUN).rstrip("/")
    if not run_id.isalnum():
        raise UsageError(f"{run}: give runs:/ID alone")
    place = Path(folder) / run_id
    place.mkdir(exist_ok=True)
    try:
        return mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(place), tracking_uri=uri)
    except (mlflow.MlflowException, OSError) as error:
        raise UsageError(f"{run}: no such run, or no artifacts, at {without_secret(uri)}") from error


def end_stopped_trials(
    uri: str, experiment: str, parent: str, crashed: Collection[str] = (), interrupted: bool = False
) -> int:
    """End the runs of trials that could not do it themselves. A trial that was restarted has several: the latest says
    what became of it, an earlier one that never ended is FAILED.

    Args:
        crashed: names of trials that are FAILED. The others were stopped before their end: KILLED.
        interrupted: the whole sweep was, and no scheduler; otherwise those are tagged stopped_early.

    Returns:
        How many a scheduler stopped.
    """
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    newest_first = ["attributes.start_time DESC"]
    seen: set[str] = set()
    stopped = 0
    for run in client.search_runs([found.experiment_id], query, max_results=10_000, order_by=newest_first):
        name = run.data.tags["job"]
        failed = name in crashed or name in seen
        seen.add(name)
        if run.info.status not in ("RUNNING", "KILLED"):
            continue
        client.set_terminated(run.info.run_id, "FAILED" if failed else "KILLED")
        if not failed and not interrupted:
            client.set_tag(run.info.run_id, "stopped_early", "true")
            stopped += 1
    return stopped


def metric_history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, for curves; none where there is no such run."""
    try:
        return [(m.step, m.value) for m in client_of(uri).get_metric_history(run_id, name)]
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


def environment() -> str:
    """Python, machine and package versions; no environment variables, which hold secrets."""
    packages = sorted({f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    return "\n".join([f"python {sys.version}", platform.platform(), f"{os.cpu_count()} CPUs", "", *packages])
