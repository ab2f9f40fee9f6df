"""A recorded run once more, from what MLflow has of it: the same result? Other code or other data is refused.

python -m jobs.replay 0123456789abcdef0123456789abcdef
python -m jobs.replay runs:/0123456789abcdef0123456789abcdef --require-same --output outputs/again
"""

import sys

from facelab.experiments.replay import REPLAY

if __name__ == "__main__":
    sys.exit(REPLAY.main())
