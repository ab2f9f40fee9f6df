"""MLflow: the only file that imports it. The driver creates and ends a job's run; workers log into it by its id."""

import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec
from PIL import Image

import facelab
import models
from facelab import storage
from facelab.config import JobConfig, flatten, to_yaml, without_secret
from facelab.errors import UsageError

# It would look for a project in the working folder and copy its lock file; our requirements are given in full. In a
# submitted job that folder may have been unpacked anew by another node, and then looking fails.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for every few KB of a run
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # misses pip, which an environment by uv lacks
_BATCH = 1000  # MLflow's limit for one log_batch
# What facelab.trained.pyfunc imports.
MODEL_REQUIREMENTS = (
    "torch", "torchvision", "safetensors", "numpy", "pillow", "pyarrow", "s3fs", "botocore", "pydantic", "tyro",
    "pyyaml", "tqdm",
)  # fmt: skip
_HIDDEN = ("tracking_uri", "output", "config", "dry_run", "experiment")  # said by tags and artifacts, or of no interest


def tracking_uri(config: JobConfig) -> str:
    """--tracking-uri, MLFLOW_TRACKING_URI, else the job's SQLite file."""
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        if uri.startswith("file:") or "://" not in uri:
            raise UsageError(
                f"--tracking-uri {uri}: MLflow no longer writes folders: give sqlite:///FILE or http://HOST"
            )
        if uri.startswith("sqlite:///"):  # workers have other working folders
            return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
        return uri
    return f"sqlite:///{config.database()}"


def _client(uri: str) -> MlflowClient:
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # A server that is away must not hold a job for minutes before it can say so.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient(uri)


class JobRun:
    """One MLflow run, from the driver's side."""

    def __init__(self, client: MlflowClient, uri: str, run_id: str):
        self.client, self.uri, self.id = client, uri, run_id

    def tag(self, **tags: Any) -> None:
        self.client.log_batch(self.id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

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

    def logger(self, output: str) -> "RunLogger":
        """For workers: picklable."""
        return RunLogger(self.uri, self.id, output)

    def register_model(self, folder: str, name: str) -> str:
        """Log and register a model folder as a pyfunc on uint8 images; returns its models:/ URI.

        The weights stay safetensors and the code travels along as source: nothing is pickled.
        """
        mlflow.set_tracking_uri(self.uri)
        mlflow.set_registry_uri(self.uri)
        code = [str(Path(next(iter(package.__path__)))) for package in (facelab, models)]
        with storage.local_copy(folder) as local:
            meta = json.loads((local / "model.json").read_text())
            side = meta["hr_size"] if meta["kind"] == "degrader" else meta["hr_size"] // meta["scale"]
            example = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), np.uint8)
            tensor = Schema([TensorSpec(np.dtype("uint8"), (-1, 3, -1, -1))])
            params = ParamSchema([ParamSpec("seed", "long", 0)]) if meta["kind"] == "degrader" else None
            signature = ModelSignature(tensor, tensor, params)  # pyrefly: ignore  (None is its default)
            with mlflow.start_run(run_id=self.id):
                info = mlflow.pyfunc.log_model(
                    name="model",
                    loader_module="facelab.trained.pyfunc",
                    data_path=str(local),
                    code_paths=code,
                    signature=signature,
                    input_example=example,
                    pip_requirements=[f"{package}=={metadata.version(package)}" for package in MODEL_REQUIREMENTS],
                    registered_model_name=name,
                    metadata={"facelab": meta["kind"], "network": meta["name"], "sha256": meta["sha256"]},
                )
        return f"models:/{name}/{info.registered_model_version}"


