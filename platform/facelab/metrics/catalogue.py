"""Every metric by its name. This is the file that a new one is entered in; all else it declares itself."""

from facelab.metrics.degradation import DISTANCES
from facelab.metrics.frechet import FD, FID
from facelab.metrics.identity import Identity
from facelab.metrics.image_metric import ImageMetric
from facelab.metrics.kid import KERNEL
from facelab.metrics.no_reference import Brisque
from facelab.metrics.number import Metric
from facelab.metrics.perceptual import Lpips
from facelab.metrics.psnr_ssim import Psnr, Ssim

IMAGE_METRICS: dict[str, type[ImageMetric]] = {
    "psnr": Psnr,
    "ssim": Ssim,
    "lpips": Lpips,
    "identity": Identity,
    "brisque": Brisque,
}
"""Of single images, as --metrics names them; in the order of a table's columns."""
DEFAULT_METRICS = ("psnr", "ssim")
"""Those that are measured unless others are asked for."""
SET_METRICS = {"fid": FID, "fd": FD, "kid": KERNEL, **DISTANCES}
"""Of two sets: what their names in summary.json begin with."""
_QUALIFIERS = {"rgb": "RGB", "y": "Y"}


def metric(name: str) -> Metric:
    """What is known of a metric by its name in summary.json, such as psnr_y, fd_vgg16 or brisque_real.

    Raises:
        KeyError: no metric of this project.
    """
    known = {family: kind.shown for family, kind in IMAGE_METRICS.items()} | SET_METRICS
    family = name
    while family not in known and "_" in family:
        family = family.rpartition("_")[0]
    qualifier = name[len(family) + 1 :]
    title = known[family].title.format(_QUALIFIERS.get(qualifier, qualifier)).replace(" ,", ",").strip()
    return Metric(title, known[family].better, known[family].digits)
