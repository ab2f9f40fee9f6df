"""A training job from config to model folder: the same function in the process itself and on every Ray worker."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from facelab import storage
from facelab.data.tensors import load_faces, load_pairs
from facelab.trained import store
from facelab.training.config import TrainConfig
from facelab.training.context import Context, LocalContext
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.high_to_low import HighToLowStage
from facelab.training.loop import Logger, train
from facelab.training.sr import SRStage, TrainSRConfig
from facelab.training.stylevae import StyleVAEStage

LoggerFactory = Callable[[], Logger]


def train_worker(config: TrainConfig, context: Context, make_logger: LoggerFactory) -> None:
    """Build the stage, train it, and on rank 0 write OUTPUT/model and OUTPUT/training.json."""
    loud = context.rank == 0
    logger = make_logger()  # first: it tells MLflow where the registry is, from which --init-from may come
    data: dict[str, Any]
    stage: DegraderStage | SRStage
    if isinstance(config, TrainDegraderConfig):
        hr, lr = (
            load_faces(config.hr, config.hr_size, progress=loud),
            load_faces(config.lr, config.lr_size, progress=loud),
        )
        stage = StyleVAEStage(config, hr, lr) if config.model == "stylevae" else HighToLowStage(config, hr, lr)
        data = {"data_hash": f"{hr.hash[:16]}+{lr.hash[:16]}", "n_hr": len(hr), "n_lr": len(lr)}
        data["n_rejected"] = hr.rejected + lr.rejected
        if isinstance(stage, StyleVAEStage):
            data |= {f"rms_{k}": float(v) for k, v in zip(stage.features.layers, stage.features.rms, strict=True)}
    elif isinstance(config, TrainSRConfig):
        real_lr = load_faces(config.lr, config.lr_size, progress=loud) if config.lr else None
        if config.pairs:
            pairs = load_pairs(config.pairs, progress=loud)
            stage, data = SRStage(config, pairs, real_lr), {"data_hash": pairs.hash[:16], "n_pairs": len(pairs)}
        else:
            assert config.hr is not None
            faces = load_faces(config.hr, config.hr_size, progress=loud)
            stage, data = SRStage(config, faces, real_lr), {"data_hash": faces.hash[:16], "n_hr": len(faces)}
            data["n_rejected"] = faces.rejected
    else:
        raise TypeError(f"no training stage for {type(config).__name__}")
    result = train(stage, config, context, logger)
    if context.rank == 0:
        place = storage.join(config.output, "model")
        digest = store.save_model(place, config.kind, config.model, result.network, config.scale, config.hr_size)
        best = {f"best_{name}": value for name, value in result.best.items()}
        parameters = sum(p.numel() for p in result.network.parameters())
        summary = {"steps": result.steps, **best, "parameters": parameters, "model_sha256": digest, **data}
        storage.write_text(storage.join(config.output, "training.json"), json.dumps(summary, indent=2))


def run_training(config: TrainConfig, make_logger: LoggerFactory, ray_callbacks: Sequence[Any] = ()) -> dict[str, Any]:
    """Train with config.workers; returns the summary. `ray_callbacks` are ray.train.UserCallback, for Ray workers.

    Raises:
        UsageError: checkpoints in the way.
    """
    config.check_output()
    if config.workers:
        from facelab.training.ray_train import run_on_ray  # Ray is not needed, nor imported, without workers

        run_on_ray(config, make_logger, list(ray_callbacks))
    else:
        train_worker(config, LocalContext(config.output, config.keep_checkpoints), make_logger)
    return json.loads(storage.read_bytes(storage.join(config.output, "training.json")))
