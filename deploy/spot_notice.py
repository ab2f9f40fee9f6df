"""On an AWS spot machine: passes the notice that it will be taken away, some two minutes before, on to Ray, which tells
the trainings on it (they save at once) and starts nothing more there. The launcher does not do that.

cluster.yaml starts it on spot nodes, in the environment that has Ray. Never run on AWS by us.
"""

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

_METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254")
_EVERY_S = 5
_MARGIN_S = 10
"""Before AWS's own deadline."""


def notice() -> datetime | None:
    """When the machine will be taken away; None while nobody says so."""
    ask = urllib.request.Request(
        f"{_METADATA}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    )
    with urllib.request.urlopen(ask, timeout=5) as answer:
        token = answer.read().decode()
    ask = urllib.request.Request(
        f"{_METADATA}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
    )
    try:
        with urllib.request.urlopen(ask, timeout=5) as answer:
            return datetime.fromisoformat(json.load(answer)["time"])
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return None


def wait_for_notice() -> datetime:
    while True:
        try:
            if (when := notice()) is not None:
                return when
        except OSError as error:  # may pass
            print(f"{_METADATA}: {error}", file=sys.stderr)
        time.sleep(_EVERY_S)


def main() -> None:
    when = wait_for_notice()
    import ray  # takes seconds and memory, until then for nothing

    ray.init(address="auto", logging_level="ERROR")
    node = ray.get_runtime_context().get_node_id()
    left = max(int((when - datetime.now(UTC)).total_seconds()) - _MARGIN_S, 1)
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--node-id", node]
    command += [
        "--reason",
        "DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message",
        f"spot machine until {when:%H:%M:%S} UTC",
    ]
    subprocess.run([*command, "--deadline-remaining-seconds", str(left)], check=True)


if __name__ == "__main__":
    main()
