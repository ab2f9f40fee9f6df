"""What deploy/ is for. Real servers, on loopback; nothing here is a container."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import pytest
import ray
import yaml
from conftest import ROOT, s3_server
from facelab.config import parse
from facelab.training.sr import TrainSRConfig
from fake_cloud import autoscaled
from mlflow.exceptions import MlflowException
from servers import TrackingServer, composed

pytestmark = pytest.mark.cluster


def test_a_teams_mlflow_needs_a_password_and_keeps_runs_and_artifacts_apart(tmp_path, monkeypatch):
    """As deploy/compose.yaml starts it: runs and users in PostgreSQL, artifacts on S3, 403 to who calls it otherwise."""
    with s3_server(tmp_path / "store") as store, TrackingServer(tmp_path, store) as server:
        for name, value in server.client.items():
            monkeypatch.setenv(name, value)
        client = mlflow.MlflowClient(server.uri)
        run = client.create_run(client.create_experiment("e")).info.run_id
        client.log_metric(run, "val/psnr", 30.5)
        client.log_text(run, "a text", "notes.txt")
        assert server.rows("SELECT key, value FROM metrics") == [("val/psnr", 30.5)]
        assert server.rows("SELECT username FROM users") == [("admin",)]
        (kept,) = (tmp_path / "store" / "bucket" / "mlflow").rglob("notes.txt")
        assert kept.read_text() == "a text"
        assert Path(client.download_artifacts(run, "notes.txt", str(tmp_path))).read_text() == "a text"
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-password")
        with pytest.raises(MlflowException, match="401"):
            client.search_experiments()
        named = urllib.request.Request(f"{server.uri}/", headers={"Host": "mlflow.example.com"})
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(named)


def node_types() -> tuple[dict[str, dict], str]:
    """Those of cluster.yaml, with fewer CPUs, as this machine has few; and which of them is the head's."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    types = config["available_node_types"]
    for kind in types.values():
        kind["node_config"], kind["max_workers"] = {}, kind.get("max_workers", 0)
        kind["resources"]["CPU"] = min(kind["resources"]["CPU"], 1)
    return types, config["head_node_type"]


def test_a_cluster_grows_for_a_training_and_shrinks_after(tmp_path, hr_folder):
    """The node types of cluster.yaml on Ray's own autoscaler: two CPU nodes for two workers, none of them once it is idle."""
    types, head = node_types()
    with autoscaled(tmp_path, types, head) as cluster:
        assert cluster.types() == []
        command = [sys.executable, "-m", "jobs.train_sr", "--preset", "debug", "--model", "srcnn", "--workers", "2"]
        command += ["--hr", str(hr_folder), "--output", str(tmp_path / "out"), "--compute.no-gpu"]
        with open(tmp_path / "job.log", "w") as log:
            job = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | {"RAY_ADDRESS": cluster.address}, stdout=log, stderr=log
            )
        seen, deadline = [], time.monotonic() + 400
        try:
            while job.poll() is None:
                assert time.monotonic() < deadline, (tmp_path / "job.log").read_text()
                seen.append(cluster.types())
                time.sleep(1)
        finally:
            job.kill()
        assert job.returncode == 0, (tmp_path / "job.log").read_text()
        assert max(seen) == ["cpu_worker"] * 2
        assert json.loads((tmp_path / "out" / "summary.json").read_text())["steps"] == 4
        while cluster.types():
            time.sleep(1)


def test_a_rayjob_is_submitted_once_and_guarded():
    """No second submission beside the first, a token, drivers on a head that runs no tasks, secrets by reference; its job
    is one that can go on, and its options are jobs.train_sr's."""
    job = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())
    spec = job["spec"]
    assert (job["kind"], spec["backoffLimit"], spec["submitterConfig"]) == ("RayJob", 0, {"backoffLimit": 0})
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0
    python, flag, module, *options = spec["entrypoint"].split()
    assert (python, flag, module) == ("python", "-m", "jobs.train_sr")
    assert parse(TrainSRConfig, options, module).resume
    cluster = spec["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == ray.__version__
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert json.loads(json.loads(head["rayStartParams"]["resources"])) == {"head": 1}
    assert json.loads(spec["entrypointResources"]).keys() == {"head"}
    for group in (head, *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["envFrom"] == [{"secretRef": {"name": "facelab"}}]
        assert "env" not in container
    assert [group["minReplicas"] for group in cluster["workerGroupSpecs"]] == [0, 0]


def test_make_mlflow_starts_what_the_compose_file_does():
    """The same command and environment, so that what is tested of the one holds for the other."""
    example = (ROOT / "deploy" / "tracking.env.example").read_text()
    command, environment = composed("mlflow", dict.fromkeys(re.findall(r"^(?:# )?([A-Z_]+)=", example, re.M), "x"))
    recipe = (ROOT / "Makefile").read_text().partition("\nmlflow: env\n")[2].partition("\n\n")[0].replace("\\\n", "")
    of_containers = {"--host=0.0.0.0"}
    assert all(part.removesuffix("=x") in recipe for part in {*command} - of_containers)
    for name, value in environment.items():
        assert f"{name}=" in example or f"{name}=" in recipe, name
        if f"{name}=" not in example and name not in ("PGPASSWORD", "MLFLOW_AUTH_CONFIG_PATH"):
            assert f"{name}={value}" in recipe
