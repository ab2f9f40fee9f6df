"""What SRCNN and VDSR share: they sharpen the Y channel of the bicubic-upscaled image and leave its colour bicubic."""

import torch

from models.colour import rgb_to_ycbcr, ycbcr_to_rgb
from models.network import SRNetwork
from models.resize import upscale


def luma(images: torch.Tensor) -> torch.Tensor:
    """RGB (B, 3, H, W) in [-1, 1] -> Y (B, 1, H, W), BT.601 studio range scaled to [0, 1]."""
    return (rgb_to_ycbcr(images * 0.5 + 0.5)[:, :1] - 16) / 219


class LumaSR(SRNetwork):
    """(B, 3, h, w) -> (B, 3, scale·h, scale·w), both in [-1, 1], by a subclass's `sharpen` of Y."""

    scales = (2, 3, 4, 8)
    on_luma = True

    def sharpen(self, y: torch.Tensor) -> torch.Tensor:
        """(B, 1, H, W) bicubic Y in [0, 1] -> the same, sharper."""
        raise NotImplementedError

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        ycbcr = rgb_to_ycbcr(upscale(lr, self.scale).clamp(-1, 1) * 0.5 + 0.5)  # (B, 3, H, W)
        y = self.sharpen((ycbcr[:, :1] - 16) / 219).to(ycbcr.dtype)
        return ycbcr_to_rgb(torch.cat([y * 219 + 16, ycbcr[:, 1:]], dim=1)) * 2 - 1
