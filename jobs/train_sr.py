"""Train a super-resolution network, on synthesised pairs or on bicubic LR.

python -m jobs.train_sr --model attentive --pairs outputs/pairs --output outputs/attentive
python -m jobs.train_sr --model edsr --hr faces/hr --output outputs/edsr-bicubic --workers 2
"""

import sys

from facelab.training.job import TRAIN_SR

if __name__ == "__main__":
    sys.exit(TRAIN_SR.main())
