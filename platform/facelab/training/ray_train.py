"""The training loop on Ray Train V2: the only file that imports ray.train."""

import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayActorError
from ray.experimental import tqdm_ray
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer
from torch import nn
from tqdm import tqdm

from facelab import storage
from facelab.cluster import on_cluster, ray_session, require_room, room
from facelab.errors import Agreed, StoreError, UsageError, one_line
from facelab.trained import checkpoint
from facelab.training.collectives import (
    gather_from_workers,
    highest_over_workers,
    joined,
    mean_over_workers,
    synchronise_batch_norm,
)
from facelab.training.config import TrainConfig
from facelab.training.context import Progress
from facelab.training.saving import PATIENCE_S
from facelab.training.update import NonFiniteLoss
from facelab.training.worker import LoggerFactory, train_worker

# The defaults suit neither an autoscaler that boots a node (60 s) nor a dead rank that hangs the others (30 min).
_WORKER_START_TIMEOUT_S = 900
_ELASTIC_START_TIMEOUT_S = 30
"""Elastic workers start on nodes that are there; but for some seconds Ray still counts one that has just died."""
_COLLECTIVE_TIMEOUT_S = 300
_PATIENCE = timedelta(hours=12)
"""Of what waits for one worker alone: its data from a cold store, its weights, rank 0's validation. A dead one is found
out by its connection, and by Ray, long before."""
_CHATTY = ("boto3", "botocore", "aiobotocore", "s3fs")
_PAUSE_S = 15
"""Before workers are started again, for a store or a network that is away, or a Ray that has lost a node just now."""


