"""Frozen feature networks: the φ of Eq. 3–4 and of Fréchet distances. Weights are given, never fetched here."""

from dataclasses import dataclass

import torch
from torch import nn

from models.resize import resize


@dataclass(frozen=True)
class FeatureSpec:
    """How a network wants its input, and the names of its layers."""

    mean: tuple[float, float, float]
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float]
    """Then divided by."""
    layers: dict[str, int]
    """Public layer name -> index in torchvision's `features`."""


def _vgg_layers(*convolutions: int) -> dict[str, int]:
    """conv1_1, relu1_1, … pool5: `convolutions` are those of each of VGG's five blocks (1409.1556, Table 1)."""
    names = []
    for block, count in enumerate(convolutions, 1):
        for i in range(1, count + 1):
            names += [f"conv{block}_{i}", f"relu{block}_{i}"]
        names.append(f"pool{block}")
    return {name: index for index, name in enumerate(names)}


FEATURE_NETWORKS = {
    # VGG16_Weights.IMAGENET1K_FEATURES: input 255 · (RGB − mean).
    "vgg16": FeatureSpec((0.48235, 0.45882, 0.40784), (1 / 255,) * 3, _vgg_layers(2, 2, 3, 3, 3)),
    # VGG19_Weights.IMAGENET1K_V1. SRGAN's φ5,4 is relu5_4.
    "vgg19": FeatureSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), _vgg_layers(2, 2, 4, 4, 4)),
    # MobileNet_V2_Weights.IMAGENET1K_V1; block 0 has 32 channels, 1: 16, 3: 24, 6: 32, 10: 64, 18: 1280.
    "mobilenet_v2": FeatureSpec((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), {f"block{i}": i for i in range(19)}),
}


class FeatureNetwork(nn.Module):
    """Images -> named feature maps, each divided by the RMS that `calibrate` stored for its layer.

    (B, 3, H, W) in [-1, 1] -> {layer: (B, C, h, w)}. Inputs smaller than `min_size` are upsampled to it first:
    at 16 px the deeper maps would be 2x2 or vanish. Parameters are frozen; gradients flow to the input.
    """

    mean: torch.Tensor
    std: torch.Tensor
    rms: torch.Tensor

    def __init__(self, name: str, layers: tuple[str, ...], weights: dict[str, torch.Tensor], min_size: int = 64):
        super().__init__()
        if name not in FEATURE_NETWORKS:
            raise ValueError(f"unknown feature network {name!r}: choose one of {', '.join(FEATURE_NETWORKS)}")
        spec = FEATURE_NETWORKS[name]
        if unknown := [layer for layer in layers if layer not in spec.layers]:
            raise ValueError(f"{name} has no layer {unknown[0]!r}: choose among {', '.join(spec.layers)}")
        self.name, self.layers, self.min_size = name, tuple(layers), min_size
        indices = {spec.layers[layer]: layer for layer in layers}
        from torchvision.models import get_model  # torchvision takes seconds, and few processes build such a network

        network = get_model(name, weights=None).features
        assert isinstance(network, nn.Sequential)
        own = {key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")}
        network.load_state_dict(own)
        self.network = network[: max(indices) + 1].eval().requires_grad_(False)
        for module in self.network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # VGG's in-place ReLU would overwrite a map that is still to be read
        self.indices = indices
        self.register_buffer("mean", torch.tensor(spec.mean)[:, None, None])
        self.register_buffer("std", torch.tensor(spec.std)[:, None, None])
        self.register_buffer("rms", torch.ones(len(layers)))

    def train(self, mode: bool = True):
        """Stay in eval mode: batch statistics of a frozen network must not move."""
        return super().train(False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            factor = self.min_size / min(height, width)
            images = resize(images, round(height * factor), round(width * factor))
        x = (images * 0.5 + 0.5 - self.mean) / self.std
        found = {}
        for index, module in enumerate(self.network):
            x = module(x)
            if index in self.indices:
                found[self.indices[index]] = x
        return {layer: found[layer] / rms for layer, rms in zip(self.layers, self.rms, strict=True)}

    @torch.no_grad()
    def calibrate(self, images: torch.Tensor) -> None:
        """Store each layer's RMS over reference images, so that every layer counts the same in Eq. 3–4."""
        self.rms.fill_(1.0)
        self.rms.copy_(torch.stack([f.square().mean().sqrt() for f in self(images).values()]))

    def pooled(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Means over positions, not divided by the RMS: (B, 3, H, W) -> {layer: (B, C)}."""
        maps = self(images).items()
        return {layer: x.mean(dim=(2, 3)) * rms for (layer, x), rms in zip(maps, self.rms, strict=True)}
