"""Sharp faces + any degrader -> pair shards with provenance.

python -m jobs.synthesize --hr faces/hr --lr faces/lr --degrader outputs/stylevae --output outputs/pairs --actors 3
python -m jobs.synthesize --hr faces/hr --degrader classical --output outputs/classical-pairs
"""

import sys

from facelab.synthesis.job import SYNTHESIZE

if __name__ == "__main__":
    sys.exit(SYNTHESIZE.main())
