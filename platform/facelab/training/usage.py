"""What a worker uses of its machine."""

import importlib.util
import math

import psutil
import torch


class Usage:
    """CPU since the last time, memory now; of a GPU, torch's own view, and its load where nvidia-ml-py is installed.

    A GPU's numbers were never taken from one by us.
    """

    def __init__(self, device: torch.device):
        self.device, self._process = device, psutil.Process()
        self._process.cpu_percent()  # begins to count

    def now(self) -> dict[str, float]:
        """Percent of a core, GiB; the same names on every worker, nan for what is not known."""
        found = {
            "cpu_percent": self._process.cpu_percent(),
            "memory_gib": self._process.memory_info().rss / 2**30,
        }
        if self.device.type == "cuda":
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self.device) / 2**30
            known = importlib.util.find_spec("pynvml") is not None
            found["gpu_percent"] = float(torch.cuda.utilization(self.device)) if known else math.nan
        return found
