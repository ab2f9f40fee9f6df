"""A training job as a tracked run: train, then register the network."""

from typing import TYPE_CHECKING, Any

from facelab import storage
from facelab.data.tensors import is_shard_set
from facelab.training.config import TrainConfig
from facelab.training.worker import run_training

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun


def train_and_register(config: TrainConfig, run: "JobRun") -> dict[str, Any]:
    """Run the job; returns its summary, with the registry URI of the network."""
    check_inputs(config)
    summary = run_training(config, lambda: run.logger(config.output))
    name = config.register_as or config.registry_name
    model_uri = run.register_model(storage.join(config.output, "model"), name)
    return summary | {"registered_model": model_uri}


def check_inputs(config: TrainConfig) -> None:
    """Raises UsageError where a URI holds nothing that can be trained on."""
    for uri, kind in config.inputs():
        is_shard_set(uri, kind)  # a wrong input is told before workers start


def training_plan(config: TrainConfig) -> str:
    """For --dry-run."""
    where = f"{config.workers} Ray workers" if config.workers else "this process"
    limits = [f"{config.epochs} epochs"] if config.epochs else []
    limits += [f"{config.max_steps} steps"] if config.max_steps else []
    sources = " and ".join(uri for uri, _ in config.inputs())
    return (
        f"train {config.model} on {sources} in {where} for {' or '.join(limits)}, batch {config.batch_size}; "
        f"write model/, checkpoints/ and samples/ to {config.output}; register it in MLflow"
    )
