"""SRCNN: Dong et al., "Image Super-Resolution Using Deep Convolutional Networks" (arXiv 1501.00092)."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from models.luma import LumaSR
from models.recipe import Optimiser, Recipe

_MINI = {"srcnn.init": "he"}


@dataclass(frozen=True, kw_only=True)
class SRCNNConfig:
    """Filter sizes f1-f2-f3 and widths (§ 4.3); 9-5-5 is the paper's best and has 57,281 parameters, 9-1-5 8,129."""

    kernels: tuple[int, int, int] = (9, 5, 5)
    """Odd kernel sizes of patch extraction, non-linear mapping and reconstruction."""
    widths: tuple[int, int] = (64, 32)
    """Filters n1, n2 of the first two layers."""
    init: Literal["paper", "he"] = "paper"
    """paper: N(0, 0.001), from which the paper's 8e8 backpropagations start (§ 3.3); he: He's for the first two layers,
    as PyTorch ports do (yjn870/SRCNN-pytorch), for any smaller budget."""

    def __post_init__(self):
        if any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"srcnn.kernels must be odd, not {self.kernels}")


class SRCNN(LumaSR):
    """Patch extraction, non-linear mapping, reconstruction: three convolutions (§ 3.1).

    Borders are replicated, so that the size is kept at 64 px faces, where the paper's unpadded layers would eat 16 px
    of them.
    """

    Config = SRCNNConfig
    # § 3.3: SGD of Euclidean loss with momentum 0.9, 8e8 backpropagations; § 4.1: 33x33 sub-images, here 8 px of LR,
    # which are 32 at x4. The batch is that of cuda-convnet, the paper names none.
    paper_recipe = Recipe(
        max_steps=6_250_000, batch_size=128, learning_rate=1e-4, ema_decay=0.0, pixel_loss="sse",
        lr_patch_size=8, optimiser=Optimiser(name="sgd"),
    )  # fmt: skip
    # Adam and He's initialisation, as in yjn870/SRCNN-pytorch: the paper's SGD does not get off the ground in minutes.
    mini_recipe = Recipe(max_steps=1000, learning_rate=1e-3, ema_decay=0.98, pixel_loss="l2")
    presets: ClassVar = {"debug": _MINI, "demo": _MINI, "mini": _MINI}

    def __init__(self, scale: int = 4, **options):
        super().__init__(scale, **options)
        (k1, k2, k3), (n1, n2) = self.config.kernels, self.config.widths

        def conv(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode="replicate")

        self.extract, self.map, self.reconstruct = conv(1, n1, k1), conv(n1, n2, k2), conv(n2, 1, k3)
        for name, parameter in self.named_parameters():
            nn.init.zeros_(parameter) if name.endswith("bias") else nn.init.normal_(parameter, std=0.001)
        if self.config.init == "he":
            nn.init.kaiming_normal_(self.extract.weight)
            nn.init.kaiming_normal_(self.map.weight)

    def sharpen(self, y: torch.Tensor) -> torch.Tensor:
        return self.reconstruct(torch.relu(self.map(torch.relu(self.extract(y)))))

    def parameter_groups(self, learning_rate: float) -> list[dict]:
        """The last layer learns ten times slower: 1e-5 beside 1e-4 (§ 3.3)."""
        first = [*self.extract.parameters(), *self.map.parameters()]
        return [
            {"params": first, "lr": learning_rate},
            {"params": list(self.reconstruct.parameters()), "lr": 0.1 * learning_rate},
        ]