class RunLogger:
    """For the training loop, on rank 0: metrics in batches, pictures to OUTPUT and to the run's artifacts."""

    def __init__(self, uri: str, run_id: str, output: str):
        self.uri, self.run_id, self.output = uri, run_id, output
        self.pending: list[Metric] = []
        self.pictures: list[tuple[str, np.ndarray]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Keep until flush; inf and nan are left out, as MLflow's databases differ in what they make of them."""
        now = int(time.time() * 1000)
        self.pending += [Metric(k, float(v), now, step) for k, v in values.items() if np.isfinite(v)]

    def image(self, name: str, picture: np.ndarray) -> None:
        self.pictures.append((name, picture))

    def flush(self) -> None:
        client = _client(self.uri)
        for start in range(0, len(self.pending), _BATCH):
            client.log_batch(self.run_id, metrics=self.pending[start : start + _BATCH])
        for name, picture in self.pictures:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / Path(name).name
                Image.fromarray(picture).save(file)
                storage.write_bytes(storage.join(self.output, name), file.read_bytes())
                client.log_artifact(self.run_id, str(file), str(Path(name).parent))
        self.pending, self.pictures = [], []


@contextmanager
def job_run(job: str, config: JobConfig, parent: str | None = None) -> Iterator[JobRun]:
    """The run of one job: FINISHED at the end of the block, FAILED when it raises, KILLED when it is interrupted."""
    uri = tracking_uri(config)
    try:
        client = _client(uri)
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
        client.log_batch(tracked.id, params=[Param(key, str(value)[:500]) for key, value in values.items()])
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


def registered_model_folder(uri: str) -> str:
    """Download a models:/ URI from the job's tracking server and return its model folder."""
    try:
        local = Path(mlflow.artifacts.download_artifacts(uri))
    except mlflow.MlflowException as error:
        raise UsageError(f"{uri}: not in the registry at {without_secret(mlflow.get_tracking_uri())}") from error
    return str(next(local.rglob("model.json")).parent)


def find_runs(uri: str, experiment: str, query: str, job: str) -> list[str]:
    """Ids of an experiment's finished runs of one job that match an MLflow search, oldest first.

    Raises:
        UsageError: no such experiment, or a query that MLflow does not understand.
    """
    client = _client(uri)
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
    _client(uri)
    run_id = run.removeprefix("runs:/").rstrip("/")
    if not run_id.isalnum():
        raise UsageError(f"{run}: give runs:/ID alone")
    place = Path(folder) / run_id
    place.mkdir(exist_ok=True)
    try:
        return mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(place), tracking_uri=uri)
    except (mlflow.MlflowException, OSError) as error:
        raise UsageError(f"{run}: no such run, or no artifacts, at {without_secret(uri)}") from error


def end_stopped_trials(uri: str, experiment: str, parent: str, crashed: set[str]) -> int:
    """End the runs of trials that could not do it themselves: FAILED for the `crashed` (names), for others, which a
    scheduler stopped before their end, KILLED and tagged stopped_early. Returns how many were stopped."""
    client = _client(uri)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    trials = client.search_runs([found.experiment_id], query, max_results=10_000)
    runs = [run for run in trials if run.info.status in ("RUNNING", "KILLED")]
    stopped = 0
    for run in runs:
        failed = run.data.tags["job"] in crashed
        client.set_terminated(run.info.run_id, "FAILED" if failed else "KILLED")
        if not failed:
            client.set_tag(run.info.run_id, "stopped_early", "true")
            stopped += 1
    return stopped


def metric_history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of one metric, for curves."""
    return [(m.step, m.value) for m in _client(uri).get_metric_history(run_id, name)]


def git_sha() -> str:
    """Of the checkout, with + when it has changes; "unknown" outside one."""
    root = Path(facelab.__path__[0]).parents[1]
    try:
        sha = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha.stdout.strip() + ("+" if changed.stdout.strip() else "")


def environment() -> str:
    """Python, machine and package versions; no environment variables, which hold secrets."""
    packages = sorted({f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}, key=str.lower)
    return "\n".join([f"python {sys.version}", platform.platform(), f"{os.cpu_count()} CPUs", "", *packages])
