"""Draw sample faces and real-world-like LR of other identities: training and test sets without a download.

python -m jobs.sample_faces --preset demo --output outputs/faces
"""

import sys
from typing import Any

from facelab.cluster import ray_session
from facelab.job import main
from facelab.samples.sets import SampleFacesConfig, make_sample_sets


def work(config: SampleFacesConfig, run: Any) -> dict[str, Any]:
    with ray_session():
        return make_sample_sets(config)


def plan(config: SampleFacesConfig) -> str:
    total = config.n_hr + config.n_lr + config.n_test + config.n_real
    return f"draw {total} faces of {config.hr_size} px into {config.output}/hr, /lr, /test and /real"


if __name__ == "__main__":
    sys.exit(main("sample_faces", SampleFacesConfig, work, plan))
