"""The networks and losses of the paper and of the methods it compares: pure torch, no I/O.

Images are float NCHW in [-1, 1] everywhere in this package.
"""

from models.attentive import AttentiveSR
from models.bicubic import Bicubic
from models.bulat import HighToLow, LowToHigh
from models.edsr import EDSR
from models.losses import gram_matrix, kl_divergence
from models.network import DegraderNetwork, SRNetwork
from models.rdn import RDN
from models.srcnn import SRCNN
from models.srgan import SRGAN
from models.stylevae import StyleVAE
from models.vdsr import VDSR

SR_MODELS: dict[str, type[SRNetwork]] = {
    "bicubic": Bicubic,
    "srcnn": SRCNN,
    "vdsr": VDSR,
    "srgan": SRGAN,
    "edsr": EDSR,
    "rdn": RDN,
    "bulat": LowToHigh,
    "attentive": AttentiveSR,
}
DEGRADERS: dict[str, type[DegraderNetwork]] = {"stylevae": StyleVAE, "bulat": HighToLow}


def build_sr(name: str, scale: int = 4, **options) -> SRNetwork:
    """A super-resolution network (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1].

    `options` are the fields of the method's config dataclass, e.g. `use_global=False` for "attentive"
    or `size="full"` for "edsr".

    Raises:
        ValueError: unknown name, a scale that the method does not have, or an option's value.
        TypeError: an option that the method does not have.
    """
    if name not in SR_MODELS:
        raise ValueError(f"unknown SR model {name!r}: choose one of {', '.join(SR_MODELS)}")
    return SR_MODELS[name](scale, **options)


def build_degrader(name: str, scale: int = 4, **options) -> DegraderNetwork:
    """A network whose `degrade` maps (B, 3, H, W) -> (B, 3, H/scale, W/scale), both in [-1, 1]. Raises as build_sr."""
    if name not in DEGRADERS:
        raise ValueError(f"unknown degrader {name!r}: choose one of {', '.join(DEGRADERS)}")
    return DEGRADERS[name](scale, **options)


__all__ = ["DEGRADERS", "SR_MODELS", "StyleVAE", "build_degrader", "build_sr", "gram_matrix", "kl_divergence"]
