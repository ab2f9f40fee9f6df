"""Draw sample faces and real-world-like LR of other identities: training and test sets without a download.

python -m jobs.sample_faces --preset demo --output outputs/faces
"""

import sys
from typing import Any

from facelab import storage
from facelab.cluster import ray_session
from facelab.data.sample_set import SampleFacesConfig, contact_sheet, make_sample_sets
from facelab.images import encode_png
from facelab.job import main


def work(config: SampleFacesConfig, run: Any) -> dict[str, Any]:
    with ray_session():
        summary = make_sample_sets(config)
    storage.write_bytes(storage.join(config.output, "contact_sheet.png"), encode_png(contact_sheet(config)))
    return summary


def plan(config: SampleFacesConfig) -> str:
    total = config.n_hr + config.n_lr + config.n_test + config.n_real
    return f"draw {total} faces of {config.hr_size} px into {config.output}/hr, /lr, /test and /real"


if __name__ == "__main__":
    sys.exit(main("sample_faces", SampleFacesConfig, work, plan))
