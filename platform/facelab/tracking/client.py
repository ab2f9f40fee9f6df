"""Where MLflow is: the tracking URI of a job, and a client that is set to it."""

import logging
import os
from pathlib import Path

import mlflow
from mlflow import MlflowClient

from facelab.config import JobConfig
from facelab.errors import UsageError

# It would look for a project in the working folder and copy its lock file; our requirements are given in full. In a
# submitted job that folder may have been unpacked anew by another node, and then looking fails.
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # one for every few KB of a run
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # misses pip, which an environment by uv lacks


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


def client_of(uri: str) -> MlflowClient:
    """A client; functions of the mlflow module use the same place from now on."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    # A server that is away must not hold a job for minutes before it can say so.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return MlflowClient(uri)
