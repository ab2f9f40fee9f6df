"""On the head of an AWS cluster, for Ray's autoscaler: where EC2 has no spot machine, one on demand.

Ray 2.60 asks for the same spot machines again and again: its autoscaler takes another type of node after a launch that
timed out, and EC2 refuses at once. cluster.yaml puts this in. Never run on AWS by us.
"""

from typing import Any

from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException

_NO_SPOT = ("InsufficientInstanceCapacity", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow")
"""EC2's answers where another market may help."""


class SpotFirst(AWSNodeProvider):
    """Ray's own launcher for AWS, but for that."""

    def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> dict[str, Any]:
        try:
            return super().create_node(node_config, tags, count)
        except NodeLaunchException as refused:
            on_demand = {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
            if refused.category not in _NO_SPOT or on_demand == node_config:
                raise
            print(f"no spot machine of type {node_config['InstanceType']} ({refused.category}): on demand", flush=True)
            return super().create_node(on_demand, tags, count)
