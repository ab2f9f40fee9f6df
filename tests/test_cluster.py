"""The ways it is used beyond one folder: job submission with a token, S3, the cluster file. Real servers, on loopback."""

import json
import os
import subprocess
import sys
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
    with cluster_of("a", "b") as nodes:

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


def test_cluster_file_passes_rays_schema_check():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    workers = [kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]]
    assert any("GPU" in kind["resources"] for kind in workers)
    for kind in workers:  # without one, S3 answers 403 on workers only
        assert kind["node_config"]["IamInstanceProfile"]["Name"]
