"""Ray gives a node 30 s to start, and no option for more; on a machine that runs other tests it may take longer."""

import time

from ray._private import services

PATIENCE_S = 120


def be_patient() -> None:
    """From now on, nodes that this process starts have two minutes."""
    once = services.get_node

    def get_node(*node):
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                return once(*node)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    services.get_node = get_node
