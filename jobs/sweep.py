"""Ray Tune over the loss weights or the ablation switches, as nested MLflow runs.

python -m jobs.sweep --space weights --hr faces/hr --lr faces/lr --output outputs/sweep
python -m jobs.sweep --space attention --seeds 3 --hr faces/hr --output outputs/table4
"""

import sys
from typing import Any

from facelab.cluster import ray_session
from facelab.experiments.sweep import SweepConfig, sweep, sweep_plan
from facelab.job import main


def work(config: SweepConfig, run: Any) -> dict[str, Any]:
    with ray_session(dashboard=config.workers > 0):
        return sweep(config, run)


if __name__ == "__main__":
    sys.exit(main("sweep", SweepConfig, work, sweep_plan))
