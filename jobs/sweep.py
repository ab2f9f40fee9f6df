"""Ray Tune over the loss weights or the ablation switches, as nested MLflow runs.

python -m jobs.sweep --space weights --hr faces/hr --lr faces/lr --output outputs/sweep
python -m jobs.sweep --space attention --seeds 3 --hr faces/hr --output outputs/table4
"""

import sys

from facelab.experiments.sweep import SWEEP

if __name__ == "__main__":
    sys.exit(SWEEP.main())
