"""Networks applied so that an image's result never depends on the images beside it: the one way from LR to SR, and
from HR to LR."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from facelab.images import to_float, to_uint8
from models.network import DegraderNetwork

# Other sizes differ in the last bits, which may round a pixel up or down.
MICRO_BATCH = 16

T = TypeVar("T", torch.Tensor, dict[str, torch.Tensor])


def in_fixed_batches(function: Callable[..., T], *inputs: torch.Tensor, size: int = MICRO_BATCH) -> T:
    """`function` of tensors (B, …), `size` rows at a time, the last part padded by repeating its last row.

    Returns:
        What it returns, a tensor (B, …) or a dictionary of them, on the CPU.
    """
    count, parts = len(inputs[0]), []
    for start in range(0, count, size):
        part = [x[start : start + size] for x in inputs]
        missing = size - len(part[0])
        parts.append(function(*(torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) for x in part)))
    if isinstance(parts[0], dict):
        return {key: torch.cat([part[key] for part in parts])[:count].cpu() for key in parts[0]}  # pyrefly: ignore
    return torch.cat(parts)[:count].cpu()  # pyrefly: ignore


@torch.no_grad()
def super_resolve(network: nn.Module, lr: torch.Tensor, size: int = MICRO_BATCH) -> torch.Tensor:
    """(B, 3, h, w) uint8 -> (B, 3, scale·h, scale·w) uint8 on the CPU, by a network on any device."""
    device = _device(network)
    return in_fixed_batches(lambda images: to_uint8(network(to_float(images.to(device)))), lr, size=size)


@torch.no_grad()
def degrade(
    network: DegraderNetwork,
    hr: torch.Tensor,
    noise: torch.Tensor,
    style: torch.Tensor | None = None,
    size: int = MICRO_BATCH,
) -> torch.Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, H/scale, W/scale) uint8 on the CPU; noise and style as for DegraderNetwork.degrade,
    but the style's faces are uint8, too."""
    device = _device(network)

    def low(faces: torch.Tensor, z: torch.Tensor, *styles: torch.Tensor) -> torch.Tensor:
        given = to_float(styles[0].to(device)) if styles else None
        return to_uint8(network.degrade(to_float(faces.to(device)), z.to(device), given))

    return in_fixed_batches(low, hr, noise, *([] if style is None else [style]), size=size)


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in [*network.parameters(), *network.buffers()]), torch.device("cpu"))