class RayContext:
    """One Ray Train worker: DDP over gloo or NCCL.

    Checkpoints are not Ray's but the Saver's, as without Ray: one way in and out, whose files are whole or absent,
    that outlasts a store that is away, and that any other run can read.
    """

    rank: int
    world_size: int
    device: torch.device
    ends = False

    def __init__(self, is_searched: bool = False):
        """
        Args:
            is_searched: see Context.is_searched.
        """
        self.is_searched = is_searched
        world = ray.train.get_context()
        self.rank, self.world_size = world.get_world_rank(), world.get_world_size()
        self.device = ray.train.torch.get_device()
        # Gloo, which needs no GPU to tell what went wrong.
        several = self.world_size > 1
        self.patient = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE) if several else None

    def prepare(self, objective: nn.Module) -> nn.Module:
        if self.world_size > 1:
            synchronise_batch_norm(objective)
        return ray.train.torch.prepare_model(objective)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.world_size == 1 else mean_over_workers(value)

    def highest(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.world_size == 1 else highest_over_workers(values)

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.world_size == 1 else joined(values)

    def gather(self, text: str) -> list[str]:
        return [text] if self.world_size == 1 else gather_from_workers(text, self.patient)

    def notice(self) -> str:
        info = ray.train.get_preemption_info()
        return f"nodes {', '.join(info.preempted_node_ids)} will be taken away" if info else ""

    def report(self, values: dict[str, float]) -> None:
        ray.train.report(values)

    def progress(self, total: int, initial: int) -> Progress:
        if self.rank or self.is_searched:  # who searches shows all its trainings
            return tqdm(disable=True)
        bar = tqdm_ray.tqdm(total=total, unit="step")
        bar.update(initial)
        return bar


def run_on_ray(config: TrainConfig, make_logger: LoggerFactory, callbacks: list[ray.train.UserCallback]) -> None:
    """Train with config.workers Ray workers.

    Raises:
        UsageError: the cluster can never hold them.
        UsageError, NonFiniteLoss: what a worker raised, which a restart would meet again.
        Exception: what else it raised, after config.compute.max_failures restarts that brought no newer checkpoint.
    """
    # Without the State API, Ray Train's own watcher complains every few seconds.
    with ray_session(dashboard=True):
        use_gpu = _enough(config)
        _fit(config, make_logger, callbacks, use_gpu)


def _enough(config: TrainConfig) -> bool:
    """Whether to use GPUs; refuses what would wait for ever."""
    gpu = config.compute.gpu
    fewest = config.min_workers or config.workers
    use_gpu = room().get("GPU", 0) >= fewest if gpu is None else gpu
    wanted = {"CPU": fewest * config.compute.cpus_per_worker} | ({"GPU": fewest} if use_gpu else {})
    if gpu is None and not use_gpu and on_cluster():
        print(f"{room().get('GPU', 0):g} GPUs now: training on CPUs; --compute.gpu waits for them", file=sys.stderr)
    option = "--workers" if config.min_workers is None else "--min-workers"
    require_room(f"{option} {fewest} needs", wanted, f"{option} or --compute.cpus-per-worker")
    return use_gpu


def _fit(config: TrainConfig, make_logger: LoggerFactory, callbacks: list[Any], use_gpu: bool) -> None:
    """Start workers, again as often as some are lost while the training gets on."""
    reached, stalled, since = -1, 0, time.monotonic()
    while True:
        try:
            with _settings(config):
                result = _trainer(config, make_logger, callbacks, use_gpu).fit()
            break
        except (TrainingFailedError, RayActorError) as failure:
            failures = failure.worker_failures if isinstance(failure, WorkerGroupError) else {}
            for each in failures.values():
                if _would_come_again(each):
                    raise each from failure
            # A store that stayed away is told as everywhere; the others failed because this worker did.
            stores = [each for each in failures.values() if isinstance(each, StoreError)]
            step = _newest_step(config.checkpoints, reached)
            if step > reached:
                reached, stalled, since = step, 0, time.monotonic()
            stalled += 1
            patient = bool(stores) and time.monotonic() - since < PATIENCE_S
            if stalled > config.compute.max_failures and not patient:
                if stores:
                    raise stores[0] from failure
                raise
            lost = ", ".join(f"rank {rank}: {one_line(str(each))[-200:]}" for rank, each in failures.items())
            lost = lost or one_line(str(failure))[-200:]
            print(f"workers were lost ({lost}): going on from step {max(step, 0)}", file=sys.stderr)
            time.sleep(_PAUSE_S if stores or not failures else 0)
    storage.delete(storage.join(config.output, "ray"))
    error = result.return_value  # pyrefly: ignore  (of Train V1)
    if error is not None:
        raise error


@contextmanager
def _settings(config: TrainConfig) -> Iterator[None]:
    """What Ray takes from the environment alone; a later training of this process has its own, and the user comes
    first."""
    timeout = _ELASTIC_START_TIMEOUT_S if _is_elastic(config) else _WORKER_START_TIMEOUT_S
    wanted = {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(timeout)}
    if not on_cluster():  # nobody takes this machine away
        wanted["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    ours = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ |= ours
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


def _would_come_again(error: Exception) -> bool:
    return isinstance(error, (UsageError, NonFiniteLoss)) and not isinstance(error, StoreError)


def _is_elastic(config: TrainConfig) -> bool:
    return config.min_workers is not None and config.min_workers < config.workers


def _newest_step(place: str, known: int) -> int:
    try:
        return checkpoint.newest_step(place)
    except StoreError:  # away, as it may have been for the workers
        return known


def _trainer(config: TrainConfig, make_logger: LoggerFactory, callbacks: list[Any], use_gpu: bool) -> TorchTrainer:
    filesystem, path = storage.resolve(config.output)

    def worker() -> Any:
        if not use_gpu:
            torch.set_num_threads(max(int(config.compute.cpus_per_worker), 1))
        for name in _CHATTY:  # Ray Train lets every package say what it does
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            train_worker(config, RayContext(is_searched=bool(callbacks)), make_logger)
        except (Agreed, NonFiniteLoss) as error:
            return error  # handed back by all, not raised: without a traceback
        return None

    resources = {"CPU": config.compute.cpus_per_worker} | ({"GPU": 1} if use_gpu else {})
    workers: Any = (config.min_workers, config.workers) if _is_elastic(config) else config.workers
    return TorchTrainer(
        worker,
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            # More workers begin from a checkpoint: to look for them more often would lose what was done since.
            elastic_resize_monitor_interval_s=60 * config.checkpoint_minutes,
        ),
        torch_config=ray.train.torch.TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
        run_config=RunConfig(
            # Ray goes on from its own notes where it finds its name again.
            name=f"ray-{uuid.uuid4().hex[:8]}",
            storage_path=f"{path}/ray",
            storage_filesystem=filesystem,
            # Ray counts all of a run's failures, over weeks too; only nodes that it was told of in time, apart.
            failure_config=FailureConfig(max_failures=0),
            callbacks=callbacks,
        ),
    )
