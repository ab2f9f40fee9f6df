"""The whole pipeline, from faces to a report.

python -m jobs.demo --output outputs/demo
python -m jobs.demo --hr faces/hr --lr faces/lr --test faces/test --real faces/real --output outputs/own
"""

import sys

from facelab.experiments.demo import DEMO

if __name__ == "__main__":
    sys.exit(DEMO.main())
