"""A job's MLflow run: the driver creates and ends it, workers log into it by its id."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from facelab import storage
from facelab.config import REGISTRY, RUN, JobConfig, flatten, to_yaml, without_secret
from facelab.errors import UsageError
from facelab.tracking.client import client_of, prepare_database, ray_tags, tracking_uri
from facelab.tracking.delivery import Delivery, TrackerAway, is_away, patiently, reason_of
from facelab.tracking.registry import fetched_model, register_model
from facelab.version import git_sha

_HIDDEN = ("tracking_uri", "output", "config", "dry_run", "experiment")  # said by tags and artifacts, or of no interest


class JobRun:
    """One MLflow run, from the driver's side. Only its beginning needs MLflow to be there: the rest is tried for a
    while, and said if it was in vain."""

    def __init__(self, uri: str, run_id: str, patience_s: float):
        """
        Args:
            patience_s: so long the end of a job waits for an MLflow that is away, all in all.
        """
        self.uri, self.id, self.patience_s = uri, run_id, patience_s
        self._deadline: float | None = None
        self._undelivered: list[str] = []

    def conclude(self, values: dict[str, Any], text: str) -> None:
        """Final numbers as metrics (best_… as best/…), the rest as tags; and summary.json."""
        now = int(time.time() * 1000)
        metrics, tags = [], []
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                tags.append(RunTag(name, str(value)))
            elif np.isfinite(value):
                key = f"best/{name.removeprefix('best_')}" if name.startswith("best_") else name
                metrics.append(Metric(key, float(value), now, 0))
        self._try("the summary", lambda: self._client.log_batch(self.id, metrics=metrics, tags=tags))
        self.text(text, "summary.json")

    def artifact(self, path: Path, folder: str | None = None) -> None:
        self._try(path.name, lambda: self._client.log_artifact(self.id, str(path), folder))

    def text(self, text: str, name: str) -> None:
        self._try(name, lambda: self._client.log_text(self.id, text, name))

    @contextmanager
    def delivering(self, output: str, committed: Callable[[], int]) -> Iterator[None]:
        """In this block, what a training spools to `output` is sent from the side; then the rest, also of one that
        failed. See Delivery."""
        try:
            with Delivery(self.uri, self.id, output, committed) as delivery:
                yield
        except BaseException:
            self.patience_s = min(self.patience_s, _PATIENCE_OF_A_FAILURE_S)
            raise
        finally:
            self._try("numbers and pictures of the training", delivery.send)

    def register_model(self, folder: str, name: str) -> str | None:
        """Log and register a model folder; returns its models:/ URI, None if MLflow was away for too long."""
        return self._try(
            f"the model, in the registry as {name}", lambda: register_model(self.uri, self.id, folder, name)
        )

    @contextmanager
    def model_folder(self, uri: str) -> Iterator[str]:
        """Where the model of a models:/ URI lies for the time of the block; any other URI as it is."""
        if not uri.startswith(REGISTRY):
            yield uri
            return
        with fetched_model(self.uri, uri) as folder:
            yield folder

    def end(self, status: str) -> None:
        """The run has this status; what MLflow was never told is said."""
        if status != "FINISHED":
            self.patience_s = min(self.patience_s, _PATIENCE_OF_A_FAILURE_S)
        self._try(f"that the run is {status}", lambda: self._client.set_terminated(self.id, status))
        if self._undelivered:
            print(
                f"MLflow at {without_secret(self.uri)} was not told: {', '.join(self._undelivered)}. All of it is in "
                "--output; of a training, the same command with --resume tells it",
                file=sys.stderr,
            )

    @property
    def _client(self) -> MlflowClient:
        return client_of(self.uri)

    def _try(self, what: str, act: Callable[[], Any]) -> Any:
        """What `act` gives; None if MLflow stays away, or refuses it, for which what a job has made is no worse. The
        first to wait starts the clock for all."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self.patience_s
        try:
            return patiently(self.uri, act, self._deadline)
        except (TrackerAway, mlflow.MlflowException) as error:
            refused = "" if isinstance(error, TrackerAway) else f" (refused: {reason_of(error)})"
            self._undelivered.append(what + refused)
            return None


_PATIENCE_OF_A_FAILURE_S = 20.0
"""A job that fails does not wait for long before it says why."""


