"""Runs side by side, of any job: numbers, options, means over seeds, paired differences and pictures.

python -m jobs.compare 3f2a9c… 81d0be…
python -m jobs.compare --filter "tags.sweep = 'weights'" --metrics best/fd --output outputs/compare/weights
python -m jobs.compare --filter "tags.mlflow.parentRunId = '3f2a9c…'"
"""

import sys

from facelab.reports.compare import COMPARE

if __name__ == "__main__":
    sys.exit(COMPARE.main())
