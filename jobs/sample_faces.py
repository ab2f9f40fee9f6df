"""Draw sample faces and real-world-like LR of other identities: training and test sets without a download.

python -m jobs.sample_faces --preset demo --output outputs/faces
"""

import sys

from facelab.samples.sets import SAMPLE_FACES

if __name__ == "__main__":
    sys.exit(SAMPLE_FACES.main())
