"""MLflow's model registry: trained networks by name and version."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from modulefinder import ModuleFinder
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.models import ModelSignature
from mlflow.types import ParamSchema, ParamSpec, Schema, TensorSpec

import facelab
import models
from facelab import storage
from facelab.config import REGISTRY, without_secret
from facelab.errors import UsageError
from facelab.tracking.client import client_of

# What facelab.trained.pyfunc imports.
MODEL_REQUIREMENTS = ("torch", "safetensors", "numpy", "pillow", "pyarrow", "s3fs", "boto3", "botocore")


class Registered(NamedTuple):
    """A version in the registry."""

    uri: str
    """models:/NAME/VERSION."""
    model_id: str
    """Of what MLflow calls a logged model, which metrics can be of."""


def register_model(tracking_uri: str, run_id: str, folder: str, name: str, alias: str | None = None) -> Registered:
    """Log and register a model folder as a pyfunc on uint8 images; if the run has registered these weights before, what
    it did then. An alias is then the version's, and no other's.

    The weights stay safetensors and the code travels along as source: nothing is pickled.
    """
    client = client_of(tracking_uri)
    with storage.local_copy(folder) as local, tempfile.TemporaryDirectory(prefix="facelab-code-") as code:
        meta = json.loads((local / "model.json").read_text())
        for version in client.search_model_versions(f"run_id = '{run_id}'"):
            if version.name == name and version.tags.get("sha256") == meta["sha256"]:
                # MLflow tells a version's model by its source alone.
                return _called(client, name, version.version, str(version.source).removeprefix(REGISTRY), alias)
        side = meta["hr_size"] if meta["kind"] == "degrader" else meta["hr_size"] // meta["scale"]
        example = np.random.default_rng(0).integers(0, 256, (2, 3, side, side), np.uint8)
        tensor = Schema([TensorSpec(np.dtype("uint8"), (-1, 3, -1, -1))])
        params = ParamSchema([ParamSpec("seed", "long", 0)]) if meta["kind"] == "degrader" else None
        signature = ModelSignature(tensor, tensor, params)  # pyrefly: ignore  (None is its default)
        was = client.get_run(run_id).info
        with mlflow.start_run(run_id=run_id):
            info = mlflow.pyfunc.log_model(
                name="model",
                loader_module="facelab.trained.pyfunc",
                data_path=str(local),
                code_paths=_copy_code(Path(code)),
                signature=signature,
                input_example=example,
                pip_requirements=[f"{package}=={metadata.version(package)}" for package in MODEL_REQUIREMENTS],
                registered_model_name=name,
                metadata={"facelab": meta["kind"], "network": meta["name"], "sha256": meta["sha256"]},
            )
    if was.end_time:  # of a run that had ended, at which it did not last until now
        client.set_terminated(run_id, was.status, was.end_time)
    version = str(info.registered_model_version)
    client.set_model_version_tag(name, version, "sha256", meta["sha256"])
    return _called(client, name, version, info.model_id, alias)


def _called(client: MlflowClient, name: str, version: str, model_id: str, alias: str | None) -> Registered:
    if alias:
        client.set_registered_model_alias(name, alias, version)
    return Registered(f"models:/{name}/{version}", model_id)


def _copy_code(folder: Path) -> list[str]:
    """Copy what `facelab.trained.pyfunc` imports of our own into a folder; returns the packages there. MLflow uploads
    file by file, and those of training, data and reports are four times as many."""
    roots = {package.__name__: Path(next(iter(package.__path__))) for package in (facelab, models)}
    others = metadata.packages_distributions().keys() - roots.keys()  # which lie beside ours where all are installed
    finder = ModuleFinder(path=[str(root.parent) for root in roots.values()], excludes=others)
    finder.import_hook("facelab.trained.pyfunc")
    for name, module in finder.modules.items():
        package, place = name.partition(".")[0], getattr(module, "__file__", None)
        if package in roots and place:
            copy = folder / Path(place).relative_to(roots[package].parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(place, copy)
    return [str(folder / name) for name in roots]


@contextmanager
def fetched_model(tracking_uri: str, uri: str) -> Iterator[str]:
    """The model of a models:/ URI in a local folder, which is there for the time of the block.

    Raises:
        UsageError: no such model, or none of ours.
    """
    client_of(tracking_uri)
    with tempfile.TemporaryDirectory(prefix="facelab-model-") as folder:
        try:
            local = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))
        except mlflow.MlflowException as error:
            raise UsageError(f"{uri}: not in the registry at {without_secret(tracking_uri)}") from error
        ours = sorted(local.rglob("model.json"))
        if not ours:
            raise UsageError(f"{uri}: was not registered by facelab: it has no model.json")
        yield str(ours[0].parent)
