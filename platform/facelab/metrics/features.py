"""The networks that Fréchet and kernel distances look through: VGG-16, MobileNetV2, and pytorch-fid's Inception."""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import nn

from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.images import to_float
from facelab.trained.weights import build_features, resolve_weights
from models.features import FEATURE_NETWORKS, FeatureNetwork

SMALL = 64
"""Dimensions of the variant for small sets, at most."""
# Network -> its usual layer, and one of at most SMALL channels.
_LAYERS = {
    "vgg16": ("relu2_2", "relu1_2"),
    "mobilenet_v2": ("block10", "block10"),
    "inception": ("pool3", "pool1"),
}
# Layer of pytorch-fid's Inception -> torchvision's modules that lead there from the layer before; they end in 64,
# 192, 768 and 2048 channels.
_INCEPTION_BLOCKS = {
    "pool1": ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1"),
    "pool2": ("Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2"),
    "aux": ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    "pool3": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
}


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

    def names(self, layer: str) -> tuple[str, str]:
        """What the Fréchet and the kernel distance over a layer are called; the chosen layer goes without saying.

        FID is the distance over pytorch-fid's pool3, and nothing else.
        """
        chosen = layer == self.chosen_layer
        network = self.network if chosen else f"{self.network}_{layer}"
        is_fid = (self.network, layer) == ("inception", "pool3")
        return "fid" if is_fid else f"fd_{network}", f"kid_{network}"


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
        self.network: FeatureNetwork | FidInception
        if config.network == "inception":
            self.network = FidInception(layers, config.weights)
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
            return self.network.pooled(images)

    def __call__(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self._pooled(to_float(images.to(self.device)))
        return {layer: found[layer] for layer in self.layers}


class FidInception(nn.Module):
    """pytorch-fid's InceptionV3, up to the last of some layers."""

    def __init__(self, layers: tuple[str, ...], uri: str | None):
        """
        Raises:
            UsageError: no weights, or those of another network.
        """
        super().__init__()
        weights, network = resolve_weights("inception", uri), _untrained_inception()
        try:
            network.load_state_dict(weights.values)
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{weights.source}: not the weights of pytorch-fid's Inception ({reason})") from error
        self.layers, known = layers, list(_INCEPTION_BLOCKS)
        self.blocks = nn.ModuleDict(
            {
                layer: nn.Sequential(*(getattr(network, name) for name in _INCEPTION_BLOCKS[layer]))
                for layer in known[: 1 + max(map(known.index, layers))]
            }
        )
        self.eval().requires_grad_(False)

    def pooled(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) in [-1, 1] -> {layer: (B, d)}. First all become 299 px wide and high, as pytorch-fid does it:
        bilinearly and without antialias."""
        x = ((images + 1) * 127.5).round() / 255  # back to exact n/255, as pytorch-fid reads its files
        x = 2 * F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False) - 1
        found = {}
        for layer, block in self.blocks.items():
            x = block(x)
            if layer in self.layers:
                found[layer] = x.mean(dim=(2, 3))
        return found


def _untrained_inception() -> nn.Module:
    """The network that pytorch-fid's weights are for: torchvision's, with its own blocks in nine places."""
    from pytorch_fid import inception as fid  # imports torchvision, which takes seconds, and few look through Inception
    from torchvision.models import inception_v3  # as above

    network = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    network.Mixed_5b = fid.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = fid.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = fid.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = fid.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = fid.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = fid.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = fid.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = fid.FIDInceptionE_1(1280)
    network.Mixed_7c = fid.FIDInceptionE_2(2048)
    return network
