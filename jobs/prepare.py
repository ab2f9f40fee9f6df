"""Images -> face shards; what cannot be used is set aside in rejected.parquet.

python -m jobs.prepare --input photos/ --recipe folder --output s3://bucket/faces/hr
"""

import sys

from facelab.data.prepare import PREPARE

if __name__ == "__main__":
    sys.exit(PREPARE.main())
