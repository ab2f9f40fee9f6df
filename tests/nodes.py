"""A Ray cluster of several nodes on this machine, in a process of its own, whose nodes come and go on command."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from conftest import ROOT, free_port

_SCRIPT = """
import subprocess, sys
from patience import be_patient
from ray.cluster_utils import Cluster

be_patient()
# With the dashboard, as a real one: Ray Train asks its State API.
# Ports of its own, as other clusters run here: an agent that finds its usual one taken takes no jobs.
head = {"num_cpus": int(sys.argv[3]), "resources": {"head": 1}, "include_dashboard": True, "dashboard_host": "127.0.0.1",
        "dashboard_port": int(sys.argv[2]), "dashboard_agent_listen_port": 0}
cluster, nodes = Cluster(initialize_head=True, head_node_args=head), {}
print("answer", cluster.address, flush=True)
for line in sys.stdin:
    command, name = line.split()
    if command == "add":
        nodes[name] = cluster.add_node(num_cpus=1)
    elif command == "kill":
        cluster.remove_node(nodes.pop(name), allow_graceful=False)
    elif command == "drain":
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "of a test"]
        subprocess.run(
            [sys.argv[1], "drain-node", "--address", cluster.address, "--node-id", nodes[name].node_id, *reason,
             "--deadline-remaining-seconds", "20"], check=True, stdout=subprocess.DEVNULL)
    print("answer", command, flush=True)
cluster.shutdown()
"""


class Nodes:
    """The nodes beside the head, which runs no tasks; each has one CPU."""

    def __init__(self, process: subprocess.Popen, dashboard: str):
        self._process, self.pid, self.dashboard = process, process.pid, dashboard
        self.address = self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("answer "):
                return line.split()[1]
        raise AssertionError("the cluster has ended")

    def _do(self, command: str, name: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command} {name}\n")
        self._process.stdin.flush()
        assert self._answer() == command

    def add(self, name: str) -> None:
        self._do("add", name)

    def kill(self, name: str) -> None:
        """As when a machine loses its power."""
        self._do("kill", name)

    def kill_all(self) -> None:
        """As when a whole site loses its power: head and nodes, each process."""
        for pid in processes_named("", below=self.pid):
            with suppress(ProcessLookupError):  # died with another
                os.kill(pid, signal.SIGKILL)

    def drain(self, name: str) -> None:
        """As at the notice that a spot machine is taken away, 20 s before."""
        self._do("drain", name)


@contextmanager
def cluster_of(*names: str, head_cpus: int = 0, env: Mapping[str, str] = MappingProxyType({})) -> Iterator[Nodes]:
    """A head and nodes of these names; `env` is in the environment of all of them."""
    ray, port = str(Path(sys.executable).with_name("ray")), free_port()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT / "platform", ROOT)))}
    environment["PATH"] = f"{Path(ray).parent}{os.pathsep}{environment['PATH']}"  # a job's `python`, as on a real node
    environment |= env | {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"}  # there are others on this machine
    process = subprocess.Popen(
        [sys.executable, "-c", _SCRIPT, ray, str(port), str(head_cpus)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip
    try:
        nodes = Nodes(process, f"http://127.0.0.1:{port}")
        for name in names:
            nodes.add(name)
        yield nodes
    finally:
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # of kill_all
            process.stdin.close()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def processes_named(name: str, below: int | None = None) -> list[int]:
    """Process ids by a part of the command line; `below`: only of those that this process started, and theirs."""
    parents, named = {}, []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int(place.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if name.encode() in place.joinpath("cmdline").read_bytes():
                named.append(int(place.name))
        except OSError:  # ended just now
            continue

    def belongs(pid: int) -> bool:
        return below in (None, pid) or (pid in parents and belongs(parents[pid]))

    return [pid for pid in named if belongs(pid)]
