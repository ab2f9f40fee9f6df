"""Trainings on a Ray cluster of two nodes, tracked by a server, from and to S3, to which things happen. What is observed
stands in docs/reliability.md."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import ROOT, s3_server, write_faces
from faults import proxy
from nodes import Nodes, cluster_of, processes_named
from safetensors.torch import load_file
from servers import TrackingServer

pytestmark = [pytest.mark.cluster, pytest.mark.chaos]

STEPS = 400


class World:
    """What a training needs, and where it stands."""

    def __init__(self, folder: Path, hr: Path, nodes: Nodes, environment: dict[str, str], tracking: TrackingServer):
        self.folder, self.hr, self.nodes, self.environment = folder, hr, nodes, environment
        self.tracking = tracking
        self.jobs: list[Job] = []

    def start(self, name: str, *options: str) -> "Job":
        command = [sys.executable, "-m", "jobs.train_sr", "--preset", "debug", "--model", "srcnn", "--hr", str(self.hr)]
        command += ["--max-steps", str(STEPS), "--workers", "2", "--batch-size", "4", "--validation-images", "2"]
        command += ["--checkpoint-every", "40", "--output", f"s3://bucket/{name}", *options]
        environment = os.environ | self.environment | self.tracking.client | {"RAY_ADDRESS": self.nodes.address}
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.jobs.append(Job(process, log, self.folder / "store" / "bucket" / name))
        return self.jobs[-1]

    def end_jobs(self) -> None:
        """What a test that failed left running would take the room of the next one."""
        for job in self.jobs:
            if job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGKILL)
                job.process.wait()


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
def world(tmp_path_factory, outage):
    folder = tmp_path_factory.mktemp("world")
    hr = write_faces(folder / "hr", 240)  # few epochs in so many steps: each sends MLflow a picture
    with (
        s3_server(folder / "store") as store,
        TrackingServer(folder, store) as tracking,
        proxy(outage, store["AWS_ENDPOINT_URL"]) as front,
    ):
        environment = store | {"AWS_ENDPOINT_URL": front.url}
        with cluster_of("a", "b", env=environment) as nodes:
            yield World(folder, hr, nodes, environment, tracking)


@pytest.fixture
def client(world, monkeypatch) -> Iterator[mlflow.MlflowClient]:
    """Of the tracking server; the jobs of a test end with it."""
    for name, value in world.tracking.client.items():
        monkeypatch.setenv(name, value)
    yield mlflow.MlflowClient(world.tracking.uri)
    world.end_jobs()


@pytest.fixture(scope="module")
def clean(world) -> Job:
    """A run to which nothing happens."""
    job = world.start("clean")
    job.ends_well()
    return job


def assert_same(job: Job, clean: Job) -> None:
    for name, value in clean.weights().items():
        assert torch.equal(job.weights()[name], value), name


def assert_told_once(client: mlflow.MlflowClient, run_id: str) -> None:
    assert [metric.step for metric in client.get_metric_history(run_id, "train/loss")] == list(range(1, STEPS + 1))
    assert client.get_run(run_id).info.status == "FINISHED"


def test_nodes_come_and_go(world, clean, client):
    """Elastic from 2 to 1 to 2 workers: at the notice that its node will be taken away a checkpoint is made; the node dies,
    and one worker goes on; a node comes, and there are two again. The batch stays the same, so the validation is that of
    the clean run within what summing in another order makes of so many updates: 0.05 dB."""
    job = world.start("elastic", "--min-workers", "1", "--checkpoint-minutes", "0.05")
    job.wait_for_step(40)
    world.nodes.drain("b")
    job.wait_for(lambda: "will be taken away: checkpoint now" in job.said(), "a notice")
    world.nodes.kill("b")
    job.wait_for(lambda: "rank 0 of 1, step " in job.said(), "one worker")
    job.wait_for_step(job.step() + 1)  # what it did before a checkpoint of its own, two would do again
    world.nodes.add("c")
    summary = job.ends_well()
    assert summary["best_psnr_rgb"] == pytest.approx(clean.ends_well()["best_psnr_rgb"], abs=0.05)
    assert_told_once(client, summary["mlflow_run_id"])
    worlds = [metric.value for metric in client.get_metric_history(summary["mlflow_run_id"], "world_size")]
    assert [size for size, _ in groupby(worlds)] == [2, 1, 2], worlds


def test_workers_nodes_a_cluster_a_checkpoint_a_tracker_and_a_store(world, clean, client, outage):
    """All to one training: a worker is killed; a node dies, and another comes; then the driver and every process of the
    cluster, the head's too, and the newest checkpoint is truncated. On another cluster the same command goes on, from the
    store alone; for a minute MLflow is stopped and S3 answers errors. It ends with the clean run's weights to the last
    bit, in one MLflow run that has each step once."""
    job = world.start("faults")
    job.wait_for_step(80)
    os.kill(processes_named("ray::RayTrainWorker", below=world.nodes.pid)[0], signal.SIGKILL)
    job.wait_for(lambda: "workers were lost" in job.said(), "a lost worker")
    job.wait_for_step(job.step() + 40)
    world.nodes.kill("a")
    job.wait_for(lambda: job.said().count("workers were lost") == 2, "a lost node")
    world.nodes.add("d")
    job.wait_for_step(job.step() + 40)
    os.killpg(job.process.pid, signal.SIGKILL)
    world.nodes.kill_all()
    job.process.wait()
    assert job.step() < STEPS
    newest = max(job.place.glob("checkpoints/step-*/networks.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-10])
    with cluster_of("e", "f", env=world.environment) as world.nodes:
        job = world.start("faults", "--resume")
        job.wait_for(lambda: "going on to step" in job.said(), "a step on the other cluster")
        outage.on = True
        world.tracking.stop()
        time.sleep(60)
        outage.on = False
        world.tracking.start()
        summary = job.ends_well()
    assert f"{newest.parent.name}/networks.safetensors: damaged checkpoint" in job.said()
    assert "takes nothing" in job.said()
    assert "cannot be reached or written" in job.said()
    assert ": written now" in job.said()
    assert_same(job, clean)
    assert_told_once(client, summary["mlflow_run_id"])
