"""Images -> face shards; what cannot be used is set aside in rejected.parquet.

python -m jobs.prepare --input photos/ --recipe folder --output s3://bucket/faces/hr
"""

import sys
from typing import Any

from facelab.cluster import ray_session
from facelab.data.prepare import PrepareConfig, prepare
from facelab.job import main


def work(config: PrepareConfig, run: Any) -> dict[str, Any]:
    with ray_session():
        return prepare(config)


def plan(config: PrepareConfig) -> str:
    return f"read every image below {config.input}, write face shards to {config.output}"


if __name__ == "__main__":
    sys.exit(main("prepare", PrepareConfig, work, plan))
