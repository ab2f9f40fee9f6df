"""LPIPS (Zhang et al., arXiv 1801.03924), v0.1: the lpips package's code and heads on a backbone by our resolver."""

import warnings
from typing import Any, Literal, Self

import torch

from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.images import to_float
from facelab.metrics.image_metric import ImageMetric
from facelab.metrics.number import Metric
from facelab.metrics.protocol import library
from facelab.trained.weights import resolve_weights


class LpipsConfig(Config):
    """Backbone of LPIPS."""

    network: Literal["alex", "vgg", "squeeze"] = "alex"
    """Named in the metric. alex is the authors' choice for evaluation, vgg their loss."""
    weights: Uri | None = None
    """URI of the backbone's ImageNet weights (torchvision's IMAGENET1K_V1); default: torchvision's download."""


class Lpips(ImageMetric):
    """A distance, 0 for equal images."""

    shown = Metric("LPIPS {}", -1, ".4f")
    options = LpipsConfig
    is_network = True

    def __init__(self, options: LpipsConfig, crop: int = 0):
        """
        Raises:
            UsageError: no weights, or those of another network.
        """
        import lpips  # imports torchvision, which takes seconds

        super().__init__(options, crop)
        weights = resolve_weights(f"lpips_{options.network}", options.weights)
        self.columns = (f"lpips_{options.network}",)
        self.sha256, self.device = weights.sha256, torch.device("cpu")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="torchvision")  # lpips uses arguments that it has renamed
            self.network = lpips.LPIPS(net=options.network, pnet_rand=True, verbose=False).requires_grad_(False)
        backbone = self.network.net
        # lpips cuts the backbone into slices and keeps torchvision's indices within them: slice2.3.weight is
        # features.3.weight.
        own = {key: f"features.{key.split('.', 1)[1]}" for key in backbone.state_dict()}
        try:
            backbone.load_state_dict({key: weights.values[theirs] for key, theirs in own.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{weights.source}: not torchvision's weights of {options.network} ({reason})") from error

    @property
    def least_side(self) -> int:
        return 32  # of smaller images AlexNet's last layers have nothing left

    def to(self, device: torch.device) -> Self:
        self.device = device
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, truth: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        assert truth is not None
        x, y = (to_float(side.to(self.device)) for side in (images, truth))
        return {self.columns[0]: self.network(x, y).flatten()}

    def record(self, column: str) -> dict[str, Any]:
        return {"colour": "rgb", "weights": self.sha256, "settings": library("lpips")}
