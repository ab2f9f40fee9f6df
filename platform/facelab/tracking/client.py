"""Where MLflow is: the tracking URI of a job, and a client that is set to it."""

import fcntl
import logging
import os
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from facelab import storage
from facelab.config import JobConfig, without_secret
from facelab.errors import UsageError
from facelab.submitted import submission_id

# It would look for a project in the working folder and copy its lock file; our requirements are given in full. In a
# submitted job that folder may have been unpacked anew by another node, and then looking fails.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for every few KB of a run
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # told once, at the start of a job
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # misses pip, which an environment by uv lacks


def tracking_uri(config: JobConfig) -> str:
    """--tracking-uri, MLFLOW_TRACKING_URI, else the job's SQLite file; of a submitted job, mlflow.db beside --output.

    Raises:
        UsageError: MLflow writes no folders; what a submitted job would write into the folder that it was unpacked to
            dies with it.
    """
    uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_database(config)}"
    if uri.startswith("file:") or "://" not in uri:
        raise UsageError(f"--tracking-uri {uri}: MLflow no longer writes folders: give sqlite:///FILE or http://HOST")
    if not uri.startswith("sqlite:///"):
        return uri
    file = Path(uri.removeprefix("sqlite:///")).absolute()  # workers have other working folders
    if submission_id() and _dies_with_the_job(file):
        raise UsageError(
            f"{uri}: lies in the folder that the submitted job was unpacked to, which dies with it: give "
            "--tracking-uri http://HOST:5000, or an --output that all nodes share by its absolute path"
        )
    return f"sqlite:///{file}"


def _database(config: JobConfig) -> Path:
    """The SQLite file where no tracking URI is given."""
    own = config.database()
    if submission_id() is None or not _dies_with_the_job(own):
        return own
    if config.output.startswith("s3://"):
        raise UsageError(
            "no tracking URI, and a SQLite file would die with the submitted job: give --tracking-uri "
            "http://HOST:5000, or set MLFLOW_TRACKING_URI on the cluster's nodes"
        )
    return Path(config.output).with_name("mlflow.db")


def _dies_with_the_job(file: Path) -> bool:
    """Whether it lies in the working folder, which of a submitted job is the one that it was unpacked to."""
    return storage.within(str(file), os.getcwd())


def experiment_id(uri: str, name: str) -> str | None:
    """Of an MLflow experiment; None while there is none of that name.

    Raises:
        UsageError: MLflow does not answer, or does not let us in.
    """
    try:
        found = client_of(uri).get_experiment_by_name(name)
    except mlflow.MlflowException as error:
        reason = without_secret(str(error).splitlines()[0])[:200]
        raise UsageError(
            f"{without_secret(uri)}: MLflow cannot be reached: {reason}: start it, or set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD on the nodes if it wants a login"
        ) from error
    return found.experiment_id if found else None


def prepare_database(uri: str) -> None:
    """Create and migrate a SQLite file. Two jobs that do so at once would trip over each other's tables."""
    if uri.startswith("sqlite:///"):
        file = Path(uri.removeprefix("sqlite:///"))
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.with_name(f"{file.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client_of(uri).search_experiments(max_results=1)


def client_of(uri: str) -> MlflowClient:
    """A client; functions of the mlflow module use the same place from now on."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # A server that is away must not hold a job for minutes before it can say so.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient(uri)
