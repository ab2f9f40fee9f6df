"""What synthesize would take: a sample measured here, time, cost, bytes and the bottleneck reckoned for a cluster.

python -m jobs.plan --hr s3://faces/hr --lr s3://faces/lr --degrader s3://models/stylevae --output outputs/plan \
    --nodes 40 --cpus-per-node 16 --price 0.68
"""

import sys

from facelab.synthesis.plan import PLAN

if __name__ == "__main__":
    sys.exit(PLAN.main())
