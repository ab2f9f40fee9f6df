"""Sweeps: their tables, what they ask of Tune, trials that die, diverge or are interrupted, and which point is best."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import mlflow
import pytest
from conftest import ROOT, write_faces
from facelab.cluster import on_cluster
from facelab.config import build
from facelab.errors import UsageError
from facelab.experiments import sweep as module
from facelab.experiments.steps import Step
from facelab.experiments.sweep import SWEEP, SweepConfig, best_point, trial_step, trial_table
from facelab.training.update import NonFiniteLoss


def trials_of(parent: str) -> list[mlflow.entities.Run]:
    """The runs below that of a sweep, oldest first."""
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("facelab")
    nested = f"tags.`mlflow.parentRunId` = '{parent}'"
    return client.search_runs([experiment.experiment_id], nested, order_by=["attributes.start_time ASC"])


def test_sweep_tables():
    values = dict(hr="hr", lr="lr", output="out")
    grid = trial_table(build(SweepConfig, **values, space="stylevae", seeds=3))
    assert len(grid) == 12
    assert len({t["name"] for t in grid}) == 12
    assert {json.dumps(t["options"], sort_keys=True) for t in grid} == {
        '{"stylevae": {"use_adain": false}, "weights": {"lambda_mi": 0.0}}', '{"stylevae": {"use_adain": false}}',
        '{"stylevae": {"use_adain": true}, "weights": {"lambda_mi": 0.0}}', '{"stylevae": {"use_adain": true}}',
    }  # fmt: skip
    weights = trial_table(build(SweepConfig, **values, samples=30))
    for trial in weights:
        assert 0.01 <= trial["options"]["weights"]["beta"] <= 1  # the paper's 0.1, a factor of 10 either way
    assert weights == trial_table(build(SweepConfig, **values, samples=30))


def test_sweep_nests_its_trials(ray_local, tmp_path, hr_folder, lr_folder):
    base = dict(hr=str(hr_folder), output=str(tmp_path / "s"), preset="debug")
    config = build(
        SweepConfig, **base, lr=str(lr_folder), space="weights", samples=2, max_steps=4, early_stopping=False
    )
    summary = SWEEP.run(config)
    assert (summary["n_trials"], summary["n_failed"]) == (2, 0)
    runs = trials_of(summary["mlflow_run_id"])
    assert len(runs) == 2
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert len({r.data.params["weights.beta"] for r in runs}) == 2


@pytest.mark.slow
def test_sweep_with_ray_train_workers_does_not_deadlock(ray_local, tmp_path, hr_folder, lr_folder):
    """More trials than CPUs, each with a worker of its own, some of them stopped early: whole-CPU drivers, or workers
    that outlive their trial, would wait for ever."""
    config = build(
        SweepConfig, preset="debug", hr=str(hr_folder), lr=str(lr_folder), output=str(tmp_path), samples=3,
        max_steps=28, grace_steps=14, reduction=4, workers=1,
    )  # fmt: skip
    summary = SWEEP.run(config)
    assert (summary["n_trials"], summary["n_failed"]) == (3, 0)
    assert summary["n_stopped_early"] > 0


CLUSTER = {"head": 1.0}
"""cluster.yaml's, before it has grown."""


@pytest.mark.parametrize(
    ("room", "options", "reserved", "concurrent", "max_failures"),
    [
        (CLUSTER, {}, {"CPU": 1}, None, 2),
        (CLUSTER, {"gpus_per_trial": 0.5}, {"CPU": 1, "GPU": 0.5}, None, 2),
        (CLUSTER, {"workers": 2}, {"head": 0.01}, 1, 0),
        (CLUSTER, {"workers": 2, "concurrent_trials": 3}, {"head": 0.01}, 3, 0),
        ({"CPU": 8, "GPU": 2}, {}, {"CPU": 1, "GPU": 1}, None, 2),
        ({"CPU": 8, "GPU": 2}, {"concurrent_trials": 3, "gpus_per_trial": 0}, {"CPU": 1}, 3, 2),
        ({"CPU": 8, "GPU": 2}, {"workers": 1}, {"CPU": 0.01}, 2, 0),
        ({"CPU": 8, "GPU": 2}, {"workers": 1, "gpus_per_trial": 0}, {"CPU": 0.01}, 7, 0),
        ({"CPU": 8, "GPU": 2}, {"workers": 4, "concurrent_trials": 9}, {"CPU": 0.01}, 1, 0),
    ],
)
def test_what_a_sweep_asks_of_tune(
    room, options, reserved, concurrent, max_failures, tmp_path, hr_folder, monkeypatch, capsys
):
    """A limit from the CPUs of a cluster that has yet to grow would be 1 for ever. Trials without workers need none, as
    Tune sees what they reserve; those with workers have it on one machine, whatever is asked for."""
    asked = {}

    class Tuner:
        def __init__(self, trainable, **settings):
            asked.update(settings, resources=trainable._resources.required_resources)

        def fit(self):
            raise RuntimeError("enough")

    if room is CLUSTER:
        monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    monkeypatch.setattr(module, "ray_session", lambda dashboard: nullcontext())
    monkeypatch.setattr(module, "room", lambda: room)
    monkeypatch.setattr("facelab.cluster.room", lambda: room)
    monkeypatch.setattr(module.tune, "Tuner", Tuner)
    grid = {"hr": str(hr_folder), "output": str(tmp_path), "preset": "debug", "space": "attention"}
    with pytest.raises(RuntimeError, match="enough"):
        SWEEP.run(build(SweepConfig, **grid | {"seeds": 4} | options))
    assert asked["resources"] == reserved
    assert asked["tune_config"].max_concurrent_trials == concurrent
    assert asked["run_config"].failure_config.max_failures == max_failures
    advice = "1 of 16 trials at a time, as the cluster is now: see --concurrent-trials"
    assert (advice in capsys.readouterr().err) == (room is CLUSTER and concurrent == 1)


