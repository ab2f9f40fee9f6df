"""A cloud whose machines are processes here, for Ray's autoscaler."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from conftest import ROOT, free_port
from nodes import processes_named
from patience import PATIENCE_S, be_patient
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FakeMultiNodeProvider
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE
from ray.exceptions import RpcError


class Cloud(FakeMultiNodeProvider):
    """What the autoscaler's own process starts."""

    def __init__(self, provider_config, cluster_name):
        super().__init__(provider_config, cluster_name)
        be_patient()
        self._nodes[self._head_node_id]["tags"][TAG_RAY_USER_NODE_TYPE] = provider_config["head_type"]


class Autoscaled:
    """A cluster of the node types that a job needs at the moment."""

    def __init__(self, address: str, head: subprocess.Popen, log: Path):
        self.address, self.head, self.log = address, head, log

    def types(self) -> list[str]:
        """Of the nodes that are there beside the head. Where its machine is busy, the head may be slow to say."""
        from ray._raylet import GcsClient

        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                nodes = GcsClient(address=self.address).get_all_node_info(timeout=30).values()
                break
            except RpcError:
                assert self.head.poll() is None, self.log.read_text()
                if time.monotonic() > deadline:
                    raise
        return sorted(node.node_type_name for node in nodes if node.state == 0 and not node.is_head_node)


@contextmanager
def autoscaled(folder: Path, types: dict[str, dict], head: str) -> Iterator[Autoscaled]:
    """Ray's AutoscalingCluster is not taken: it ends every Ray of the machine, and its example.yaml is in no wheel."""
    port, dashboard = free_port(), free_port()
    address = f"127.0.0.1:{port}"
    provider = {"type": "external", "module": "fake_cloud.Cloud", "gcs_address": address, "head_type": head}
    provider |= {"use_node_id_as_ip": True, "disable_node_updaters": True, "disable_launch_config_check": True}
    provider |= {"launch_multiple": True, "head_node_id": FAKE_HEAD_NODE_ID}
    config = {
        "cluster_name": "fake", "max_workers": 8, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1,
        "provider": provider, "available_node_types": types, "head_node_type": head, "auth": {}, "docker": {},
        "file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False, "rsync_exclude": [],
        "rsync_filter": [], "initialization_commands": [], "setup_commands": [], "head_setup_commands": [],
        "worker_setup_commands": [], "head_start_ray_commands": [], "worker_start_ray_commands": [],
    }  # fmt: skip
    (folder / "autoscaling.yaml").write_text(json.dumps(config))
    resources = dict(types[head]["resources"])
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}", "--dashboard-agent-listen-port=0"]
    command += [f"--num-cpus={resources.pop('CPU')}", f"--resources={json.dumps(resources)}", "--num-gpus=0"]
    command += [f"--autoscaling-config={folder / 'autoscaling.yaml'}", "--disable-usage-stats"]
    own = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        # There are others on this machine, which know nothing of the training: Ray Train's watcher would ask the newest.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
        "RAY_health_check_timeout_ms": "60000",  # on a busy machine 10 s are soon over, and with its head a cluster ends
    }
    own |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "platform", ROOT)))}
    # `ray start` notes there which cluster is the newest on this machine, and the submitted jobs of others believe it.
    with (
        TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as own_folder,
        open(folder / "ray.log", "w") as log,
    ):
        command.append(f"--temp-dir={own_folder}")
        process = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "Ray runtime started" not in (folder / "ray.log").read_text():
                assert process.poll() is None, (folder / "ray.log").read_text()
                assert time.monotonic() < deadline, (folder / "ray.log").read_text()
                time.sleep(0.2)
            yield Autoscaled(address, process, folder / "ray.log")
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
            for pid in processes_named(address):  # of nodes, whose parent was the autoscaler
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
