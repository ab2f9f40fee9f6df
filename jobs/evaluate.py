"""PSNR and SSIM on faces with truth, a Fréchet distance on real faces without.

    python -m jobs.evaluate --model outputs/attentive --test outputs/test --real faces/real --reference faces/hr \\
        --output outputs/evaluation
"""

import sys
from pathlib import Path
from typing import Any

from facelab import storage
from facelab.evaluation import EvaluateConfig, evaluate
from facelab.job import main


def work(config: EvaluateConfig, run: Any) -> dict[str, Any]:
    summary = evaluate(config)
    for name in ("per_image.parquet", "grid.png", "real.png"):
        if storage.exists(uri := storage.join(config.output, name)):
            with storage.local_copy(uri) as file:
                run.artifact(Path(file))
    return summary


def plan(config: EvaluateConfig) -> str:
    real = f" and on {config.real} against {config.reference}" if config.real else ""
    return f"measure {config.model} on {config.test}{real}; write per_image.parquet and grids to {config.output}"


if __name__ == "__main__":
    sys.exit(main("evaluate", EvaluateConfig, work, plan))
