"""Numbers that say what they were computed with. Images are uint8 (B, 3, H, W)."""

from facelab.metrics.degradation import degradation_distances, radial_spectrum
from facelab.metrics.frechet import FrechetDistance, frechet_distance
from facelab.metrics.intervals import paired_difference, share_of_gap
from facelab.metrics.kid import kid
from facelab.metrics.psnr_ssim import psnr, ssim

__all__ = [
    "FrechetDistance",
    "degradation_distances",
    "frechet_distance",
    "kid",
    "paired_difference",
    "psnr",
    "radial_spectrum",
    "share_of_gap",
    "ssim",
]
