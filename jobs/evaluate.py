"""A model, or a folder of images finished by any other tool, on faces with truth and on real faces without.

    python -m jobs.evaluate --model outputs/attentive --test outputs/test --real faces/real --reference faces/hr \\
        --output outputs/evaluation
    python -m jobs.evaluate --model folder_of_pngs --test faces/lfw --actors 0 --output outputs/other-tool
"""

import sys

from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import evaluate_and_log
from facelab.job import main


def plan(config: EvaluateConfig) -> str:
    test = f" on {config.test}" if config.test else ""
    real = f" on {config.real} against {config.reference}" if config.real else ""
    how = f"{config.actors} actors" if config.actors else "this process"
    return f"measure {config.model}{test}{' and' if test and real else ''}{real} in {how}; write to {config.output}"


if __name__ == "__main__":
    sys.exit(main("evaluate", EvaluateConfig, evaluate_and_log, plan))
