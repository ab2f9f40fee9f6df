"""What `mlflow.pyfunc.load_model` runs: a model folder as a function of uint8 image batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facelab.images import to_float, to_uint8
from facelab.seeding import generator_for
from facelab.trained import store
from models.network import DegraderNetwork


class _SuperResolution:
    def __init__(self, model: store.TrainedModel):
        self.model = model

    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """(B, 3, h, w) uint8 -> (B, 3, scale·h, scale·w) uint8."""
        return store.super_resolve(self.model.network, torch.from_numpy(np.ascontiguousarray(images))).numpy()


class _Degrader:
    def __init__(self, model: store.TrainedModel):
        self.model = model

    @torch.no_grad()
    def predict(self, images: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """(B, 3, H, W) uint8 -> (B, 3, H/scale, W/scale) uint8, in styles drawn from the prior by params["seed"]."""
        network = self.model.network
        assert isinstance(network, DegraderNetwork)
        hr = to_float(torch.from_numpy(np.ascontiguousarray(images)))
        noise = generator_for((params or {}).get("seed", 0), "pyfunc")
        return to_uint8(network.degrade(hr, torch.randn(len(hr), network.noise_dim, generator=noise))).numpy()


def _load_pyfunc(path: str) -> _SuperResolution | _Degrader:
    """MLflow's entry point; `path` is the model folder."""
    kind = json.loads((Path(path) / "model.json").read_text())["kind"]
    model = store.load_model(path, kind)
    return _Degrader(model) if kind == "degrader" else _SuperResolution(model)
