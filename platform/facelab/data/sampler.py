"""Which images a step sees: a pure function of (seed, step), so a position needs no state but the step.

An endless stream of epochs, each a fresh permutation; a batch may span two. Ranks take interleaved parts of the same
global batch, so the images of a step do not depend on the number of workers.
"""

from functools import lru_cache

import torch

from facelab.seeding import generator_for


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, stream: str, epoch: int) -> torch.Tensor:
    return torch.randperm(count, generator=generator_for(seed, stream, epoch))


def batch_indices(
    count: int, batch_size: int, step: int, *, seed: int, stream: str, rank: int = 0, world_size: int = 1
) -> torch.Tensor:
    """Indices into `count` images for one rank at one step, (batch_size / world_size,).

    Args:
        batch_size: of all ranks together; a multiple of world_size.
        stream: separates independent orders, such as "hr" and "lr" of unpaired sets.
    """
    if count < 1:
        raise ValueError("an empty set has no batches")
    positions = torch.arange(step * batch_size, (step + 1) * batch_size)[rank::world_size]
    parts = [
        _permutation(count, seed, stream, int(epoch))[positions[positions // count == epoch] % count]
        for epoch in torch.unique(positions // count)
    ]
    return torch.cat(parts)


def flips(batch_size: int, step: int, *, seed: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """Which images of the batch are mirrored, (batch_size / world_size,) bool."""
    return (torch.rand(batch_size, generator=generator_for(seed, "flip", step)) < 0.5)[rank::world_size]
