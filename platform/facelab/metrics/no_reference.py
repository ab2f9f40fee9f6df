"""BRISQUE (Mittal et al. 2012), by piq: how natural an image's statistics are, without a reference; lower is better."""

import importlib

import torch

from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.metrics.features import loading
from facelab.metrics.protocol import library
from facelab.trained.weights import resolve_weights


class BrisqueConfig(Config):
    """The regression of BRISQUE."""

    weights: Uri | None = None
    """URI of piq's brisque_svm_weights.pt; default: piq's download."""


class Brisque:
    """(B, 3, H, W) uint8 -> (B,) scores; nan for an image without variance, of which it says nothing."""

    def __init__(self, config: BrisqueConfig):
        """
        Raises:
            UsageError: no weights, or others.
        """
        weights = resolve_weights("brisque", config.weights)
        self.protocol = {
            "colour": "luma of YIQ, rounded",
            "weights": weights.sha256,
            "settings": library("piq"),
        }
        try:
            self.coefficients, self.vectors = weights.values
            fits = self.vectors.ndim == self.coefficients.ndim == 2 and self.vectors.shape[1] == 36
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{weights.source}: not piq's weights of BRISQUE") from error
        if not fits:
            raise UsageError(f"{weights.source}: not piq's weights of BRISQUE: support vectors have 36 features")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        score = importlib.import_module("piq.brisque").brisque  # `piq.brisque` itself is the function
        # piq loads for each call what it then transposes in place.
        with loading("piq.brisque", "load_url", lambda: (self.coefficients.clone(), self.vectors.clone())):
            return torch.stack([self._one(score, image) for image in images.split(1)])

    @staticmethod
    def _one(score, image: torch.Tensor) -> torch.Tensor:
        try:
            return score(image.float(), data_range=255, reduction="none").flatten()[0]
        except AssertionError:  # piq's word for: no variance, or none on one side of 0
            return torch.tensor(float("nan"))
