"""Ray Tune over any options of a training, as MLflow runs nested below one. The same command goes on after any crash.

python -m jobs.sweep --preset weights --hr faces/hr --lr faces/lr --output outputs/weights
python -m jobs.sweep --preset ablation-sr --seeds 3 --hr faces/hr --test faces/test --output outputs/table4
python -m jobs.sweep --train sr --model edsr --space learning_rate=1e-5..1e-3:log edsr.size=mini --search tpe \
    --hr faces/hr --output outputs/rates
"""

import sys

from facelab.experiments.sweep import SWEEP

if __name__ == "__main__":
    sys.exit(SWEEP.main())
