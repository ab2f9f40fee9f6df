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


def draws(what: str, batch_size: int, step: int, *, seed: int, rank: int = 0, world_size: int = 1) -> torch.Tensor:
    """One uniform number in [0, 1) for each image of the batch, (batch_size / world_size,), for one purpose."""
    return torch.rand(batch_size, generator=generator_for(seed, what, step))[rank::world_size]


def mirrored(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Half of the images (B, 3, H, W) are mirrored, those with `drawn` (B,) below a half."""
    return torch.where((drawn < 0.5)[:, None, None, None].to(images.device), images.flip(-1), images)


def turned(images: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Each image (B, 3, H, H) turned by 0, 90, 180 or 270 degrees as `drawn` (B,) says."""
    return torch.stack([image.rot90(int(4 * d), (-2, -1)) for image, d in zip(images, drawn, strict=True)])


def cropped(images: torch.Tensor, side: int, drawn: tuple[torch.Tensor, torch.Tensor], grid: int = 1) -> torch.Tensor:
    """A square of `side` px of each image (B, 3, H, W), at the place that `drawn`, two of (B,), says.

    Corners lie on a grid of `grid` px: the same draws cut the same place from a pair's HR (grid = scale) and LR (1).
    """
    rooms = [(length - side) // grid + 1 for length in images.shape[-2:]]
    corners = zip(*((grid * (d * room).long()).tolist() for d, room in zip(drawn, rooms, strict=True)), strict=True)
    return torch.stack([image[:, y : y + side, x : x + side] for image, (y, x) in zip(images, corners, strict=True)])
