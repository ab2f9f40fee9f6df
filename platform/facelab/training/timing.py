"""How long an update of a training takes here."""

import time
from contextlib import closing

from facelab.training.config import TrainConfig
from facelab.training.context import LocalContext
from facelab.training.update import Update
from facelab.training.worker import load_stage

_STEPS = 3


def timed(config: TrainConfig) -> float:
    """Seconds of an update, the mean of a few after the first, which is slower; in this process, and nothing is kept.

    Raises:
        UsageError: unusable data.
    """
    context = LocalContext(show_progress=False, gpu=config.compute.gpu)
    with closing(load_stage(config, progress=False)) as stage:
        stage.networks.to(context.device)
        stage.prepare(context, config.compute)
        update = Update(context, config.compute, stage.networks, stage.optimisers, config.optimiser.clip)
        began = 0.0
        for step in range(_STEPS + 1):
            terms = stage.step(step, update)
            float(sum(terms.values()))  # waits for a GPU
            began = began or time.perf_counter()
        return (time.perf_counter() - began) / _STEPS
