"""SRCNN: Dong et al., "Image Super-Resolution Using Deep Convolutional Networks" (arXiv 1501.00092)."""

from dataclasses import dataclass

import torch
from torch import nn

from models.colour import rgb_to_ycbcr, ycbcr_to_rgb
from models.resize import upscale


@dataclass(frozen=True, kw_only=True)
class SRCNNConfig:
    """Filter sizes f1-f2-f3; 9-5-5 is the paper's best and has 57,281 parameters."""

    kernels: tuple[int, int, int] = (9, 5, 5)
    """Odd kernel sizes of patch extraction, non-linear mapping and reconstruction."""
    widths: tuple[int, int] = (64, 32)
    """Filters n1, n2 of the first two layers."""

    def __post_init__(self):
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"srcnn.kernels must be odd, not {self.kernels}")


class SRCNN(nn.Module):
    """Works on the Y channel of the bicubic-upscaled image; Cb and Cr stay bicubic, as in the paper.

    (B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1]. Borders are replicated, so that the size is
    kept at 64 px faces, where the paper's unpadded layers would eat 16 px of them.
    """

    Config = SRCNNConfig

    def __init__(self, scale: int = 4, **options):
        super().__init__()
        self.scale, self.config = scale, self.Config(**options)
        (k1, k2, k3), (n1, n2) = self.config.kernels, self.config.widths

        def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate")

        self.extract, self.map, self.reconstruct = conv(1, n1, k1), conv(n1, n2, k2), conv(n2, 1, k3)

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        ycbcr = rgb_to_ycbcr(upscale(lr, self.scale).clamp(-1, 1) * 0.5 + 0.5)  # (B, 3, H, W)
        y = (ycbcr[:, :1] - 16) / 219  # studio range to [0, 1]
        y = self.reconstruct(torch.relu(self.map(torch.relu(self.extract(y)))))
        rgb = ycbcr_to_rgb(torch.cat([y * 219 + 16, ycbcr[:, 1:]], dim=1))
        return rgb * 2 - 1
