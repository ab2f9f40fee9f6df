"""What the workers of a training exchange through torch's process group: sums, texts, the statistics of batch norm."""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from models.precision import at_least_float32


class _Summed(torch.autograd.Function):
    """torch.distributed.nn has the same, deprecated without a public successor."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return _total(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        return _total(grad_outputs[0])


def _total(value: torch.Tensor) -> torch.Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum over the workers, on each of them. Differentiable: a gradient is that of all workers' losses together,
    which averaging over the workers, as DDP does, turns into that of their mean."""
    return _Summed.apply(value)


def joined(values: torch.Tensor) -> torch.Tensor:
    """(n,) of each worker -> (workers · n,), by rank, on each of them; differentiable as `summed` is."""
    rank, count = dist.get_rank(), len(values)
    whole = values.new_zeros(dist.get_world_size() * count)
    return summed(whole.index_put((torch.arange(rank * count, (rank + 1) * count, device=values.device),), values))


def mean_over_workers(value: torch.Tensor) -> torch.Tensor:
    """The mean of each worker's tensor; what every worker gets."""
    return _total(value) / dist.get_world_size()


def highest_over_workers(values: torch.Tensor) -> torch.Tensor:
    """The same of the largest, element by element."""
    highest = values.clone()
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return highest


def gather_from_workers(text: str, group: Any = None) -> list[str]:
    """Each worker's text, by rank, in a process group."""
    found = [""] * dist.get_world_size(group)
    dist.all_gather_object(found, text, group)
    return found


class _SyncedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all workers, which have equally many images. torch's own runs on GPUs alone."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        x = at_least_float32(input)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = summed(x.sum(dim=(0, 2, 3))) / count
        centred = x - mean[:, None, None]
        variance = summed(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.num_batches_tracked.add_(1)  # pyrefly: ignore
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), self.momentum)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def synchronise_batch_norm(network: nn.Module) -> None:
    """Let every batch norm inside see the whole batch; its weights and their names stay as they are."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SyncedBatchNorm2d
