"""What `mlflow.pyfunc.load_model` runs: a model folder as a function of uint8 image batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelab.seeding import generator_for
from facelab.trained import store
from facelab.trained.apply import degrade, super_resolve
from models.network import DegraderNetwork


class _SuperResolution:
    def __init__(self, model: store.TrainedModel):
        self.model = model

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """(B, 3, h, w) uint8 -> (B, 3, scale·h, scale·w) uint8."""
        return super_resolve(self.model.network, torch.from_numpy(np.ascontiguousarray(images))).numpy()


class _Degrader:
    def __init__(self, model: store.TrainedModel):
        self.model = model

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """(B, 3, H, W) uint8 -> (B, 3, H/scale, W/scale) uint8, in styles drawn from the prior by params["seed"]."""
        network = self.model.network
        assert isinstance(network, DegraderNetwork)
        generator = generator_for((params or {}).get("seed", 0), "pyfunc")
        noise = torch.randn(len(images), network.noise_dim(images.shape[-1]), generator=generator)
        return degrade(network, torch.from_numpy(np.ascontiguousarray(images)), noise).numpy()


def _load_pyfunc(path: str) -> _SuperResolution | _Degrader:
    """MLflow's entry point; `path` is the model folder."""
    kind = json.loads((Path(path) / "model.json").read_text())["kind"]
    model = store.load_model(path, kind)
    return _Degrader(model) if kind == "degrader" else _SuperResolution(model)
