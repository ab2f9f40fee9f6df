"""How close the LR of synthesised pairs is to real LR, beside bicubic LR of the same faces; with --other, the floor.

    python -m jobs.evaluate_lr --pairs outputs/pairs --real faces/wider-test --other faces/wider \\
        --output outputs/lr/stylevae
    python -m jobs.report --runs outputs/lr/stylevae outputs/lr/high-to-low --output outputs/table3
"""

import sys

from facelab.evaluation.degradation import EVALUATE_LR

if __name__ == "__main__":
    sys.exit(EVALUATE_LR.main())
