"""The ways it is used beyond one folder: job submission with a token, S3, the cluster file. Real servers, on loopback."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import mlflow
import pytest
import yaml
from conftest import ROOT, forget_s3, s3_server, save_degrader
from facelab import storage
from facelab.cluster import ray_session
from nodes import Nodes, cluster_of

from jobs.submit import job_named

pytestmark = pytest.mark.cluster
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a-token-of-this-test-0123456789abcdef"}
WRONG_TOKEN = TOKEN | {"RAY_AUTH_TOKEN": "not-the-token"}


@pytest.fixture
def s3(tmp_path, monkeypatch):
    """A server in the environment, and nothing left in this process of another one."""
    with s3_server(tmp_path / "store") as environment:
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        forget_s3()
        yield
    forget_s3()


def test_s3(s3, tmp_path, hr_folder, lr_folder, monkeypatch, capsys):
    def job(name: str, *arguments: str, expect: int = 0) -> str:
        code = job_named(name).main([*arguments])
        said = "".join(capsys.readouterr())
        assert code == expect, said
        return said

    degrader = save_degrader(tmp_path / "degrader")
    with ray_session(dashboard=True):
        job("prepare", "--input", str(hr_folder), "--output", "s3://bucket/hr")
        job("prepare", "--input", str(lr_folder), "--output", "s3://bucket/lr")
        job(
            "synthesize", "--preset", "debug", "--hr", "s3://bucket/hr", "--lr", "s3://bucket/lr",
            "--degrader", degrader, "--output", "s3://bucket/pairs",
        )  # fmt: skip
        training = ["--preset", "debug", "--model", "attentive", "--pairs", "s3://bucket/pairs"]
        job("train_sr", *training, "--output", "s3://bucket/sr")
        job("train_sr", *training, "--output", "s3://bucket/sr", "--max-steps", "6", "--resume")
        test = ["--test", "s3://bucket/pairs"]
        job("evaluate", "--model", "s3://bucket/sr", *test, "--output", "s3://bucket/e")
        job("report", "--runs", "s3://bucket/e", "--output", "s3://bucket/report")
        said = job("evaluate", "--model", "s3://bucket/nothing", *test, "--output", "s3://bucket/f", expect=2)
        assert "no trained model there" in said
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something-else")
    forget_s3()
    said = job("evaluate", "--model", "bicubic", *test, "--output", "s3://bucket/g", expect=1)
    assert "credentials" in said
    assert "something-else" not in said
    store = tmp_path / "store" / "bucket"
    assert json.loads((store / "pairs" / "manifest.json").read_text())["rows"] == 60
    assert json.loads((store / "sr" / "summary.json").read_text())["steps"] == 6
    assert (store / "sr" / "model" / "model.safetensors").exists()
    assert (store / "e" / "per_image.parquet").exists()
    assert (store / "report" / "table.md").exists()


def test_s3_keys_are_literal(s3, tmp_path):
    """`run[1]` is not `run1`, nor `run*` all of them: in what is deleted, fetched, listed and pruned by Ray."""
    names = ("run1", "run2", "run[1]", "run*", "run?")
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


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """Two nodes that ask for a token, and whose S3 is a server here.

    Two alone that work: on one machine they share the folder that a job is unpacked to, each anew.
    """
    with s3_server(tmp_path_factory.mktemp("store")) as s3, cluster_of("a", head_cpus=1, env=TOKEN | s3) as nodes:
        yield nodes


def run(*command: str, env: dict[str, str] = TOKEN) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, cwd=ROOT, env=os.environ | env, timeout=280
    )


def test_job_submission_on_two_nodes_with_a_token(guarded, tmp_path, hr_folder, lr_folder):
    """`ray job submit` with runtime_env.yaml runs train_sr on both nodes; without the token it is refused."""

    def submit(*entrypoint: str, env: dict[str, str] = TOKEN) -> subprocess.CompletedProcess[str]:
        plain = ["--working-dir", ".", "--runtime-env", "runtime_env.yaml", "--", sys.executable, "-m"]
        return run("ray.scripts.scripts", "job", "submit", "--address", guarded.dashboard, *plain, *entrypoint, env=env)

    assert submit("jobs.train_sr", "--help", env=WRONG_TOKEN).returncode != 0
    tracking = ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    done = submit(
        "jobs.train_sr", "--preset", "debug", "--model", "srcnn", "--hr", str(hr_folder), "--workers", "2",
        "--output", str(tmp_path / "sr"), *tracking,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "sr" / "summary.json").read_text())["steps"] == 4
    assert TOKEN["RAY_AUTH_TOKEN"] not in done.stdout + done.stderr


def test_jobs_submit_looks_submits_follows_and_stops(guarded, tmp_path, hr_folder, lr_folder):
    """What is wrong is a line each, and leaves no job; what is right is followed to its end, or stopped on the way."""
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    train = ("train_sr", "--preset", "debug", "--model", "srcnn", "--hr", str(hr_folder), "--workers", "2", "--output")

    def submit(*options: str, job: tuple[str, ...] = train, env=TOKEN) -> subprocess.CompletedProcess[str]:
        """jobs.submit with options of its own before --, and further ones of the job behind it."""
        cut = options.index("--")
        of_job = [*job, *options[cut + 1 :], "--tracking-uri", tracking]
        return run("jobs.submit", "--address", guarded.dashboard, *options[:cut], "--", *of_job, env=env)

    def wrong(done: subprocess.CompletedProcess[str]) -> str:
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stdout + done.stderr
        return done.stderr

    out = str(tmp_path / "out")
    line = wrong(submit("--", out, env=WRONG_TOKEN))
    assert line.startswith("✗")
    assert "refused the token (HTTP 403): set RAY_AUTH_TOKEN" in line
    line = wrong(submit("--", out, "--workrs", "2"))
    assert "--workrs" in line
    line = wrong(submit("--", out, "--workers", "4"))
    assert "--workers 4 needs 4 × (1 CPU), the cluster has room for 2" in line
    line = wrong(submit("--check", "--", "s3://missing/sr"))
    assert line.startswith("✗ s3://missing/sr")
    assert "the bucket is not there: check the bucket's name" in line
    assert own_jobs(guarded) == {}
    assert not (tmp_path / "mlflow.db").exists()

    synthesize = ("synthesize", "--preset", "debug", "--hr", str(hr_folder), "--lr", str(lr_folder), "--actors", "2")
    options = ["--degrader", save_degrader(tmp_path / "degrader"), "--output", str(tmp_path / "pairs")]
    done = submit("--", *options, job=synthesize)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "pairs" / "manifest.json").read_text())["rows"] == 60
    summary = json.loads((tmp_path / "pairs" / "summary.json").read_text())
    said = done.stdout.splitlines()
    assert all(line.startswith("✓") for line in said[: said.index(f"submitted  {submission_of(said)}")])
    assert f"mlflow_run_id                    {summary['mlflow_run_id']}" in said
    tags = mlflow.MlflowClient(tracking).get_run(summary["mlflow_run_id"]).data.tags
    assert tags["ray_submission_id"] == submission_of(said)
    assert tags["ray_dashboard"] == f"{guarded.dashboard}/#/jobs/{submission_of(said)}"
    (job,) = own_jobs(guarded).values()
    assert tags["ray_submission_id"] in job["metadata"]["mlflow"]
    assert job["status"] == "SUCCEEDED"

    done = submit("--detach", "--", str(tmp_path / "long"), "--max-steps", "100000", "--checkpoint-every", "5")
    assert done.returncode == 0, done.stdout + done.stderr
    detached = submission_of(done.stdout.splitlines())
    while not list((tmp_path / "long" / "checkpoints").glob("step-*/meta.json")):
        assert own_jobs(guarded)[detached]["status"] == "RUNNING"
        time.sleep(0.5)
    followed = subprocess.Popen(
        [sys.executable, "-m", "jobs.submit", "--address", guarded.dashboard, "--follow", detached],
        cwd=ROOT, env=os.environ | TOKEN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    stopped = run("jobs.submit", "--address", guarded.dashboard, "--stop", detached)
    assert (stopped.returncode, stopped.stdout) == (0, f"{detached}: stopped\n"), stopped.stderr
    said = followed.communicate(timeout=60)[0]
    assert followed.returncode != 0
    assert f"{detached} was stopped" in said, said
    run_id = json.loads((tmp_path / "long" / "run.json").read_text())["run_id"]
    while (status := mlflow.MlflowClient(tracking).get_run(run_id).info.status) == "RUNNING":
        time.sleep(0.5)  # Ray calls a job stopped once its shell has ended
    assert status == "KILLED"


def submission_of(said: list[str]) -> str:
    """The id that jobs.submit printed."""
    return next(line.removeprefix("submitted  ") for line in said if line.startswith("submitted  "))


def own_jobs(nodes: Nodes) -> dict[str, dict]:
    """Submission id -> what Ray tells of the jobs that jobs.submit submitted."""
    request = Request(f"{nodes.dashboard}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN['RAY_AUTH_TOKEN']}"})
    with urlopen(request) as reply:
        jobs = {job["submission_id"]: job for job in json.loads(reply.read())}
    return {name: job for name, job in jobs.items() if "mlflow" in (job["metadata"] or {})}


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


def test_where_there_are_no_spot_machines_the_autoscaler_launches_on_demand(tmp_path, monkeypatch):
    """With the launcher that the head's first command puts into the file that the autoscaler reads: once on spot, then as
    the same type on demand; what is refused for another reason, or on demand, stays refused."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.providers import _get_node_provider_cls
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.node_launch_exception import NodeLaunchException

    config = prepare_config(cluster_file())
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(config))
    (command,) = [line for line in config["head_start_ray_commands"] if "sed" in line]
    subprocess.run(command, shell=True, check=True, env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    read = yaml.safe_load((tmp_path / "ray_bootstrap_config.yaml").read_text())
    place, source = next(item for item in config["file_mounts"].items() if item[1].endswith("spot_first.py"))
    assert f"PYTHONPATH=~/{Path(place).parent.name} ray start" in config["head_start_ray_commands"][-1]
    monkeypatch.syspath_prepend(str((ROOT / source).parent))
    launcher = _get_node_provider_cls(read["provider"])
    assert read == config | {"provider": config["provider"] | {"type": "external", "module": "spot_first.SpotFirst"}}
    asked: list[bool] = []

    def ec2(_, node_config: dict, tags: dict, count: int) -> dict:
        asked.append("InstanceMarketOptions" in node_config)
        if asked[-1] or reason == "UnauthorizedOperation":
            raise NodeLaunchException(reason, "refused", None)
        return {"i-1": tags}

    monkeypatch.setattr(AWSNodeProvider, "create_node", ec2)
    nodes = {name: kind["node_config"] for name, kind in read["available_node_types"].items()}
    provider, tags = launcher.__new__(launcher), {"a": "tag"}
    reason = "InsufficientInstanceCapacity"
    assert provider.create_node_with_resources_and_labels(nodes["gpu_worker"], tags, 1, {}, {}) == {"i-1": tags}
    assert asked == [True, False]
    reason = "UnauthorizedOperation"
    for kind, times in (("gpu_worker", 1), ("head", 1)):
        asked.clear()
        with pytest.raises(NodeLaunchException, match="refused"):
            provider.create_node(nodes[kind], tags, 1)
        assert len(asked) == times


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
