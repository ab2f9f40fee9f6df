"""What must not run in half precision: exp, Gram matrices, variances, softmax over positions."""

import torch


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """float64 as it is, everything else as float32."""
    return x if x.dtype == torch.float64 else x.float()
