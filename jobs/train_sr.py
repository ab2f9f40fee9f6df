"""Train a super-resolution network, on synthesised pairs or on bicubic LR.

python -m jobs.train_sr --model attentive --pairs outputs/pairs --output outputs/attentive
python -m jobs.train_sr --model edsr --hr faces/hr --output outputs/edsr-bicubic --workers 2
"""

import sys

from facelab.job import main
from facelab.training.job import train_and_register, training_plan
from facelab.training.sr import TrainSRConfig

if __name__ == "__main__":
    sys.exit(main("train_sr", TrainSRConfig, train_and_register, training_plan))
