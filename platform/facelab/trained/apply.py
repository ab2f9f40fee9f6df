"""Networks applied so that an image's result never depends on the images beside it."""

from collections.abc import Callable
from typing import TypeVar

import torch

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
