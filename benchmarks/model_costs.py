"""Parameters, FLOPs and the time of a training step of every network: the table of docs/models.md.

    python -m benchmarks.model_costs [--steps]

FLOPs are of one face, forward, counted by torch: convolutions, matrix products and global attention, two a multiply-
add; what is element-wise, and so local attention, is left out. `--steps` adds seconds of a training step of 16 faces at
16 -> 64 (64 -> 16) on this machine.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from models import DEGRADERS, SR_MODELS, build_degrader, build_sr
from models.network import Network


def published_and_reduced(networks: Mapping[str, type[Network]]) -> list[tuple[str, dict[str, Any]]]:
    """(name, options) of every network at its size of preset paper and, where they are others, of the small presets."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for name, network in networks.items():
        for preset in ("paper", "paper_mini", "mini"):
            options = {key.removeprefix(f"{name}."): value for key, value in network.presets.get(preset, {}).items()
                       if key.startswith(f"{name}.")}  # fmt: skip
            found.setdefault((name, parameters(network(**options))), options)
    return [(name, options) for (name, _), options in found.items()]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _attention_on_cpu(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)  # torch counts the GPU kernels only


@torch.no_grad()
def flops(network: nn.Module, images: torch.Tensor) -> int:
    cpu_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with FlopCounterMode(display=False, custom_mapping={cpu_kernel: _attention_on_cpu}) as counter:
        network(images)
    return counter.get_total_flops()


class Degrade(nn.Module):
    """A degrader's `degrade` in its prior's style, as a plain forward."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, hr: torch.Tensor) -> torch.Tensor:
        return self.network.degrade(hr, torch.randn(len(hr), self.network.noise_dim(hr.shape[-1]), device=hr.device))


def training_step(network: nn.Module, size: int, batch: int = 16, repeats: int = 3) -> float | None:
    """Median seconds of forward and backward of `batch` images of `size` px; None where the output does not train the
    network, as that of the styleVAE's camera."""
    inputs = torch.rand(batch, 3, size, size) * 2 - 1
    if not network(inputs).requires_grad:
        return None
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        began = time.perf_counter()
        network(inputs).square().mean().backward()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[repeats // 2]


def main() -> None:
    timed = "--steps" in sys.argv
    print("| network | parameters | GFLOP 16→64 | GFLOP 32→128 |" + (" step of 16, s |" if timed else ""))
    print("|---|---|---|---|" + ("---|" if timed else ""))
    sr = [*published_and_reduced(SR_MODELS), ("edsr", {"size": "full"})]
    for kind, entries in (("sr", sr), ("degrader", published_and_reduced(DEGRADERS))):
        for name, options in entries:
            network = build_sr(name, 4, **options) if kind == "sr" else Degrade(build_degrader(name, 4, **options))
            sizes = (16, 32) if kind == "sr" else (64, 128)
            giga = [flops(network.eval(), torch.zeros(1, 3, side, side)) / 1e9 for side in sizes]
            label = f"{name} {kind if name == 'bulat' else ''} {' '.join(f'{k}={v}' for k, v in options.items())}"
            row = f"| {' '.join(label.split())} | {parameters(network):,} | {giga[0]:.3g} | {giga[1]:.3g} |"
            if timed:
                seconds = training_step(network.train(), sizes[0])
                row += " – |" if seconds is None else f" {seconds:.2f} |"
            print(row, flush=True)


if __name__ == "__main__":
    main()
