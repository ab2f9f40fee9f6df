"""Trained networks at rest: a folder of model.json and model.safetensors, the same in OUTPUT/model and in MLflow."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from facelab import storage
from facelab.errors import UsageError
from facelab.trained import checkpoint
from models import build_degrader, build_sr
from models.network import Network

_WEIGHTS, _META = FILES = ("model.safetensors", "model.json")
"""Of a model folder, in the order of writing: the last makes it whole."""


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode, with what is needed to use it."""

    kind: str
    """"sr" or "degrader"."""
    name: str
    """A key of models.SR_MODELS or models.DEGRADERS."""
    scale: int
    hr_size: int
    """Side of the sharp faces it was trained on, px."""
    digest: str
    """SHA-256 of the weight file: part of a pair's provenance."""
    network: Network


def describe(kind: str, name: str, network: nn.Module, scale: int, hr_size: int) -> dict[str, Any]:
    """What it takes to build a network again, but for its weights."""
    return dict(kind=kind, name=name, scale=scale, hr_size=hr_size, options=vars(network.config))


def save_model(uri: str, kind: str, name: str, network: nn.Module, scale: int, hr_size: int) -> str:
    """Write a model folder, model.json last; returns the digest of the weights."""
    weights = save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    meta = describe(kind, name, network, scale, hr_size) | {"sha256": digest}
    storage.write_bytes(storage.join(uri, _WEIGHTS), weights)
    storage.write_text(storage.join(uri, _META), json.dumps(meta, indent=2))
    return digest


def holds_model(uri: str) -> bool:
    """Whether a training's output, a model folder or a checkpoint of a training is there."""
    return any(storage.exists(storage.join(uri, name)) for name in (_META, f"model/{_META}", "meta.json"))


def load_model(uri: str, kind: str) -> TrainedModel:
    """A model from the output of a training job, a model folder, or a checkpoint folder (its best network so far).

    Raises:
        UsageError: not there, damaged, or of the other kind.
    """
    folder = next((f for f in (uri, storage.join(uri, "model")) if storage.exists(storage.join(f, _META))), uri)
    if not holds_model(folder):
        raise UsageError(f"{uri}: no trained model there (model.json is missing): give the --output of a training job")
    try:
        if storage.exists(storage.join(folder, _META)):
            meta = json.loads(storage.read_bytes(storage.join(folder, _META)))
            data = storage.read_bytes(storage.join(folder, _WEIGHTS))
            if hashlib.sha256(data).hexdigest() != meta["sha256"]:
                raise ValueError("the weights are not those that model.json names")
            weights = load(data)
        else:
            meta, weights = _from_checkpoint(folder)
        network = _build(meta)
        network.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise UsageError(f"{folder}: damaged model ({str(error)[:200]}): copy or train it again") from error
    if meta["kind"] != kind:
        raise UsageError(f"{uri}: is a {meta['kind']} model ({meta['name']}), but a {kind} model is wanted here")
    network.eval().requires_grad_(False)
    return TrainedModel(kind, meta["name"], meta["scale"], meta["hr_size"], meta["sha256"], network)


def _from_checkpoint(folder: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Before the first validation, the moving average stands for the best network, if there is one."""
    state = checkpoint.read(folder)
    weights = state.best_network
    for prefix in ("average.", "networks.main."):
        weights = weights or {k.removeprefix(prefix): v for k, v in state.networks.items() if k.startswith(prefix)}
    return state.model | {"sha256": hashlib.sha256(save(weights)).hexdigest()}, weights


def bicubic_model(scale: int, hr_size: int) -> TrainedModel:
    """The baseline that needs no training, as a model like the others."""
    network = build_sr("bicubic", scale).eval()
    return TrainedModel("sr", "bicubic", scale, hr_size, "bicubic", network)


def _build(meta: dict[str, Any]) -> Network:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in meta["options"].items()}
    build = build_degrader if meta["kind"] == "degrader" else build_sr
    return build(meta["name"], meta["scale"], **options)
