"""A job's MLflow run: the driver creates and ends it, workers log into it by its id."""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.utils import mlflow_tags as words

from facelab import storage
from facelab.config import REGISTRY, RUN, JobConfig, to_yaml, without_secret
from facelab.errors import Untracked, UsageError
from facelab.tracking.client import client_of, prepare_database, tracking_uri
from facelab.tracking.delivery import NEWEST, Delivery, TrackerAway, is_away, patiently, reason_of
from facelab.tracking.description import KIND, note, params_of, tags_of
from facelab.tracking.nested import Nested
from facelab.tracking.registry import fetched_model, register_model
from facelab.tracking.views import View, save_view

_RUN = "run.json"
"""Names the run of a job that can be gone on with, in its output."""


class JobRun:
    """One MLflow run, from the driver's side. Only its beginning needs MLflow to be there: the rest is tried for a
    while, and said if it was in vain."""

    def __init__(self, uri: str, run_id: str, job: str, config: JobConfig):
        self.uri, self.id, self._job, self._config = uri, run_id, job, config
        self.patience_s = 60 * config.tracking_patience
        """So long the end of a job waits for an MLflow that is away, all in all."""
        self._deadline: float | None = None
        self._model_id: str | None = None
        self._undelivered: list[str] = []
        self._late: list[DatasetInput] = []

    def takes(self, role: str, uri: str, digest: str, rows: int) -> None:
        """Tell of a set of images that the job takes in; MLflow has each once. No work waits for an MLflow that is
        away: it is told at the end.

        Args:
            role: the option that names it.
            digest: of its rows, as in its manifest.
        """
        kind = "s3" if uri.startswith("s3://") else "local"
        name = "/".join(PurePosixPath(uri).parts[-2:]).strip("/")
        data = Dataset(name, digest[:16], kind, json.dumps({"uri": uri}), profile=json.dumps({"num_rows": rows}))
        given = DatasetInput(data, [InputTag(words.MLFLOW_DATASET_CONTEXT, role)])
        try:
            self._client.log_inputs(self.id, [given])
            self._client.set_tag(self.id, f"data_hash.{role}", data.digest)  # by which runs can be searched
        except Exception as error:
            if not is_away(error) and not isinstance(error, mlflow.MlflowException):
                raise
            self._late.append(given)

    def conclude(self, values: dict[str, Any], text: str) -> None:
        """Final numbers as metrics (best_… as best/…), also of the model that the run has registered, the rest as tags;
        summary.json; and the note, with the pictures that there are by now."""
        now = int(time.time() * 1000)
        metrics, tags = [], []
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                tags.append(RunTag(name, str(value)))
            elif np.isfinite(value):
                key = f"best/{name.removeprefix('best_')}" if name.startswith("best_") else name
                metrics.append(Metric(key, float(value), now, 0, model_id=self._model_id))
        self._try("the summary", lambda: self._client.log_batch(self.id, metrics=metrics, tags=tags))
        self.text(text, "summary.json")
        self._try("its note", self._describe)

    def _describe(self) -> None:
        found = [file.path for file in self._client.list_artifacts(self.id)]
        grids = [path for path in found if path.endswith(".png") and path != NEWEST]
        samples = [file.path for file in self._client.list_artifacts(self.id, "samples")] if "samples" in found else []
        # Relative to the page, so by whatever address somebody opens MLflow.
        urls = {path: f"get-artifact?path={quote(path)}&run_uuid={self.id}" for path in [*grids, *sorted(samples)[-1:]]}
        self._client.set_tag(self.id, words.MLFLOW_RUN_NOTE, note(self._job, self._config, urls))

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

    def register_model(self, folder: str, name: str, of_run: str | None = None, alias: str | None = None) -> str | None:
        """Log and register a model folder; returns its models:/ URI, None if MLflow was away for too long.

        Args:
            of_run: id of the run that made it, where it is another.
            alias: what the version is to be called, as champion, instead of the one that was.
        """
        registered = self._try(
            f"the model, in the registry as {name}",
            lambda: register_model(self.uri, of_run or self.id, folder, name, alias),
        )
        if registered is None:
            return None
        self._model_id = registered.model_id
        return registered.uri

    def shown_as(self, view: View) -> None:
        """Save how runs below this one are looked at, and say where."""

        def saved() -> str:
            return save_view(self.uri, self._client.get_run(self.id).info.experiment_id, view)

        if link := self._try("a view of its runs", saved):
            server = without_secret(self.uri) if self.uri.startswith("http") else "http://127.0.0.1:5000"
            place = without_secret(self.uri)
            begun = "" if self.uri.startswith("http") else f"mlflow ui --backend-store-uri {place}, then "
            print(f"side by side: {begun}{server}{link}", flush=True)

    @contextmanager
    def model_folder(self, uri: str) -> Iterator[str]:
        """Where the model of a models:/ URI lies for the time of the block; any other URI as it is."""
        if not uri.startswith(REGISTRY):
            yield uri
            return
        with fetched_model(self.uri, uri) as folder:
            yield folder

    def end_below(self, endings: "Mapping[str, Ending]") -> None:
        """End what below this run cannot do it itself: see end_trials."""
        if sys.exc_info()[0] is not None:
            self.patience_s = min(self.patience_s, _PATIENCE_OF_A_FAILURE_S)
        self._try("how runs below it ended", lambda: end_trials(self.uri, self._config.experiment, self.id, endings))

    def end(self, status: str) -> None:
        """The run has this status; what MLflow was never told is said."""
        if status != "FINISHED":
            self.patience_s = min(self.patience_s, _PATIENCE_OF_A_FAILURE_S)
        if self._late:
            self._try("its inputs", lambda: self._client.log_inputs(self.id, self._late))
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
def job_run(job: str, config: JobConfig, nested: Nested | None = None) -> Iterator[JobRun]:
    """The run of one job: FINISHED at the end of the block, FAILED when it raises, KILLED when it is interrupted. A job
    that resumes goes on with the run that it began.

    Raises:
        UsageError: MLflow cannot be reached for a new run.
    """
    uri = tracking_uri(config)
    place = storage.join(config.output, _RUN)
    run_id = _resumed(uri, place, params_of(config)) if config.resumes else None
    if run_id is None:
        run_id = _begun(uri, job, config, nested)
        if config.KEEPS_RUN:
            storage.write_text(place, json.dumps({"run_id": run_id, "tracking_uri": without_secret(uri)}, indent=2))
    run, status = JobRun(uri, run_id, job, config), "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):  # Tune stops a trial by SystemExit
        status = "KILLED"
        raise
    finally:
        run.end(status)


