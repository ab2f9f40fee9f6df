"""The whole pipeline, from faces to a report.

python -m jobs.demo --output outputs/demo
python -m jobs.demo --hr faces/hr --lr faces/lr --test faces/test --real faces/real --output outputs/own
"""

import sys
from typing import Any

from facelab.cluster import ray_session
from facelab.experiments.demo import DemoConfig, demo_plan, run_demo
from facelab.job import main


def work(config: DemoConfig, run: Any) -> dict[str, Any]:
    with ray_session():
        return run_demo(config, run)


if __name__ == "__main__":
    sys.exit(main("demo", DemoConfig, work, demo_plan))
