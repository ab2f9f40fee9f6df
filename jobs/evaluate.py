"""PSNR and SSIM on faces with truth, a Fréchet distance on real faces without.

    python -m jobs.evaluate --model outputs/attentive --test outputs/test --real faces/real --reference faces/hr \\
        --output outputs/evaluation
"""

import sys

from facelab.evaluation import EvaluateConfig, evaluate_and_log
from facelab.job import main


def plan(config: EvaluateConfig) -> str:
    real = f" and on {config.real} against {config.reference}" if config.real else ""
    return f"measure {config.model} on {config.test}{real}; write per_image.parquet and grids to {config.output}"


if __name__ == "__main__":
    sys.exit(main("evaluate", EvaluateConfig, evaluate_and_log, plan))