@contextmanager
def job_run(job: str, config: JobConfig, parent: str | None = None) -> Iterator[JobRun]:
    """The run of one job: FINISHED at the end of the block, FAILED when it raises, KILLED when it is interrupted. A job
    that resumes goes on with the run that it began.

    Raises:
        UsageError: MLflow cannot be reached for a new run.
    """
    uri = tracking_uri(config)
    place = storage.join(config.output, "run.json")
    values = flatten(json.loads(config.model_dump_json(exclude=set(_HIDDEN))))
    run_id = _resumed(uri, place, values) if config.resumes else None
    if run_id is None:
        run_id = _begun(uri, job, config, values, parent)
        if config.KEEPS_RUN:
            storage.write_text(place, json.dumps({"run_id": run_id, "tracking_uri": without_secret(uri)}, indent=2))
    if uri.startswith("http") and parent is None:
        print(f"MLflow run {without_secret(uri)}/#/runs/{run_id}")
    run, status = JobRun(uri, run_id, 60 * config.tracking_patience), "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # Tune stops a trial by SystemExit
        status = "KILLED"
        raise
    finally:
        run.end(status)


def _begun(uri: str, job: str, config: JobConfig, values: dict[str, Any], parent: str | None) -> str:
    """Id of a new run."""
    tags = {"job": job, "preset": config.preset, "seed": str(config.seed), "output": config.output}
    tags |= {"git_sha": git_sha()} | ray_tags() | ({"mlflow.parentRunId": parent} if parent else {})
    try:
        prepare_database(uri)
        client = client_of(uri)
        run = client.create_run(
            _experiment(client, uri, config.experiment), run_name=f"{job} {Path(config.output).name}", tags=tags
        )
        run_id = run.info.run_id
        client.log_batch(run_id, params=[Param(k, _shown(v)) for k, v in values.items()])
        client.log_text(run_id, to_yaml(config), "config.yaml")
        client.log_text(run_id, environment(), "environment.txt")
    except Exception as error:
        if not is_away(error) and not isinstance(error, mlflow.MlflowException):
            raise
        raise _refused(uri, error) from error
    return run_id


def _refused(uri: str, error: Exception) -> UsageError:
    return UsageError(
        f"--tracking-uri {without_secret(uri)}: MLflow cannot be reached, or does not let us in "
        f"({reason_of(error)}): start it, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


def _shown(value: Any) -> str:
    return without_secret(str(value))[:500]


def _resumed(uri: str, place: str, values: dict[str, Any]) -> str | None:
    """Id of the run that is gone on with, RUNNING again; None where there is none, or no more. An MLflow that is away
    does not keep a training from going on: its run is known."""
    if not storage.exists(place):
        return None
    known = json.loads(storage.read_bytes(place))
    if known["tracking_uri"] != without_secret(uri):
        print(f"tracked at {known['tracking_uri']} before, now at {without_secret(uri)}: a new run", file=sys.stderr)
        return None
    run_id, client = known["run_id"], client_of(uri)
    try:
        was = client.get_run(run_id)
        if was.info.lifecycle_stage == "deleted":
            print(f"run {run_id} was deleted from MLflow: a new one", file=sys.stderr)
            return None
        client.update_run(run_id, status="RUNNING")
        changed = {k: _shown(v) for k, v in values.items() if was.data.params.get(k) != _shown(v)}
        client.log_batch(run_id, tags=[RunTag(f"resumed.{key}", value) for key, value in changed.items()])
    except Exception as error:
        if isinstance(error, mlflow.MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST":
            print(f"run {run_id} is not in MLflow any more: a new one", file=sys.stderr)
            return None
        if not is_away(error):
            if isinstance(error, mlflow.MlflowException):
                raise _refused(uri, error) from error
            raise
        print(f"MLflow at {without_secret(uri)} is away ({reason_of(error)}): going on without it", file=sys.stderr)
    return run_id


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
    uri: str,
    experiment: str,
    parent: str,
    outputs: Mapping[str, str],
    crashed: Collection[str] = (),
    interrupted: bool = False,
) -> int:
    """End the runs of trials that could not do it themselves, and send what they spooled.

    Args:
        outputs: name -> --output of the trials: a server is not asked which folder's files it is sent.
        crashed: names of trials that are FAILED. The others were stopped before their end: KILLED.
        interrupted: the whole sweep was, and no scheduler; otherwise those are tagged stopped_early.

    Returns:
        How many a scheduler stopped.
    """
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    stopped = 0
    for run in client.search_runs([found.experiment_id], query, max_results=10_000):
        name = run.data.tags.get("job", "")
        if run.info.status not in ("RUNNING", "KILLED") or name not in outputs:
            continue
        Delivery(uri, run.info.run_id, outputs[name], lambda: sys.maxsize).send()
        failed = name in crashed
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