def test_gpus_of_a_trial():
    values = {"hr": "hr", "output": "out", "space": "attention", "preset": "debug"}
    config = build(SweepConfig, **values)
    for gpu in (False, True):
        assert trial_step(config, trial_table(config)[0], "sqlite:///x", gpu).config.compute.gpu is gpu
    with pytest.raises(UsageError, match="Ray Train workers do not share GPUs"):
        build(SweepConfig, **values, workers=1, gpus_per_trial=0.5)


@pytest.mark.slow
def test_a_trial_that_lost_its_process_goes_on_and_one_that_diverged_does_not(
    ray_local, tmp_path, hr_folder, monkeypatch
):
    def faulty(config, trial, tracking_uri, gpu) -> Step:
        step = trial_step(config, trial, tracking_uri, gpu)

        def work(training, run):
            assert on_cluster()
            if trial["seed"] == 1:
                raise NonFiniteLoss("loss is nan")
            if not (tmp_path / "died").exists():
                step.job.work(training.model_copy(update={"max_steps": 2}), run)
                (tmp_path / "died").touch()
                os._exit(1)  # as on a spot node that is taken away
            return step.job.work(training, run)

        return replace(step, job=replace(step.job, work=work))

    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    monkeypatch.setattr(module, "trial_step", faulty)
    values = {"hr": str(hr_folder), "output": str(tmp_path), "preset": "debug", "space": "attention"}
    config = build(SweepConfig, **values, seeds=2, max_steps=4)
    table = [trial for trial in trial_table(config) if trial["point"] == "-ga-la"]
    monkeypatch.setattr(module, "trial_table", lambda config: table)
    summary = SWEEP.run(config)
    assert {key: summary[key] for key in ("n_trials", "n_failed", "n_stopped_early", "best_point_seeds")} == {
        "n_trials": 2, "n_failed": 1, "n_stopped_early": 0, "best_point_seeds": 1,
    }  # fmt: skip
    rows = json.loads((tmp_path / "trials.json").read_text())
    went_on, diverged = sorted(rows, key=lambda row: row["seed"])
    assert (went_on["steps"], went_on["error"]) == (4, None)
    assert diverged["error"] == "loss is nan"
    runs = trials_of(summary["mlflow_run_id"])
    attempts = [(run.data.tags["seed"], run.info.status) for run in runs]
    assert sorted(attempts) == [("0", "FINISHED"), ("1", "FAILED")]  # of a trial that is restarted, one run
    (last,) = (run for run in runs if run.info.status == "FINISHED")
    assert last.data.metrics["segment"] == 1  # from the checkpoint at step 2


def test_best_point_is_of_those_whose_seeds_finished():
    def rows(**points: list[tuple[float, int]]):
        return [{"point": p, "loss": loss, "steps": n} for p, seeds in points.items() for loss, n in seeds]

    lucky = rows(whole=[(1.0, 9), (1.2, 9), (1.1, 9)], lucky=[(0.1, 9)], short=[(0.2, 9), (0.1, 9), (0.1, 3)])
    assert best_point(lucky, "loss", "min") == ("whole", pytest.approx(1.1), 3)
    assert best_point(rows(a=[(1.0, 9), (3.0, 3)], b=[(2.0, 9)]), "loss", "max") == ("b", 2.0, 1)  # none is whole


@pytest.mark.slow
def test_interrupted_sweep(tmp_path):
    """Ctrl-C: exit 130; the runs of the sweep and of its trials are KILLED, and no trial counts as stopped by ASHA."""
    hr = write_faces(tmp_path / "hr", 20)
    arguments = ["--preset", "debug", "--space", "attention", "--hr", str(hr), "--output", str(tmp_path / "s")]
    command = [sys.executable, "-m", "jobs.sweep", *arguments, "--max-steps", "1000000"]
    said = tmp_path / "stderr"
    with said.open("w") as file:
        # Whoever started the tests in the background has them, and so the sweep, ignore SIGINT.
        heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        sweep = subprocess.Popen(command, cwd=ROOT, stderr=file, preexec_fn=heeding)
    try:
        # An epoch has ended: there would be a best point.
        while not list(tmp_path.glob("s/trials/*/samples/*.png")) and sweep.poll() is None:
            time.sleep(0.1)
        sweep.send_signal(signal.SIGINT)
        sweep.wait()
    finally:
        sweep.kill()
    assert sweep.returncode == 130, said.read_text()
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    runs = client.search_runs([client.get_experiment_by_name("facelab").experiment_id])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert len(runs) > 1
    assert not any("stopped_early" in run.data.tags for run in runs)


@pytest.mark.slow
def test_faces_that_no_trial_can_use_are_the_users_to_mend(ray_local, tmp_path):
    values = {"preset": "debug", "space": "attention", "hr": str(write_faces(tmp_path / "few", 5))}
    with pytest.raises(UsageError, match=r"every trial failed; the first: .*smaller batch"):
        SWEEP.run(build(SweepConfig, output=str(tmp_path / "s"), **values))
