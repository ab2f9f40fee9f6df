"""What MLflow hears of a training: in order, once, through restarts and outages. Real MLflow, on SQLite and as a server."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, dies_after, free_port
from facelab.config import build
from facelab.errors import UsageError
from facelab.tracking.delivery import Delivery
from facelab.tracking.runs import JobRun
from facelab.tracking.spool import Spool, segments
from facelab.training.job import TRAIN_SR
from facelab.training.sr import TrainSRConfig
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from servers import small_server


def config_of(hr, out, **values) -> TrainSRConfig:
    return build(TrainSRConfig, **{"preset": "debug", "hr": str(hr), "output": str(out), "model": "srcnn"} | values)


@pytest.fixture
def run():
    """A client and the id of a new run."""
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    return client, client.create_run(client.create_experiment("e")).info.run_id


def told(client, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]


def spool_of(output: Path, total: int = 100) -> Spool:
    spool = Spool(str(output))
    spool.begin(0, total)
    return spool


def delivery_of(run_id: str, output: Path, committed: int) -> Delivery:
    return Delivery(os.environ["MLFLOW_TRACKING_URI"], run_id, str(output), lambda: committed)


def test_what_is_spooled_is_sent_once_and_only_what_has_a_checkpoint(tmp_path, run):
    """Also by a sender that died before it wrote down what it had sent, or in the middle of a segment."""
    client, run_id = run
    spool = spool_of(tmp_path)
    for last in (3, 6, 9):
        for step in range(last - 2, last + 1):
            spool.metrics(step, {"train/loss": step / 2, "train/broken": float("nan")})
        spool.metrics(last, {"val/psnr": float(last)})
        spool.image(f"samples/epoch-{last}.png", np.zeros((4, 4, 3), np.uint8))
        spool.flush()
    assert [segment.last for segment in segments(str(tmp_path))] == [3, 6, 9]
    delivery_of(run_id, tmp_path, committed=6).send()
    assert told(client, run_id, "train/loss") == [(step, step / 2) for step in range(1, 7)]
    assert told(client, run_id, "train/broken") == []
    (tmp_path / "history" / "sent.json").unlink()
    delivery_of(run_id, tmp_path, committed=9).send()
    delivery_of(run_id, tmp_path, committed=9).send()
    assert told(client, run_id, "train/loss") == [(step, step / 2) for step in range(1, 10)]
    assert told(client, run_id, "val/psnr") == [(3, 3), (6, 6), (9, 9)]
    assert sorted(artifact.path for artifact in client.list_artifacts(run_id, "samples")) == [
        f"samples/epoch-{last}.png" for last in (3, 6, 9)
    ]


def test_a_long_curve_is_thinned_in_mlflow_and_whole_in_the_spool(tmp_path, run):
    client, run_id = run
    spool = spool_of(tmp_path, total=10_000)  # means over 5 steps
    for step in range(1, 13):
        spool.metrics(step, {"train/loss": float(step)})
    spool.metrics(12, {"val/psnr": 1.0})
    spool.flush()
    delivery_of(run_id, tmp_path, committed=12).send()
    assert told(client, run_id, "train/loss") == [(5, 3.0), (10, 8.0), (12, 11.5)]
    assert told(client, run_id, "val/psnr") == [(12, 1.0)]
    (segment,) = segments(str(tmp_path))
    assert len(pq.read_table(segment.uri)) == 13


def test_steps_that_are_made_again_are_told_once(tmp_path, run):
    """A checkpoint that was damaged: the training goes on from the one before, and tells of its steps again."""
    client, run_id = run
    spool = spool_of(tmp_path)
    for first, last in ((1, 2), (3, 4)):
        for step in range(first, last + 1):
            spool.metrics(step, {"train/loss": float(step)})
        spool.flush()
    delivery_of(run_id, tmp_path, committed=4).send()
    again = Spool(str(tmp_path))
    again.begin(2, 100)
    assert [segment.last for segment in segments(str(tmp_path))] == [2]
    time.sleep(0.01)  # another millisecond
    for step in range(3, 7):
        again.metrics(step, {"train/loss": float(step)})
    again.flush()
    delivery_of(run_id, tmp_path, committed=6).send()
    assert told(client, run_id, "train/loss") == [(step, float(step)) for step in range(1, 7)]


def test_a_resumed_training_is_one_run(tmp_path, hr_folder):
    """Interrupted, and on with another rate: every step once, FINISHED, one version of the model."""
    config = config_of(hr_folder, tmp_path, max_steps=8, checkpoint_every=3)
    with dies_after(3), pytest.raises(KeyboardInterrupt):
        TRAIN_SR.run(config)
    run_id = json.loads((tmp_path / "run.json").read_text())["run_id"]
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert client.get_run(run_id).info.status == "KILLED"
    assert told(client, run_id, "train/loss")[-1][0] == 3
    summary = TRAIN_SR.run(config.model_copy(update={"resume": True, "learning_rate": 3e-5}))
    assert summary["mlflow_run_id"] == run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.params["learning_rate"], run.data.tags["resumed.learning_rate"]) != ("3e-05", None)
    assert run.data.tags["resumed.learning_rate"] == "3e-05"
    assert [step for step, _ in told(client, run_id, "train/loss")] == list(range(1, 9))
    again = TRAIN_SR.run(config.model_copy(update={"resume": True, "learning_rate": 3e-5}))
    assert again["registered_model"] == summary["registered_model"] == "models:/facelab-srcnn/1"
    assert [step for step, _ in told(client, run_id, "train/loss")] == list(range(1, 9))
    assert [step for step, _ in told(client, run_id, "val/psnr_rgb")] == [8]
    client.delete_run(run_id)
    assert TRAIN_SR.run(config.model_copy(update={"resume": True}))["mlflow_run_id"] != run_id


def test_an_input_waits_for_no_tracker_and_is_told_at_the_end(tmp_path, hr_folder, run, monkeypatch, capsys):
    """Of a training that goes on while MLflow is away: it would begin ten minutes later."""
    client, run_id = run

    def away(*_):
        raise ConnectionError("nobody there")

    own = JobRun(os.environ["MLFLOW_TRACKING_URI"], run_id, "train_sr", config_of(hr_folder, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_inputs", away)
        patch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
        own.takes("hr", str(hr_folder), "0" * 64, 60)
    assert client.get_run(run_id).inputs.dataset_inputs == []
    own.end("FINISHED")
    assert len(client.get_run(run_id).inputs.dataset_inputs) == 1
    assert "was not told" not in capsys.readouterr().err


def test_what_mlflow_refuses_ends_no_training(tmp_path, hr_folder, monkeypatch, capsys):
    """Of numbers, pictures, the model, the end: the run's owner is told what is missing there, and has all of it."""

    def refuses(*_, **__):
        raise mlflow.MlflowException("no rights for that", PERMISSION_DENIED)

    options = ["--preset", "debug", "--hr", str(hr_folder), "--output", str(tmp_path), "--model", "srcnn"]
    with monkeypatch.context() as patch:
        patch.setattr("facelab.tracking.delivery.client_of", refuses)
        patch.setattr("facelab.tracking.runs.register_model", refuses)
        patch.setattr(mlflow.MlflowClient, "set_terminated", refuses)
        assert TRAIN_SR.main(options) == 0
    said = capsys.readouterr().err
    assert "was not told: numbers and pictures of the training (refused: no rights for that), the model" in said
    assert "that the run is FINISHED (refused" in said
    assert "registered_model" not in json.loads((tmp_path / "summary.json").read_text())
    assert TRAIN_SR.main([*options, "--resume"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["registered_model"] == "models:/facelab-srcnn/1"
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    assert len(told(client, summary["mlflow_run_id"], "train/loss")) == summary["steps"]


def started(uri: str, hr: Path, out: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.train_sr", "--preset", "debug", "--model", "srcnn", "--hr", str(hr)]
    command += ["--output", str(out), "--tracking-uri", uri, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.cluster
def test_an_outage_stops_no_training_and_loses_nothing(tmp_path, hr_folder):
    """The server is stopped while the training runs, and is back after its end: all is there, each step once. And one
    that stays away for longer than one waits: exit 0, said, and delivered by the same command with --resume."""
    port, out = free_port(), tmp_path / "out"
    patient = ["--max-steps", "300", "--checkpoint-every", "50", "--validation-images", "2"]
    with small_server(tmp_path, port) as uri:
        job = started(uri, hr_folder, out, *patient)
        short = started(uri, hr_folder, tmp_path / "short", *patient, "--tracking-patience", "0")
        for place in (out, tmp_path / "short"):
            while not list((place / "checkpoints").glob("step-*/meta.json")):
                assert job.poll() is None
                time.sleep(0.05)
    while not (out / "training.json").exists():
        assert job.poll() is None
        time.sleep(0.2)
    said = short.communicate()
    assert short.returncode == 0, said
    assert "was not told: numbers and pictures of the training, the model, in the registry as facelab-srcnn" in said[1]
    assert "registered_model" not in json.loads((tmp_path / "short" / "summary.json").read_text())
    with small_server(tmp_path, port) as uri:
        said = job.communicate()
        assert job.returncode == 0, said
        assert "is away" in said[1]
        again = started(uri, hr_folder, tmp_path / "short", *patient, "--resume")
        said = again.communicate()
        assert again.returncode == 0, said
        client = mlflow.MlflowClient(uri)
        for place in (out, tmp_path / "short"):
            summary = json.loads((place / "summary.json").read_text())
            assert summary["registered_model"].startswith("models:/facelab-srcnn/")
            run = client.get_run(summary["mlflow_run_id"])
            assert run.info.status == "FINISHED"
            assert run.data.metrics["best/psnr_rgb"] == summary["best_psnr_rgb"]
            assert [step for step, _ in told(client, run.info.run_id, "train/loss")] == list(range(1, 301))


@pytest.mark.cluster
def test_a_server_that_never_answers_is_refused_at_the_start(tmp_path, hr_folder, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen()
        config = config_of(hr_folder, tmp_path, tracking_uri=f"http://127.0.0.1:{hole.getsockname()[1]}")
        with pytest.raises(UsageError, match="MLflow cannot be reached"):
            TRAIN_SR.run(config)


@pytest.mark.cluster
def test_jobs_that_create_one_database_at_once_wait_for_each_other(tmp_path):
    """Without that, MLflow's own creation of tables fails in some of them."""
    code = (
        "import sys; from facelab.tracking.client import client_of, prepare_database\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "prepare_database(sys.argv[1]); client_of(sys.argv[1]).search_experiments(max_results=1)"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/mlflow.db"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    path = os.pathsep.join(map(str, (ROOT / "platform", ROOT)))
    jobs = [subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}, **pipes) for _ in range(4)]
    for job in jobs:
        assert job.stdout.readline() == "ready\n"
    for job in jobs:
        job.stdin.write("\n")
        job.stdin.flush()
    for job in jobs:
        said = job.communicate()
        assert job.returncode == 0, said
