"""The networks and losses of the paper and of the methods it compares: pure torch, no I/O.

Images are float NCHW in [-1, 1] everywhere in this package.
"""

from torch import nn

from models.attentive import AttentiveSR
from models.bicubic import Bicubic
from models.edsr import EDSR
from models.losses import gram_matrix, kl_divergence
from models.srcnn import SRCNN
from models.stylevae import StyleVAE

SR_MODELS: dict[str, type[nn.Module]] = {
    "bicubic": Bicubic,
    "srcnn": SRCNN,
    "edsr": EDSR,
    "attentive": AttentiveSR,
}


def build_sr(name: str, scale: int = 4, **options) -> nn.Module:
    """A super-resolution network (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1].

    `options` are the fields of the method's config dataclass, e.g. `use_global=False` for "attentive"
    or `size="full"` for "edsr".

    Raises:
        ValueError: unknown name, unsupported scale or option value.
        TypeError: an option that the method does not have.
    """
    if name not in SR_MODELS:
        raise ValueError(f"unknown SR model {name!r}: choose one of {', '.join(SR_MODELS)}")
    return SR_MODELS[name](scale, **options)


__all__ = ["SR_MODELS", "StyleVAE", "build_sr", "gram_matrix", "kl_divergence"]
