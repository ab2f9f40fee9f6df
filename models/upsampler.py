"""Sub-pixel upsampling (Shi et al., arXiv 1609.05158), shared by the networks that work at LR size."""

from torch import nn


class PixelShuffleUpsampler(nn.Sequential):
    """(B, C, h, w) -> (B, C, scale·h, scale·w) by 3x3 convolutions and pixel shuffles of 2, or one of 3."""

    def __init__(self, scale: int, channels: int):
        factors = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
        layers: list[nn.Module] = []
        for factor in factors:
            layers += [nn.Conv2d(channels, channels * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
        super().__init__(*layers)
