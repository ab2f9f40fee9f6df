"""Trainings on a Ray cluster of two nodes, tracked by a server, from and to S3, to which things happen. What is observed
stands in docs/reliability.md."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import ROOT, free_port, s3_server
from faults import proxy
from nodes import Nodes, cluster_of, processes_named
from safetensors.torch import load_file
from test_tracking import server

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

STEPS = 400


class World:
    """What a training needs, and where it stands."""

    def __init__(self, folder: Path, hr: Path, nodes: Nodes, environment: dict[str, str]):
        self.folder, self.hr, self.nodes, self.environment = folder, hr, nodes, environment

    def start(self, name: str, *options: str) -> "Job":
        command = [sys.executable, "-m", "jobs.train_sr", "--preset", "debug", "--model", "srcnn", "--hr", str(self.hr)]
        command += ["--max-steps", str(STEPS), "--workers", "2", "--batch-size", "4", "--validation-images", "2"]
        command += ["--checkpoint-every", "40", "--output", f"s3://bucket/{name}", *options]
        environment = os.environ | self.environment | {"RAY_ADDRESS": self.nodes.address}
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        return Job(process, log, self.folder / "store" / "bucket" / name)


class Job:
    """A training that was started, and its output as it lies in the store."""

    def __init__(self, process: subprocess.Popen, log: Path, place: Path):
        self.process, self.log, self.place = process, log, place

    def step(self) -> int:
        """Of the newest checkpoint."""
        return max([int(file.parent.name[5:]) for file in self.place.glob("checkpoints/step-*/meta.json")], default=0)

    def wait_for(self, ready: Callable[[], bool], what: str, seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            assert self.process.poll() is None, f"ended before {what}: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"not {what} in {seconds} s: {self.log.read_text()}"
            time.sleep(0.2)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: self.step() >= step, f"step {step}")

    def ends_well(self) -> dict:
        """Its summary."""
        assert self.process.wait(400) == 0, self.log.read_text()
        return json.loads((self.place / "summary.json").read_text())

    def said(self) -> str:
        return self.log.read_text()

    def weights(self) -> dict[str, torch.Tensor]:
        return load_file(self.place / "model" / "model.safetensors")


class Outage:
    """A store's, on command."""

    on = False

    def __call__(self, method: str, path: str) -> str | None:
        return "internal error" if self.on else None


@pytest.fixture(scope="module")
def outage() -> Outage:
    return Outage()


@pytest.fixture(scope="module")
def world(tmp_path_factory, hr_folder, outage):
    folder, port = tmp_path_factory.mktemp("world"), free_port()
    with s3_server(folder / "store") as store, proxy(outage, store["AWS_ENDPOINT_URL"]) as front:
        environment = store | {"AWS_ENDPOINT_URL": front.url, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():  # Ray's processes have what the cluster has
                patch.setenv(name, value)
            with cluster_of("a", "b") as nodes:
                found = World(folder, hr_folder, nodes, environment)
                found.port = port
                yield found


@pytest.fixture(scope="module")
def clean(world) -> Job:
    """A run to which nothing happens."""
    job = world.start("clean", "--tracking-uri", f"sqlite:///{world.folder}/mlflow.db")
    job.ends_well()
    return job


def assert_same(job: Job, clean: Job) -> None:
    for name, value in clean.weights().items():
        assert torch.equal(job.weights()[name], value), name


def assert_told_once(uri: str, run_id: str) -> None:
    client = mlflow.MlflowClient(uri)
    assert [metric.step for metric in client.get_metric_history(run_id, "train/loss")] == list(range(1, STEPS + 1))
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_worker_a_tracker_a_store_a_driver_and_a_checkpoint(world, clean, outage):
    """One training: a worker is killed, then for a minute MLflow is stopped and S3 answers errors, then the driver is
    killed, and the newest checkpoint truncated before the same command goes on. It ends with the clean run's weights to
    the last bit, in one MLflow run that has each step once."""
    uri = world.environment["MLFLOW_TRACKING_URI"]
    with server(world.folder, world.port):
        job = world.start("faults")
        job.wait_for_step(80)
        os.kill(processes_named("ray::RayTrainWorker", below=world.nodes.pid)[0], signal.SIGKILL)
        job.wait_for(lambda: "workers were lost" in job.said(), "a lost worker")
        job.wait_for_step(job.step() + 40)
    outage.on = True
    time.sleep(60)
    outage.on = False
    with server(world.folder, world.port):
        assert job.process.poll() is None, job.said()
        os.killpg(job.process.pid, signal.SIGKILL)
        job.process.wait()
        newest = max(job.place.glob("checkpoints/step-*"))
        file = newest / "networks.safetensors"
        file.write_bytes(file.read_bytes()[:-10])
        job = world.start("faults", "--resume")
        summary = job.ends_well()
        assert f"{newest.name}/networks.safetensors: damaged checkpoint" in job.said()
        assert_same(job, clean)
        assert_told_once(uri, summary["mlflow_run_id"])


def test_nodes_come_and_go(world, clean):
    """Elastic from 1 to 2 workers: at the notice that its node will be taken away a checkpoint is made; the node dies, and
    one worker goes on, also when a node comes. The batch stays the same, so the validation is that of the clean run
    within what summing in another order makes of 400 updates: 0.05 dB."""
    uri = f"sqlite:///{world.folder}/mlflow.db"
    job = world.start("elastic", "--min-workers", "1", "--tracking-uri", uri)
    job.wait_for_step(40)
    world.nodes.drain("b")
    job.wait_for(lambda: "will be taken away: checkpoint now" in job.said(), "a notice")
    time.sleep(5)
    world.nodes.kill("b")
    step = job.step()
    job.wait_for_step(step + 40)
    world.nodes.add("c")
    summary = job.ends_well()
    assert summary["best_psnr_rgb"] == pytest.approx(clean.ends_well()["best_psnr_rgb"], abs=0.05)
    assert_told_once(uri, summary["mlflow_run_id"])
    worlds = [m.value for m in mlflow.MlflowClient(uri).get_metric_history(summary["mlflow_run_id"], "world_size")]
    assert {1.0, 2.0} == set(worlds), worlds
