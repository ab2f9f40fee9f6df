"""A model, or a folder of images finished by any other tool, on faces with truth and on real faces without.

    python -m jobs.evaluate --model outputs/attentive --test outputs/test --real faces/real --reference faces/hr \\
        --output outputs/evaluation
    python -m jobs.evaluate --model folder_of_pngs --test faces/lfw --actors 0 --output outputs/other-tool
"""

import sys

from facelab.evaluation.run import EVALUATE

if __name__ == "__main__":
    sys.exit(EVALUATE.main())
