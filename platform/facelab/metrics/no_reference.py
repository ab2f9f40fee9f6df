"""BRISQUE (Mittal et al. 2012), by piq: how natural an image's statistics are, without a reference; lower is better."""

from typing import Any

import torch

from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.metrics.image_metric import ImageMetric
from facelab.metrics.number import Metric
from facelab.metrics.protocol import library
from facelab.trained.weights import resolve_weights

_RHO = -153.591  # offset of the regression, from the authors' code, as in piq


class BrisqueConfig(Config):
    """Weights of BRISQUE."""

    weights: Uri | None = None
    """URI of piq's brisque_svm_weights.pt; default: piq's download."""


class Brisque(ImageMetric):
    """nan for an image without variance, of which it says nothing."""

    shown = Metric("BRISQUE {}", -1, ".1f")
    options = BrisqueConfig
    needs_truth = False
    columns = ("brisque",)

    def __init__(self, options: BrisqueConfig, crop: int = 0):
        """
        Raises:
            UsageError: no weights, or others.
        """
        super().__init__(options, crop)
        weights = resolve_weights("brisque", options.weights)
        self.sha256 = weights.sha256
        try:
            self.coefficients, self.vectors = weights.values
            fits = self.vectors.ndim == self.coefficients.ndim == 2 and self.vectors.shape[1] == 36
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{weights.source}: not piq's weights of BRISQUE") from error
        if not fits:
            raise UsageError(f"{weights.source}: not piq's weights of BRISQUE: support vectors have 36 features")

    def __call__(self, images: torch.Tensor, truth: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        return {"brisque": torch.stack([self._score(image) for image in images.split(1)])}

    def record(self, column: str) -> dict[str, Any]:
        return {"colour": "luma of YIQ, rounded", "weights": self.sha256, "settings": library("piq")}

    def _score(self, image: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) -> (): piq.brisque, whose regression can only take downloaded weights, step by step."""
        from piq.brisque import _natural_scene_statistics, _rbf_kernel, _scale_features  # piq imports torchvision,
        from piq.functional import imresize, rgb2yiq  # which takes seconds

        x = torch.round(rgb2yiq(image.float() / 255.0 * 255)[:, :1])  # piq's rounding, to the last bit
        statistics = []
        try:
            for _ in range(2):
                statistics.append(_natural_scene_statistics(x))
                x = imresize(x, sizes=(x.shape[2] // 2, x.shape[3] // 2))
        except AssertionError:  # piq's word for: no variance, or none on one side of 0
            return torch.tensor(float("nan"))
        kernel = _rbf_kernel(_scale_features(torch.cat(statistics, dim=-1)), self.vectors.t())
        return (kernel @ self.coefficients.type(kernel.dtype) - _RHO).flatten()[0]
