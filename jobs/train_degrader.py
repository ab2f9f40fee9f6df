"""Train a degrader on unpaired sharp and low-resolution faces: the styleVAE, or Bulat et al.'s High-to-Low.

python -m jobs.train_degrader --hr faces/hr --lr faces/lr --output outputs/stylevae
python -m jobs.train_degrader --model bulat --hr faces/hr --lr faces/lr --output outputs/high-to-low
python -m jobs.train_degrader --hr s3://b/hr --lr s3://b/lr --output s3://b/stylevae --workers 8
"""

import sys

from facelab.training.job import TRAIN_DEGRADER

if __name__ == "__main__":
    sys.exit(TRAIN_DEGRADER.main())
