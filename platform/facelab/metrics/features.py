"""The networks that Fréchet and kernel distances look through: VGG-16, MobileNetV2, and pytorch-fid's Inception."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal
from unittest import mock

import torch
from pydantic import model_validator
from torch import nn

from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.images import to_float
from facelab.trained.weights import build_features, resolve_weights
from models.features import FEATURE_NETWORKS

SMALL = 64
"""Dimensions of the variant for small sets, at most."""
# Network -> its usual layer, and one of at most SMALL channels.
_LAYERS = {
    "vgg16": ("relu2_2", "relu1_2"),
    "mobilenet_v2": ("block10", "block10"),
    "inception": ("pool3", "pool1"),
}
_INCEPTION_BLOCKS = {"pool1": 0, "pool2": 1, "aux": 2, "pool3": 3}  # 64, 192, 768 and 2048 channels


class FeatureConfig(Config):
    """Features of Fréchet and kernel distances: channels of one layer, averaged over positions."""

    network: Literal["vgg16", "mobilenet_v2", "inception"] = "vgg16"
    """Named in the metric: fd_vgg16, fd_mobilenet_v2; inception gives what is called FID."""
    layer: str | None = None
    """Its channels are the dimensions; keep them well below the number of images. Default: relu2_2 (128) of vgg16,
    block10 (64) of mobilenet_v2, pool3 (2048) of inception, which also has pool1 (64), pool2 (192) and aux (768)."""
    weights: Uri | None = None
    """URI of the weight file; default: the usual download, or the installed package."""

    @model_validator(mode="after")
    def _layer_exists(self):
        known = _INCEPTION_BLOCKS if self.network == "inception" else FEATURE_NETWORKS[self.network].layers
        if self.chosen_layer not in known:
            raise ValueError(f"layer {self.layer!r} is not one of {self.network}'s: {', '.join(known)}")
        return self

    @property
    def chosen_layer(self) -> str:
        """The layer, or the network's usual one."""
        return self.layer or _LAYERS[self.network][0]

    @property
    def metric(self) -> str:
        """Name of the distance: FID is the one over pytorch-fid's pool3, and nothing else."""
        return "fid" if (self.network, self.chosen_layer) == ("inception", "pool3") else f"fd_{self.network}"


class Features:
    """(B, 3, H, W) uint8 -> {layer: (B, d) float32}, on the device of `to`. Small images are enlarged first: to 64 px,
    for Inception to 299."""

    def __init__(self, config: FeatureConfig):
        """The configured layer and, where that has more than SMALL channels, one with fewer.

        Raises:
            UsageError: no weights, or those of another network.
        """
        self.name, self.main = config.network, config.chosen_layer
        self.sha256 = resolve_weights(config.network, config.weights).sha256
        layers = tuple(dict.fromkeys((self.main, _LAYERS[config.network][1])))
        self.device = torch.device("cpu")
        self.network: nn.Module
        if config.network == "inception":
            self.network = _FidInception(layers, config.weights)
        else:
            self.network = build_features(config.network, layers, config.weights)
        self.dims = {layer: x.shape[1] for layer, x in self._pooled(torch.zeros(1, 3, 64, 64)).items()}
        self.layers = (self.main,) if self.dims[self.main] <= SMALL else layers

    def to(self, device: torch.device) -> "Features":
        self.device = device
        self.network.to(device)
        return self

    def _pooled(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return self.network.pooled(images)  # pyrefly: ignore  (both have it)

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self._pooled(to_float(images.to(self.device)))
        return {layer: found[layer] for layer in self.layers}


class _FidInception(nn.Module):
    """pytorch-fid's InceptionV3, which wants [0, 1] and resizes to 299 px itself, bilinearly and without antialias."""

    def __init__(self, layers: tuple[str, ...], uri: str | None):
        super().__init__()
        from pytorch_fid.inception import InceptionV3

        weights = resolve_weights("inception", uri)
        self.blocks = {_INCEPTION_BLOCKS[layer]: layer for layer in layers}
        with loading("pytorch_fid.inception", "load_state_dict_from_url", lambda: weights.values):
            try:
                self.network = InceptionV3(list(self.blocks)).eval()
            except (RuntimeError, TypeError, AttributeError) as error:
                reason = str(error).splitlines()[0]
                raise UsageError(f"{weights.source}: not the weights of pytorch-fid's Inception ({reason})") from error

    def pooled(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> {layer: (B, d)}."""
        # Back to exact n/255, as pytorch-fid reads its files.
        maps = self.network(((images + 1) * 127.5).round() / 255)
        return {self.blocks[b]: x.mean(dim=(2, 3)) for b, x in zip(sorted(self.blocks), maps, strict=True)}


@contextmanager
def loading(module: str, function: str, values: Callable[[], Any]) -> Iterator[None]:
    """For libraries that can only download their weights: for the time of the block, their loader gives what our
    resolver found. It is replaced in the whole process, so other threads must not load then."""
    with mock.patch.object(importlib.import_module(module), function, side_effect=lambda *_, **__: values()):
        yield
