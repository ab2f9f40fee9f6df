"""The ways it is used beyond one folder: job submission with a token, S3, the cluster file. Real servers, on loopback."""

import json
import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, s3_server, save_degrader
from facelab import storage
from nodes import cluster_of

pytestmark = pytest.mark.cluster


def job(name: str, *arguments: str, env: dict[str, str], expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | env,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_s3(tmp_path, hr_folder, lr_folder):
    degrader = save_degrader(tmp_path / "degrader")
    with s3_server(tmp_path / "store") as env:
        job("prepare", "--input", str(hr_folder), "--output", "s3://bucket/hr", env=env)
        job("prepare", "--input", str(lr_folder), "--output", "s3://bucket/lr", env=env)
        job(
            "synthesize", "--preset", "debug", "--hr", "s3://bucket/hr", "--lr", "s3://bucket/lr", "--degrader", degrader,
            "--output", "s3://bucket/pairs", env=env,
        )  # fmt: skip
        training = ["--preset", "debug", "--model", "attentive", "--pairs", "s3://bucket/pairs"]
        job("train_sr", *training, "--output", "s3://bucket/sr", "--workers", "2", env=env)
        job("train_sr", *training, "--output", "s3://bucket/sr", "--max-steps", "6", "--resume", env=env)
        job(
            "evaluate", "--model", "s3://bucket/sr", "--test", "s3://bucket/pairs", "--output", "s3://bucket/e", env=env
        )
        job("report", "--runs", "s3://bucket/e", "--output", "s3://bucket/report", env=env)
        said = job(
            "evaluate",
            "--model",
            "s3://bucket/nothing",
            "--test",
            "s3://bucket/pairs",
            "--output",
            "s3://bucket/f",
            env=env,
            expect=2,
        )
        assert "no trained model there" in said
        wrong = env | {"AWS_SECRET_ACCESS_KEY": "something-else"}
        said = job(
            "evaluate",
            "--model",
            "bicubic",
            "--test",
            "s3://bucket/pairs",
            "--output",
            "s3://bucket/g",
            env=wrong,
            expect=1,
        )
        assert "credentials" in said
        assert "something-else" not in said
    store = tmp_path / "store" / "bucket"
    assert json.loads((store / "pairs" / "manifest.json").read_text())["rows"] == 60
    assert json.loads((store / "sr" / "summary.json").read_text())["steps"] == 6
    assert (store / "sr" / "model" / "model.safetensors").exists()
    assert (store / "e" / "per_image.parquet").exists()
    assert (store / "report" / "table.md").exists()


def test_s3_keys_are_literal(tmp_path, monkeypatch):
    """`run[1]` is not `run1`, nor `run*` all of them: in what is deleted, fetched, listed and pruned by Ray."""
    names = ("run1", "run2", "run[1]", "run*", "run?")
    with s3_server(tmp_path / "store") as env:
        for key, value in env.items():
            monkeypatch.setenv(key, value)
        for name in names:
            storage.write_text(f"s3://bucket/{name}/a.txt", name)
            storage.write_text(f"s3://bucket/{name}/deep/b.txt", name)
        for name in names:
            with storage.local_copy(f"s3://bucket/{name}") as folder:
                found = {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*.txt")}
                assert found == {"a.txt": name, "deep/b.txt": name}
            with storage.local_copy(f"s3://bucket/{name}/a.txt") as file:
                assert file.read_text() == name
            assert [n for n, _ in storage.list_files(f"s3://bucket/{name}")] == ["a.txt", "deep/b.txt"]
        storage.delete("s3://bucket/run[1]")
        storage.delete("s3://bucket/run?/a.txt")
        filesystem, path = storage.resolve("s3://bucket/run*")
        filesystem.delete_dir(path)
    left = sorted(str(f.relative_to(tmp_path / "store" / "bucket")) for f in (tmp_path / "store").rglob("*.txt"))
    assert left == ["run1/a.txt", "run1/deep/b.txt", "run2/a.txt", "run2/deep/b.txt", "run?/deep/b.txt"]


def test_job_submission_on_two_nodes_with_a_token(tmp_path, hr_folder, lr_folder, monkeypatch):
    """`ray job submit` with runtime_env.yaml runs train_sr on both nodes and synthesize; without the token it is refused."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-0123456789abcdef"}
    for name, value in token.items():
        monkeypatch.setenv(name, value)
    # Two nodes alone that work: on one machine they share the folder that a job is unpacked to, each anew.
    with cluster_of("a", head_cpus=1) as nodes:

        def submit(*entrypoint: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(Path(sys.executable).with_name("ray")), "job", "submit", "--address", nodes.dashboard,
                 "--working-dir", ".", "--runtime-env", "runtime_env.yaml", "--", sys.executable, "-m", *entrypoint],
                capture_output=True, text=True, cwd=ROOT, env=os.environ | env, timeout=280,
            )  # fmt: skip

        refused = submit("jobs.train_sr", "--help", env={"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "not-the-token"})
        assert refused.returncode != 0
        tracking = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
        done = submit(
            "jobs.train_sr", "--preset", "debug", "--model", "srcnn", "--hr", str(hr_folder), "--workers", "2",
            "--output", str(tmp_path / "sr"), *tracking, env=token,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((tmp_path / "sr" / "summary.json").read_text())["steps"] == 4
        done = submit(
            "jobs.synthesize", "--preset", "debug", "--hr", str(hr_folder), "--lr", str(lr_folder), "--actors", "2",
            "--degrader", save_degrader(tmp_path / "degrader"), "--output", str(tmp_path / "pairs"), *tracking, env=token,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((tmp_path / "pairs" / "manifest.json").read_text())["rows"] == 60
        assert token["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def cluster_file() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_file_passes_rays_schema_check():
    """No node without a role, without which S3 answers 403 there; the head runs no tasks; what is mounted is there."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = cluster_file()
    validate_config(prepare_config(cluster_file()))
    for kind in config["available_node_types"].values():
        assert kind["node_config"]["IamInstanceProfile"]["Name"]
        assert kind["node_config"]["SecurityGroupIds"]
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0, "head": 1}
    assert all((ROOT / place).exists() for place in config["file_mounts"].values() if not place.startswith("~"))


def test_gpu_nodes_are_spot_and_on_demand_where_there_are_none():
    """By the autoscaler's own choice: first spot; after a launch of it failed, on demand; later spot again."""
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler

    types = cluster_file()["available_node_types"]
    spot, on_demand = types["gpu_worker"], types["gpu_worker_on_demand"]
    assert spot["resources"] == on_demand["resources"]  # or their scores would decide, before anything else
    assert "InstanceMarketOptions" in spot["node_config"]
    assert "InstanceMarketOptions" not in on_demand["node_config"]
    for failed, expected in ((None, "gpu_worker"), (0.0, "gpu_worker_on_demand"), (1.0, "gpu_worker")):
        assert launched(ResourceDemandScheduler, types, {"GPU": 1}, failed) == {expected: 1}


def launched(scheduler, types: dict, wanted: dict[str, float], spot_availability: float | None) -> dict[str, int]:
    """Node type -> how many the autoscaler would launch for one request."""
    from ray.autoscaler.v2.instance_manager.config import NodeTypeConfig
    from ray.autoscaler.v2.scheduler import SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ResourceRequestByCount

    configs = {
        name: NodeTypeConfig(
            name=name, min_worker_nodes=0, max_worker_nodes=kind.get("max_workers", 1), resources=kind["resources"],
            priority=kind.get("priority", 0),
        )
        for name, kind in types.items() if name != "head"
    }  # fmt: skip
    known = {} if spot_availability is None else {"gpu_worker": spot_availability}
    demand = ResourceRequestByCount(request=ResourceRequestUtil.make(wanted), count=1)
    request = SchedulingRequest(
        node_type_configs=configs, resource_requests=[demand], recoverable_resource_availabilities=known,
        disable_launch_config_check=True, max_num_nodes=10,
    )  # fmt: skip
    reply = scheduler(None).schedule(request)
    return {launch.instance_type: launch.count for launch in reply.to_launch}


def test_the_notice_of_a_spot_machine_reaches_ray(tmp_path, monkeypatch):
    """From a metadata service as AWS describes it: nothing for a while, then a time; the node is drained until then."""
    from ray.core.generated.common_pb2 import NodeDeathInfo

    asked: list[str] = []
    end = datetime.now(UTC) + timedelta(minutes=2)

    class Metadata(BaseHTTPRequestHandler):
        def do_PUT(self):
            self._answer(200, b"a-token")

        def do_GET(self):
            asked.append(self.headers["X-aws-ec2-metadata-token"])
            body = json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()
            self._answer(404, b"") if len(asked) < 2 else self._answer(200, body)

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    service = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    with cluster_of("a") as nodes:
        metadata = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://127.0.0.1:{service.server_port}"}
        environment = os.environ | metadata | {"RAY_ADDRESS": nodes.address}
        subprocess.run([sys.executable, "deploy/spot_notice.py"], cwd=ROOT, env=environment, check=True)
        look = "import json, ray; ray.init(logging_level='ERROR'); print(json.dumps(ray.nodes()))"
        said = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    service.shutdown()
    assert asked == ["a-token"] * 2
    (gone,) = [node for node in json.loads(said.stdout.splitlines()[-1]) if not node["Alive"]]  # idle, so at once
    assert gone["DeathReason"] == NodeDeathInfo.Reason.Value("AUTOSCALER_DRAIN_PREEMPTED")
    assert gone["DeathReasonMessage"] == f"spot machine until {end:%H:%M:%S} UTC"
