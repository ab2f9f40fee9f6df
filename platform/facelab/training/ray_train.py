"""The training loop on Ray Train V2: the only file that imports ray.train."""

import os
import sys
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.experimental import tqdm_ray
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from torch import nn
from tqdm import tqdm

from facelab import storage
from facelab.cluster import on_cluster, ray_session, require_room, room
from facelab.errors import StoreError, UsageError
from facelab.trained import checkpoint
from facelab.training.config import TrainConfig
from facelab.training.context import Progress, gather_from_workers, mean_over_workers, staging_folder
from facelab.training.update import NonFiniteLoss
from facelab.training.worker import LoggerFactory, train_worker

# The defaults suit neither an autoscaler that boots a node (60 s) nor a dead rank that hangs the others (30 min).
_WORKER_START_TIMEOUT_S = 900
_COLLECTIVE_TIMEOUT_S = 300
_LOADING_TIMEOUT = timedelta(hours=12)
"""Until every worker has its data and weights: one may read from a cold store, or be the only one that downloads. A
dead one is found out by its connection, and by Ray, long before."""


class RayContext:
    """One Ray Train worker: DDP over gloo or NCCL; checkpoints go to OUTPUT/checkpoints through ray.train.report."""

    rank: int
    world_size: int
    device: torch.device

    def __init__(self, output: str):
        world = ray.train.get_context()
        self.rank, self.world_size = world.get_world_rank(), world.get_world_size()
        self.device = ray.train.torch.get_device()
        # Gloo, which needs no GPU to tell what went wrong.
        patient = self.world_size > 1
        self.loading = torch.distributed.new_group(backend="gloo", timeout=_LOADING_TIMEOUT) if patient else None
        self.place = storage.join(output, "checkpoints")

    def prepare(self, objective: nn.Module) -> nn.Module:
        return ray.train.torch.prepare_model(objective)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.world_size == 1 else mean_over_workers(value)

    def gather(self, text: str) -> list[str]:
        return [text] if self.world_size == 1 else gather_from_workers(text, self.loading)

    def restore(self) -> checkpoint.Checkpoint | None:
        return checkpoint.newest(self.place)

    def save(self, write: Callable[[Path], None], step: int, metrics: dict[str, float]) -> None:
        metrics = metrics | {"step": step}
        if self.rank:
            ray.train.report(metrics)
            return
        with staging_folder() as folder:
            write(folder)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))

    def progress(self, total: int, initial: int) -> Progress:
        if self.rank:
            return tqdm(disable=True)
        bar = tqdm_ray.tqdm(total=total, unit="step")
        bar.update(initial)
        return bar


def run_on_ray(config: TrainConfig, make_logger: LoggerFactory, callbacks: list[ray.train.UserCallback]) -> None:
    """Train with config.workers Ray workers.

    Raises:
        UsageError: the cluster can never hold them.
        Exception: what a worker raised, after config.compute.max_failures restarts.
    """
    with ray_session():
        use_gpu = _enough(config)
        _fit(config, make_logger, callbacks, use_gpu)


def _enough(config: TrainConfig) -> bool:
    """Whether to use GPUs; refuses what would wait for ever."""
    gpu = config.compute.gpu
    use_gpu = room().get("GPU", 0) >= config.workers if gpu is None else gpu
    wanted = {"CPU": config.workers * config.compute.cpus_per_worker} | ({"GPU": config.workers} if use_gpu else {})
    if gpu is None and not use_gpu and on_cluster():
        print(f"{room().get('GPU', 0):g} GPUs now: training on CPUs; --compute.gpu waits for them", file=sys.stderr)
    require_room(f"--workers {config.workers} needs", wanted, "--workers or --compute.cpus-per-worker")
    return use_gpu


def _fit(config: TrainConfig, make_logger: LoggerFactory, callbacks: list[Any], use_gpu: bool) -> None:
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(_WORKER_START_TIMEOUT_S))
    filesystem, path = storage.resolve(config.output)

    def worker() -> Any:
        if not use_gpu:
            torch.set_num_threads(max(int(config.compute.cpus_per_worker), 1))
        try:
            train_worker(config, RayContext(config.output), make_logger)
        except StoreError:
            raise  # may pass
        except (UsageError, NonFiniteLoss) as error:
            return error  # handed back, not raised: a restart would meet it again
        return None

    resources = {"CPU": config.compute.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})
    trainer = TorchTrainer(
        worker,
        scaling_config=ScalingConfig(num_workers=config.workers, use_gpu=use_gpu, resources_per_worker=resources),
        torch_config=ray.train.torch.TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            # Ray goes on from its own notes where it finds its name again. The newest checkpoint may be another's, so
            # every run has its own name, and resuming is RayContext.restore.
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=f"{path}/checkpoints",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.compute.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
            callbacks=callbacks,
        ),
    )
    try:
        error = trainer.fit().return_value  # pyrefly: ignore  (its stub is of Train V1)
    except WorkerGroupError as failure:
        # A store that stayed away is told as everywhere; the others failed because this worker did.
        stores = (each for each in failure.worker_failures.values() if isinstance(each, StoreError))
        raise next(stores, failure) from failure
    checkpoint.prune(storage.join(config.output, "checkpoints"), config.keep_checkpoints)  # also of earlier runs
    if error is not None:
        raise error
