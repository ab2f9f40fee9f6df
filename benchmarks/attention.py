"""Our attention beside the textbook forms, in one run: time and the largest tensor that is held.

python -m benchmarks.attention
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.attention import global_attention, local_attention


def naive_global(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """With the N x N map."""
    beta = torch.bmm(key.flatten(2).transpose(1, 2), query.flatten(2)).softmax(dim=1)
    return torch.bmm(value.flatten(2), beta).reshape(value.shape)


def naive_local(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int) -> torch.Tensor:
    """With unfolded windows."""
    (batch, groups, height, width), channels, area = query.shape, value.shape[1], window**2
    unfold = {"kernel_size": window, "padding": window // 2}
    keys = F.unfold(key, **unfold).reshape(batch, groups, area, height * width)
    visible = F.unfold(torch.ones_like(key[:1, :1]), **unfold).reshape(1, 1, area, -1) > 0
    scores = -(query.flatten(2).unsqueeze(2) - keys).square()
    weights = scores.masked_fill(~visible, -torch.inf).softmax(dim=2).unsqueeze(2)
    values = F.unfold(value, **unfold).reshape(batch, groups, channels // groups, area, height * width)
    return (weights * values).sum(dim=3).reshape(value.shape)


class Largest(TorchDispatchMode):
    """The most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def measure(attention: Callable, inputs: tuple) -> tuple[float, int]:
    """(median seconds of forward and backward, elements of the largest tensor)."""
    with Largest() as largest:
        attention(*inputs).sum().backward()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        attention(*inputs).sum().backward()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[2], largest.elements


def main() -> None:
    print("| 64 channels, 8 for query and key, batch 4 | ours, ms | textbook, ms | textbook / ours | largest tensor |")
    print("|---|---|---|---|---|")
    for side in (16, 32, 48):
        q, k = (torch.randn(4, 8, side, side, requires_grad=True) for _ in range(2))
        v = torch.randn(4, 64, side, side, requires_grad=True)
        for name, ours, naive, inputs in (
            ("global", global_attention, naive_global, (q, k, v)),
            ("local, 7x7", local_attention, naive_local, (q, k, v, 7)),
        ):
            torch.testing.assert_close(ours(*inputs), naive(*inputs), rtol=1e-4, atol=1e-5)
            (a, most), (b, naive_most) = measure(ours, inputs), measure(naive, inputs)
            row = f"| {name}, {side}x{side} | {1000 * a:.0f} | {1000 * b:.0f} | {b / a:.1f} |"
            print(f"{row} {naive_most / most:.1f} times smaller |", flush=True)


if __name__ == "__main__":
    main()
