"""The paper's tables and figures, made here, beside what the paper prints.

python -m jobs.reproduce table3 --estimate
python -m jobs.reproduce table3 --hr faces/hr --lr faces/wider-train --test faces/lfw --real faces/wider-test
python -m jobs.reproduce all --preset paper --seeds 3 --workers 8 --gpu --at-once 4 --hr s3://… --lr s3://… \
    --test s3://… --real s3://… --output s3://experiments/paper
"""

import sys

from facelab.experiments.reproduce import REPRODUCE

if __name__ == "__main__":
    sys.exit(REPRODUCE.main())
