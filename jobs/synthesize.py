"""Sharp faces + any degrader -> pair shards with provenance.

python -m jobs.synthesize --hr faces/hr --lr faces/lr --degrader outputs/stylevae --output outputs/pairs --actors 3
python -m jobs.synthesize --hr faces/hr --degrader classical --output outputs/classical-pairs
"""

import sys
from typing import Any

from facelab.cluster import ray_session
from facelab.job import main
from facelab.synthesis.job import SynthesizeConfig, synthesize


def work(config: SynthesizeConfig, run: Any) -> dict[str, Any]:
    with ray_session():
        return synthesize(config)


def plan(config: SynthesizeConfig) -> str:
    return (
        f"degrade the faces of {config.hr} with {config.degrader}, {config.variants} LR each, by "
        f"{config.actors} actors; "
        f"write pair shards to {config.output}"
    )


if __name__ == "__main__":
    sys.exit(main("synthesize", SynthesizeConfig, work, plan))
