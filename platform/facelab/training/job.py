"""The training jobs: train as a tracked run, then register the network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from facelab import storage
from facelab.config import REGISTRY, places
from facelab.data.manifest import Manifest
from facelab.data.owner import Owner
from facelab.data.source import manifest_of
from facelab.job import Job
from facelab.tracking.spool import Spool
from facelab.trained import checkpoint
from facelab.trained.store import FILES
from facelab.training.config import TrainConfig
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.launch import run_training
from facelab.training.sr import TrainSRConfig

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun


def train_and_register(config: TrainConfig, run: "JobRun") -> dict[str, Any]:
    """Do the job; returns its summary, with the registry URI of the network."""
    summary = train(config, run)
    name = config.register_as or config.registry_name
    model_uri = run.register_model(storage.join(config.output, "model"), name)
    return summary | ({"registered_model": model_uri} if model_uri else {})


def train(config: TrainConfig, run: "JobRun", **options: Any) -> dict[str, Any]:
    """Train as the only one there, while MLflow is told of it from the side; `options` as of run_training.

    Raises:
        UsageError: an input has nothing that can be trained on; see run_training.
    """
    inputs = check_inputs(config)
    for role, manifest in inputs.items():
        if manifest:
            run.takes(role, getattr(config, role), manifest.hash, manifest.rows)
    with (
        Owner(config.output) as owner,
        run.delivering(config.output, lambda: checkpoint.newest_step(config.checkpoints)),
    ):
        summary = run_training(config, lambda: Spool(config.output), **options)
        owner.check()
    for role, manifest in inputs.items():
        if not manifest:  # what is in a folder is known by who has read it
            run.takes(role, getattr(config, role), summary[f"{role}_hash"], summary[f"n_{role}"])
    return summary


def train_sr(config: TrainSRConfig, run: "JobRun") -> dict[str, Any]:
    """The same of a super-resolution network."""
    return train_and_register(at_hand(config, run), run)


def at_hand(config: TrainSRConfig, run: "JobRun") -> TrainSRConfig:
    """A registered model to start from is put beside the output, where every worker can read it, and where it is found
    again by what resumes, also without MLflow."""
    if not config.init_from or not config.init_from.startswith(REGISTRY):
        return config
    place = storage.join(config.output, "init_from")
    if not (config.resume and all(storage.exists(storage.join(place, name)) for name in FILES)):
        with run.model_folder(config.init_from) as local:
            for name in FILES:
                storage.upload(Path(local) / name, storage.join(place, name))
    return config.model_copy(update={"init_from": place})


def check_inputs(config: TrainConfig) -> dict[str, Manifest | None]:
    """Option -> manifest of the shards that it names, None of a folder; before workers start.

    Raises:
        UsageError: nothing there that can be trained on.
    """
    kinds = dict([*config.inputs(), *config.watched()])
    return {option: manifest_of(uri, kinds[uri]) for option, uri in places(config) if uri in kinds}


def training_plan(config: TrainConfig) -> str:
    """For --dry-run."""
    where = f"{config.workers} Ray workers" if config.workers else "this process"
    limits = [f"{config.epochs} epochs"] if config.epochs else []
    limits += [f"{config.max_steps} steps"] if config.max_steps else []
    sources = " and ".join(uri for uri, _ in config.inputs())
    watched = "".join(f", watching {uri}" for uri, _ in config.watched())
    return (
        f"train {config.model} on {sources}{watched} in {where} for {' or '.join(limits)}, batch "
        f"{config.images_per_update}; write model/, checkpoints/ and samples/ to {config.output}; register it in MLflow"
    )


TRAIN_DEGRADER = Job("train_degrader", TrainDegraderConfig, train_and_register, training_plan)
TRAIN_SR = Job("train_sr", TrainSRConfig, train_sr, training_plan)
