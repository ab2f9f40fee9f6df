"""A shard set, read again whole: every shard and every row hashed, and compared with the manifest.

python -m jobs.validate --input s3://bucket/faces/hr --output outputs/validated
"""

import sys

from facelab.data.validate import VALIDATE

if __name__ == "__main__":
    sys.exit(VALIDATE.main())
