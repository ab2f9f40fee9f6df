"""A training, wherever it runs: in the process itself, or on Ray workers."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from facelab import storage
from facelab.training.config import TrainConfig
from facelab.training.context import LocalContext
from facelab.training.worker import LoggerFactory, train_worker


def run_training(
    config: TrainConfig,
    make_logger: LoggerFactory,
    ray_callbacks: Sequence[Any] = (),
    report: Callable[[dict[str, float]], None] | None = None,
) -> dict[str, Any]:
    """Train with config.workers; returns the summary.

    Args:
        ray_callbacks: ray.train.UserCallback, for Ray workers.
        report: without Ray workers, is told what each validation gave, with "step".

    Raises:
        UsageError: checkpoints in the way.
    """
    config.check_output()
    if config.workers:
        from facelab.training.ray_train import run_on_ray  # Ray takes seconds to import: not without workers

        run_on_ray(config, make_logger, list(ray_callbacks))
    else:
        context = LocalContext(show_progress=report is None, gpu=config.compute.gpu, report=report)
        with context.told_to_end():
            train_worker(config, context, make_logger)
    return json.loads(storage.read_bytes(storage.join(config.output, "training.json")))
