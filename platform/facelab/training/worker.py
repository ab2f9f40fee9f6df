"""What every worker of a training does, in the process itself or on Ray: from config to model folder."""

import json
from collections.abc import Callable
from contextlib import closing

from facelab import storage
from facelab.trained import store
from facelab.training.config import TrainConfig
from facelab.training.context import Context, together
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.high_to_low import HighToLowStage
from facelab.training.history import Logger
from facelab.training.loop import train
from facelab.training.sr import SRStage, TrainSRConfig
from facelab.training.stylevae import StyleVAEStage

LoggerFactory = Callable[[], Logger]

DEGRADER_STAGES: dict[str, type[DegraderStage]] = {"stylevae": StyleVAEStage, "bulat": HighToLowStage}


def train_worker(config: TrainConfig, context: Context, make_logger: LoggerFactory) -> None:
    """Load the stage, train it, and on rank 0 write OUTPUT/model and OUTPUT/training.json."""
    stage = together(context, lambda: load_stage(config, progress=context.rank == 0))
    with closing(stage):
        result = train(stage, config, context, make_logger())
    if context.rank:
        return
    place = storage.join(config.output, "model")
    digest = store.save_model(place, config.kind, config.model, result.network, config.scale, config.hr_size)
    best = {f"best_{name}": value for name, value in result.best.items()}
    parameters = sum(p.numel() for p in result.network.parameters())
    summary = {"steps": result.steps, **best, "parameters": parameters, "model_sha256": digest, **stage.facts}
    storage.write_text(storage.join(config.output, "training.json"), json.dumps(summary, indent=2))


def load_stage(config: TrainConfig, progress: bool) -> DegraderStage | SRStage:
    """What a config trains, with its data.

    Raises:
        UsageError: unusable data.
    """
    if isinstance(config, TrainSRConfig):
        return SRStage.load(config, progress)
    assert isinstance(config, TrainDegraderConfig)
    return DEGRADER_STAGES[config.model].load(config, progress)
