"""LPIPS (Zhang et al., arXiv 1801.03924), v0.1: the lpips package's code and heads on a backbone by our resolver."""

import warnings
from typing import Literal

import lpips
import torch

from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.images import to_float
from facelab.metrics.protocol import library
from facelab.trained.weights import resolve_weights

LPIPS_MIN_SIDE = 32
"""px; of smaller images AlexNet's last layers have nothing left."""


class LpipsConfig(Config):
    """Backbone of LPIPS."""

    network: Literal["alex", "vgg", "squeeze"] = "alex"
    """Named in the metric. alex is the authors' choice for evaluation, vgg their loss."""
    weights: Uri | None = None
    """URI of the backbone's ImageNet weights (torchvision's IMAGENET1K_V1); default: torchvision's download."""


class Lpips:
    """Two (B, 3, H, W) uint8 of one size -> (B,) distances, 0 for equal images."""

    def __init__(self, config: LpipsConfig):
        """
        Raises:
            UsageError: no weights, or those of another network.
        """
        weights = resolve_weights(f"lpips_{config.network}", config.weights)
        self.name, self.device = f"lpips_{config.network}", torch.device("cpu")
        self.protocol = {"colour": "rgb", "weights": weights.sha256, "settings": library("lpips")}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # lpips uses arguments that it has renamed
            self.network = lpips.LPIPS(net=config.network, pnet_rand=True, verbose=False).requires_grad_(False)
        backbone = self.network.net
        # lpips cuts the backbone into slices and keeps torchvision's indices within them: slice2.3.weight is
        # features.3.weight.
        own = {key: f"features.{key.split('.', 1)[1]}" for key in backbone.state_dict()}
        try:
            backbone.load_state_dict({key: weights.values[theirs] for key, theirs in own.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{weights.source}: not torchvision's weights of {config.network} ({reason})") from error

    def to(self, device: torch.device) -> "Lpips":
        self.device = device
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.network(to_float(x.to(self.device)), to_float(y.to(self.device))).flatten()
