"""A training, wherever it runs: in the process itself, or on Ray workers."""

import json
from collections.abc import Sequence
from typing import Any

from facelab import storage
from facelab.training.config import TrainConfig
from facelab.training.context import LocalContext
from facelab.training.worker import LoggerFactory, train_worker


def run_training(config: TrainConfig, make_logger: LoggerFactory, ray_callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train with config.workers; returns the summary. `ray_callbacks` are ray.train.UserCallback, for Ray workers.

    Raises:
        UsageError: checkpoints in the way.
    """
    config.check_output()
    if config.workers:
        from facelab.training.ray_train import run_on_ray  # Ray takes seconds to import: not without workers

        run_on_ray(config, make_logger, list(ray_callbacks))
    else:
        context = LocalContext(gpu=config.compute.gpu)
        with context.told_to_end():
            train_worker(config, context, make_logger)
    return json.loads(storage.read_bytes(storage.join(config.output, "training.json")))