def _begun(uri: str, job: str, config: JobConfig, nested: Nested | None) -> str:
    """Id of a new run."""
    tags = tags_of(job, config) | {words.MLFLOW_RUN_NOTE: note(job, config, {})}
    if nested:
        tags |= {words.MLFLOW_PARENT_RUN_ID: nested.parent, **nested.tags}
    name = nested.name if nested else f"{job} {Path(config.output).name}"
    try:
        prepare_database(uri)
        client = client_of(uri)
        run = client.create_run(_experiment(client, uri, config.experiment), run_name=name, tags=tags)
        run_id = run.info.run_id
        client.log_batch(run_id, params=[Param(name, value) for name, value in params_of(config).items()])
        client.log_text(run_id, to_yaml(config), "config.yaml")
        client.log_text(run_id, environment(), "environment.txt")
    except Exception as error:
        if not is_away(error) and not isinstance(error, mlflow.MlflowException):
            raise
        raise _refused(uri, error) from error
    _tell(uri, run)
    return run_id


def _tell(uri: str, run: Run) -> None:
    """Where its page is; by a shorter address MLflow forgets which kind of page was asked for."""
    if uri.startswith("http") and words.MLFLOW_PARENT_RUN_ID not in run.data.tags:
        place = f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}?workflowType=machine_learning"
        print(f"MLflow run {without_secret(uri)}{place}")


def _refused(uri: str, error: Exception) -> Untracked:
    return Untracked(
        f"--tracking-uri {without_secret(uri)}: MLflow cannot be reached, or does not let us in "
        f"({reason_of(error)}): start it, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    )


def _resumed(uri: str, place: str, params: dict[str, str]) -> str | None:
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
        changed = {name: value for name, value in params.items() if was.data.params.get(name) != value}
        client.log_batch(run_id, tags=[RunTag(f"resumed.{name}", value) for name, value in changed.items()])
        _tell(uri, was)
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
        for tag, value in KIND.items():
            if tag not in found.tags:  # made by hand, or by an older facelab
                client.set_experiment_tag(found.experiment_id, tag, value)
        return found.experiment_id
    location = None
    if uri.startswith("sqlite:///"):  # beside the database, wherever the job was started
        location = str(Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlartifacts")
    try:
        return client.create_experiment(name, artifact_location=location, tags=KIND)
    except mlflow.MlflowException:
        found = client.get_experiment_by_name(name)  # another job was faster
        if found is None:
            raise
        return found.experiment_id


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


@dataclass(frozen=True)
class Ending:
    """What became of a trial whose run could not say it itself."""

    output: str
    """Where its training wrote: a server is not asked which folder's files it is sent."""
    status: str
    """MLflow's."""
    tags: Mapping[str, str]


def end_trials(uri: str, experiment: str, parent: str, endings: Mapping[str, Ending]) -> None:
    """Send what the trials of a sweep spooled, and end all runs below the sweep's that nobody goes on with.

    Args:
        endings: by the tag `trial` of the runs.
    """
    client = client_of(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    query = f"tags.`{words.MLFLOW_PARENT_RUN_ID}` = '{parent}'"
    for run in client.search_runs([found.experiment_id], query, max_results=10_000):
        ending, run_id, status = endings.get(run.data.tags.get("trial", "")), run.info.run_id, run.info.status
        if ending is not None and _run_of(ending.output) == run_id:
            told = [RunTag(k, v) for k, v in ending.tags.items() if run.data.tags.get(k, "") != v]
            if status == "RUNNING" or (told and status == "KILLED"):
                Delivery(uri, run_id, ending.output, lambda: sys.maxsize).send()
            if told:
                client.log_batch(run_id, tags=told)
            if status != ending.status:
                client.set_terminated(run_id, ending.status)
        elif status == "RUNNING":  # of a driver that died before it wrote down which run it had begun
            client.set_terminated(run_id, "KILLED")


def _run_of(output: str) -> str | None:
    """Id of the run that an output names."""
    place = storage.join(output, _RUN)
    return json.loads(storage.read_bytes(place))["run_id"] if storage.exists(place) else None


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
