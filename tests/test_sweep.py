"""Sweeps: their tables and rules, what they ask of Ray, trials that die, diverge or are killed, and what they conclude."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import torch
from conftest import ROOT, Notes, write_faces
from facelab.cluster import on_cluster, places_for
from facelab.config import build
from facelab.errors import UsageError
from facelab.experiments import sweep as module
from facelab.experiments.board import Board
from facelab.experiments.sweep import SWEEP, Planned, concurrency, reserved
from facelab.experiments.sweep_config import SweepConfig
from facelab.experiments.trial_steps import TrialSteps
from facelab.experiments.trials import ENDED, State, Trial, TrialTable
from facelab.experiments.tuning import Rules, _Judge, _Watch
from facelab.experiments.verdict import effects, ranking
from facelab.reports.terminal import duration
from facelab.training.launch import run_training
from facelab.training.update import NonFiniteLoss
from safetensors.torch import load_file


def client() -> mlflow.MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return mlflow.MlflowClient(uri, registry_uri=uri)


def runs_below(parent: str) -> list[mlflow.entities.Run]:
    """The runs below that of a sweep, oldest first."""
    experiment = client().get_experiment_by_name("facelab")
    nested = f"tags.`mlflow.parentRunId` = '{parent}'"
    return client().search_runs([experiment.experiment_id], nested, order_by=["attributes.start_time ASC"])


def planned(tmp_path, **options) -> Planned:
    config = build(SweepConfig, hr="hr", lr="lr", output=str(tmp_path), trial_preset="debug", **options)
    found = Planned(TrialSteps(config, "sqlite:///x", "0" * 32, gpu=False), TrialTable(str(tmp_path / "table")))
    found.fill()
    return found


def test_an_ablation_is_a_grid_of_two_switches_and_seeds(tmp_path):
    found = planned(tmp_path, preset="ablation-stylevae", seeds=3)
    trials = found.table.trials
    assert len(trials) == len({trial.name for trial in trials}) == 12
    assert {(t.point["stylevae.use_adain"], t.point["weights.lambda_mi"]) for t in trials} == {
        (adain, mi) for adain in (False, True) for mi in (0.0, 0.1)
    }
    assert [trial.seed for trial in trials] == [0] * 4 + [1] * 4 + [2] * 4  # every point once, before any twice
    for trial in trials:
        trained = found._steps.training(trial.point, trial.seed)
        assert trained.stylevae.use_adain == trial.point["stylevae.use_adain"]
        assert (trained.weights.lambda_mi, trained.seed) == (trial.point["weights.lambda_mi"], trial.seed)


def test_weights_are_drawn_around_the_presets_and_more_points_go_on_with_the_same(tmp_path):
    few = planned(tmp_path / "few", points=10).table.trials
    for trial in few:
        assert 0.01 <= trial.point["weights.beta"] <= 1  # the paper's 0.1, a factor of 10 either way
    more = planned(tmp_path / "few", points=30).table.trials
    assert len(more) == 30
    assert [t.point for t in more[:10]] == [t.point for t in few]


def test_a_table_outlives_its_driver(tmp_path):
    table = TrialTable(str(tmp_path))
    for seed in range(6):
        table.add({"weights.beta": 0.1}, seed)
    states = (State.DONE, State.RUNNING, State.STOPPED, State.FAILED, State.DIVERGED)
    for trial, state in zip(table.trials, states, strict=False):
        trial.state, trial.reason, trial.seconds = state, "because", 3.0
        trial.told(2, 0.5)
        table.keep(trial)
    read = TrialTable(str(tmp_path))
    assert [trial.state for trial in read.trials] == [
        State.DONE, State.WAITING, State.STOPPED, State.WAITING, State.DIVERGED, State.WAITING,
    ]  # fmt: skip
    assert read.trials[0] == table.trials[0]
    assert read.trials[1].curve == [(2, 0.5)]
    assert read.add({"weights.beta": 0.1}, 3) is read.trials[3]


def test_what_a_training_tells_again_after_a_crash_takes_the_place_of_what_it_said():
    trial = Trial(0, {}, 0)
    for step, value in ((10, 5.0), (20, 4.0), (30, 3.0), (20, 4.5), (30, 2.5)):
        trial.told(step, value)
    assert trial.curve == [(10, 5.0), (20, 4.5), (30, 2.5)]
    assert (trial.best("min"), trial.best("max"), trial.steps) == (2.5, 5.0, 30)


def rules(early: str, longest: int = 40, **more) -> Rules:
    return Rules("fd", "min", early, 10, 2, longest, {}, None, 0, **more)


@pytest.mark.parametrize("early", ["asha", "median"])
def test_early_stopping_knows_what_trials_did_before_a_crash(tmp_path, early):
    """Of five trials, four ended before it; the fifth is judged by them, as it would have been without it."""
    table = TrialTable(str(tmp_path))
    for value in (1.0, 1.1, 1.2, 1.3):
        trial = table.add({"weights.beta": value}, 0)
        trial.curve = [(10, value), (20, value)]
        table.keep(trial)

    def verdict(value: float, step: int, found: TrialTable) -> str:
        asked = SimpleNamespace(config={"name": "new"})
        result = {"step": step, "last_step": 40, "fd": value}
        return _Judge(found, rules(early)).on_trial_result(None, asked, result)

    read = TrialTable(str(tmp_path))
    assert verdict(9.0, 20, read) == "STOP"
    assert verdict(0.5, 20, read) == "CONTINUE"
    assert verdict(9.0, 5, read) == "CONTINUE"  # within its grace
    assert verdict(9.0, 40, read) == "CONTINUE"  # at its end
    assert verdict(9.0, 20, TrialTable(str(tmp_path / "empty"))) == "CONTINUE"  # alone


def test_a_sweep_without_early_stopping_stops_nobody(tmp_path):
    table = TrialTable(str(tmp_path))
    for value in (1.0, 1.1, 1.2, 1.3):
        table.add({"weights.beta": value}, 0).curve = [(10, value), (20, value)]
    asked = SimpleNamespace(config={"name": "new"})
    result = {"step": 20, "last_step": 40, "fd": 9.0}
    assert _Judge(table, rules("none")).on_trial_result(None, asked, result) == "CONTINUE"


@pytest.mark.parametrize("early", ["asha", "median"])
def test_a_trial_that_is_gone_on_with_is_judged_by_what_it_did_before(tmp_path, early):
    """It stood last at step 10, and was not stopped, as it was the first to be there."""
    table = TrialTable(str(tmp_path))
    last = table.add({"weights.beta": 9.0}, 0)
    last.curve = [(10, 9.0)]
    for value in (1.0, 1.1, 1.2):
        table.add({"weights.beta": value}, 0).curve = [(10, value), (20, value)]
    asked = SimpleNamespace(config={"name": last.name})

    def verdict(value: float, step: int) -> str:
        return _Judge(table, rules(early)).on_trial_result(None, asked, {"step": step, "last_step": 40, "fd": value})

    assert verdict(9.0, 20) == "STOP"
    assert verdict(0.5, 20) == "CONTINUE"


def test_limits_of_time_and_steps(tmp_path):
    table = TrialTable(str(tmp_path))
    table.add({}, 0).curve = [(30, 1.0)]
    table.add({}, 1).curve = [(20, 1.0)]
    assert not rules("none").is_over(table)
    assert not rules("none", budget_steps=51).is_over(table)
    assert rules("none", budget_steps=50).is_over(table)
    assert rules("none", until=time.monotonic() - 1).is_over(table)


def done(**points: list[float]) -> tuple[list[Trial], dict[str, float]]:
    trials = [
        Trial(0, {"size": name}, seed, State.DONE, value=value)
        for name, values in points.items()
        for seed, value in enumerate(values)
    ]
    return trials, {trial.name: trial.value for trial in trials}


def test_a_search_that_learns_finds_every_point_of_a_small_space_and_ends(tmp_path):
    found = planned(
        tmp_path, space=("stylevae.use_adain=true,false", "batch_size=4..5"), search="tpe", points=20, seeds=2
    )
    for _ in range(4):
        trial = found.more()
        for each in found.table.of(State.WAITING):
            each.state, each.value = State.DONE, 1.0
        assert found.is_left == (len(found.table.trials) < 8)
        assert trial is not None
    assert len({trial.key for trial in found.table.trials}) == 4
    assert found.more() is None
    assert found.expected == 8


def test_points_that_look_alike_are_not_taken_for_seeds_of_one():
    trials = [Trial(i, {"rate": 1e-4 + i * 1e-9}, i, State.DONE, value=float(i)) for i in range(2)]
    assert trials[0].variant == trials[1].variant
    assert len(ranking(trials, {trial.name: trial.value for trial in trials}, "min")) == 2


def test_the_best_point_is_of_those_whose_seeds_finished():
    trials, values = done(whole=[1.0, 1.2, 1.1], lucky=[0.1], good=[0.9, 1.0, 0.8])
    stopped = Trial(0, {"size": "lucky"}, 1, State.STOPPED, curve=[(3, 0.01)])
    points = ranking([*trials, stopped], values, "min")
    assert [(p.variant, len(p.trials), pytest.approx(p.value.mean)) for p in points] == [
        ("size=good", 3, 0.9), ("size=whole", 3, 1.1), ("size=lucky", 1, 0.1),
    ]  # fmt: skip
    assert points[0].value.low < 0.9 < points[0].value.high
    assert points[2].value.low is None
    assert ranking(trials, values, "max")[0].variant == "size=whole"


def test_the_effect_of_a_switch_is_paired_by_seed_and_by_the_other_switch():
    """y = 2·a − b + 10·seed: the seeds' spread does not hide it."""
    trials, values = [], {}
    for a in (False, True):
        for b in (0.0, 0.1):
            for seed in (0, 1, 2):
                trial = Trial(len(trials), {"a": a, "w.b": b}, seed, State.DONE)
                trials.append(trial)
                values[trial.name] = 2.0 * a - (b > 0) + 10 * seed
    found = {each.option: each for each in effects(trials, values)}
    assert (found["a"].before, found["a"].after) == (False, True)
    assert (found["w.b"].before, found["w.b"].after) == (0.0, 0.1)
    for option, size in (("a", 2.0), ("w.b", -1.0)):
        interval = found[option].difference
        assert (interval.mean, interval.low, interval.high, interval.n) == pytest.approx((size, size, size, 3))
    assert effects([t for t in trials if t.point["a"]], values)[0].option == "w.b"  # a has no partners


HEAD = {"node:__internal_head__": 0.01}
NODES = {
    "grown": [{"head": 1.0}, {"CPU": 8.0, "GPU": 2.0}],
    "split": [{"CPU": 3.0}, {"CPU": 3.0}],
    "not yet": [{"head": 1.0}],
    "laptop": [{"CPU": 2.0}],
}


def on(nodes: list[dict], monkeypatch) -> None:
    total = Counter()
    for node in nodes:
        total.update(node)
    monkeypatch.setattr("facelab.cluster.ray.nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    for place in (module, sys.modules["facelab.cluster"]):
        monkeypatch.setattr(place, "room", lambda: dict(total))


@pytest.mark.parametrize(
    ("nodes", "options", "gpus", "held", "at_once"),
    [
        ("grown", {"workers": 2}, 1.0, HEAD, 1),
        ("grown", {"workers": 1}, 1.0, HEAD, 2),
        ("grown", {"workers": 1}, 0.0, HEAD, 8),
        ("grown", {"workers": 1, "concurrency": 3}, 0.0, HEAD, 3),
        ("grown", {"workers": 0}, 0.5, {"CPU": 1, "GPU": 0.5}, None),
        ("split", {"workers": 1, "cpus_per_worker": 2}, 0.0, HEAD, 2),  # 6 CPUs, but no node has 4
        ("split", {"workers": 1}, 0.0, HEAD, 6),
        ("laptop", {"workers": 1}, 0.0, HEAD, 2),
        ("laptop", {"workers": 2, "concurrency": 9}, 0.0, HEAD, 1),
        ("split", {"workers": 1, "cpus_per_worker": 3}, 0.0, HEAD, 2),  # whole nodes, of which the driver takes nothing
    ],
)
def test_trials_at_once_are_those_that_have_room(nodes, options, gpus, held, at_once, tmp_path, monkeypatch):
    on(NODES[nodes], monkeypatch)
    config = build(SweepConfig, hr="hr", lr="lr", output=str(tmp_path), **options)
    assert reserved(config, gpus) == held
    assert concurrency(config, gpus, 16) == at_once


def test_a_cluster_that_has_yet_to_grow_is_asked_for_as_much_as_is_wanted(tmp_path, monkeypatch, capsys):
    on(NODES["not yet"], monkeypatch)
    values = {"hr": "hr", "lr": "lr", "output": str(tmp_path)}
    with pytest.raises(UsageError, match=r"a trial \(--workers 1, .*needs 1 CPUs, but this machine has 0"):
        concurrency(build(SweepConfig, **values), 0.0, 16)
    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    assert concurrency(build(SweepConfig, **values, concurrency=5), 0.0, 16) == 5
    assert concurrency(build(SweepConfig, **values), 0.0, 16) == 1
    assert "1 of 16 trials at a time, as the cluster is now: see --concurrency" in capsys.readouterr().out


def test_places_are_counted_on_each_node(monkeypatch):
    on(NODES["split"], monkeypatch)
    assert places_for({"CPU": 2, "GPU": 0}) == 2
    assert places_for({"CPU": 4}) == 0
    assert places_for({"CPU": 1.5}) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": None}, "a degrader is trained on --hr and --lr"),
        ({"test": "t"}, "--real together"),
        ({"workers": 1, "gpus_per_worker": 0.5}, "Ray Train workers do not share GPUs"),
        ({"train": "sr", "pairs": "p"}, "either --pairs"),
        ({"space": ()}, "space"),
        ({"preset": "weight"}, "did you mean 'weights'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        build(SweepConfig, **{"hr": "hr", "lr": "lr", "output": str(tmp_path)} | options)


def test_a_point_that_no_training_takes_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match="batch_size 5 is no multiple of 2 workers"):
        planned(tmp_path, workers=2, space=("batch_size=4,5",), search="grid")


def test_the_same_output_is_for_the_same_sweep(tmp_path, hr_folder, lr_folder):
    values = {"hr": str(hr_folder), "lr": str(lr_folder), "output": str(tmp_path), "preset": "debug"}
    tested = {"test": str(hr_folder), "real": str(lr_folder), "tested": "all"}
    config = build(SweepConfig, **values)
    (tmp_path / "sweep.json").write_text(json.dumps(config.described()))
    build(
        SweepConfig, **values, **tested, points=9, seeds=2, hours=3, concurrency=1
    ).check_output()  # the same, and more of it
    with pytest.raises(UsageError, match=r"another sweep \(space differ\)"):
        build(SweepConfig, **values, space=("weights.alpha=~3",)).check_output()
    with pytest.raises(UsageError, match=r"another sweep \(hash of lr"):
        build(SweepConfig, **values | {"lr": str(hr_folder)}).check_output()


def test_progress_says_what_became_of_each_trial_and_what_is_left(tmp_path, capsys):
    table = TrialTable(str(tmp_path))
    board = Board(table, "fd", "min", expected=6, at_once=2)
    first, second = table.add({"weights.beta": 0.1}, 0), table.add({"weights.beta": 0.2}, 0)
    first.state = State.RUNNING
    board.changed()
    assert capsys.readouterr().err == ""  # it has only begun
    first.told(20, 0.5)
    first.last_step = 40
    board.changed()
    assert capsys.readouterr().err == "[sweep, 0 of 6 trials] 000-beta-0.1-seed0 running at step 20/40 fd 0.5\n"
    first.state, first.seconds, first.reason = State.STOPPED, 120.0, "3rd of 3 at step 20"
    second.state = State.RUNNING
    board.changed()
    assert capsys.readouterr().err == (
        "[sweep, 1 of 6 trials, about 5 min left] 000-beta-0.1-seed0 stopped at step 20/40 fd 0.5: 3rd of 3 at step 20\n"
    )
    assert board.seconds_left() == 300  # five more of two minutes, two at a time
    assert [duration(s) for s in (42.3, 200, 8900, None)] == ["42 s", "3 min", "2.5 h", "–"]


@pytest.mark.slow
def test_a_sweep_of_super_resolution_ends_with_its_best_tested_and_called_champion(ray_local, tmp_path, hr_folder):
    """Trials in processes of their own; those with Ray Train workers are below."""
    write_faces(tmp_path / "test", 12, first=500)
    config = build(
        SweepConfig, preset="ablation-sr", trial_preset="debug", hr=str(hr_folder), test=str(tmp_path / "test"),
        output=str(tmp_path / "s"), workers=0, space=("attentive.use_local=false,true",), max_steps=4,
    )  # fmt: skip
    summary = SWEEP.run(config)
    assert (summary["n_trials"], summary["n_done"], summary["best_seeds"]) == (2, 2, 1)
    assert summary["best_variant"] in ("use_local=false", "use_local=true")
    rows = json.loads((tmp_path / "s" / "trials.json").read_text())
    tested = {row["point"]["attentive.use_local"]: row["test"]["psnr_y"] for row in rows}
    assert summary["effect_attentive.use_local_test_psnr_y"] == pytest.approx(tested[True] - tested[False])
    best = next(row for row in rows if row["name"] == summary["best_trial"])
    assert summary["best_psnr_rgb"] == best["value"] == max(row["value"] for row in rows)
    assert summary["best_test_psnr_y"] == pytest.approx(best["test"]["psnr_y"])

    runs = runs_below(summary["mlflow_run_id"])
    assert Counter((run.data.tags["job"], run.info.status) for run in runs) == {
        ("train_sr", "FINISHED"): 2, ("evaluate", "FINISHED"): 2,
    }  # fmt: skip
    trained = {run.info.run_name: run for run in runs if run.data.tags["job"] == "train_sr"}
    assert trained.keys() == {row["name"] for row in rows}
    assert {run.data.tags["sweep"] for run in runs} == {summary["mlflow_run_id"]}
    champion = client().get_model_version_by_alias("facelab-attentive", "champion")
    assert champion.run_id == trained[best["name"]].info.run_id
    assert summary["registered_model"] == f"models:/facelab-attentive/{champion.version}"
    parent = client().get_run(summary["mlflow_run_id"])
    assert parent.data.metrics["best/test_psnr_y"] == pytest.approx(best["test"]["psnr_y"])

    again = SWEEP.run(config)
    assert again["mlflow_run_id"] == summary["mlflow_run_id"]
    assert len(runs_below(summary["mlflow_run_id"])) == len(runs)  # nothing of it is run again


@pytest.mark.slow
def test_a_budget_interrupts_a_search_that_learns_and_a_larger_one_goes_on(ray_local, tmp_path, hr_folder, lr_folder):
    """TPE, which thinks of trials one by one; some are stopped early. The last one trained as it would have alone, though
    in a process in which others had trained before."""
    values = {
        "preset": "debug", "hr": str(hr_folder), "lr": str(lr_folder), "output": str(tmp_path), "search": "tpe",
        "points": 4, "max_steps": 28, "grace_steps": 14, "reduction": 4, "workers": 0,
    }  # fmt: skip
    few = SWEEP.run(build(SweepConfig, **values, budget_steps=28))
    assert 0 < few["n_waiting"] <= few["n_trials"] <= 4
    assert "best_variant" not in few
    whole = SWEEP.run(build(SweepConfig, **values))
    assert (whole["n_trials"], whole["n_waiting"], whole["n_failed"]) == (4, 0, 0)
    assert whole["n_stopped"] > 0
    assert whole["n_done"] + whole["n_stopped"] == 4
    table = TrialTable(str(tmp_path / "table"))
    for trial in table.of(State.STOPPED):
        assert "ASHA keeps one in 4" in trial.reason
        assert trial.curve
    ended = {run.info.run_name: run for run in runs_below(whole["mlflow_run_id"])}
    assert {ended[trial.name].info.status for trial in table.of(State.STOPPED)} == {"KILLED"}
    assert all(ended[trial.name].data.tags["reason"] == trial.reason for trial in table.of(State.STOPPED))
    assert all(ended[t.name].data.metrics["val/fd"] == pytest.approx(t.curve[-1][1]) for t in table.of(State.STOPPED))
    last = table.of(State.DONE)[-1]
    alone = TrialSteps(build(SweepConfig, **values), "", "", False).training(last.point, last.seed, "alone")
    torch.set_num_threads(1)  # as Ray has it for a CPU
    run_training(alone, Notes)
    weights, wanted = (
        load_file(tmp_path / place / "model/model.safetensors") for place in (f"trials/{last.name}", "alone")
    )
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


class Faulty(TrialSteps):
    """Seed 0 loses its process after two steps, once; seed 1 diverges."""

    def step(self, trial):
        step = super().step(trial)

        def work(training, run):
            assert on_cluster()
            if trial.seed == 1:
                raise NonFiniteLoss("loss is nan")
            died = Path(self.config.output) / "died"
            if not died.exists():
                step.job.work(training.model_copy(update={"max_steps": 2}), run)
                died.touch()
                os._exit(1)  # as on a spot node that is taken away
            return step.job.work(training, run)

        return replace(step, job=replace(step.job, work=work))


@pytest.mark.slow
def test_a_trial_that_lost_its_process_goes_on_and_one_that_diverged_does_not(
    ray_local, tmp_path, hr_folder, monkeypatch
):
    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    monkeypatch.setattr(module, "TrialSteps", Faulty)
    config = build(
        SweepConfig, preset="debug", train="sr", hr=str(hr_folder), output=str(tmp_path), workers=0, seeds=2,
        space=("attentive.use_local=false",), search="grid", max_steps=4,
    )  # fmt: skip
    summary = SWEEP.run(config)
    assert {key: summary[key] for key in ("n_trials", "n_done", "n_diverged", "n_stopped", "best_seeds")} == {
        "n_trials": 2, "n_done": 1, "n_diverged": 1, "n_stopped": 0, "best_seeds": 1,
    }  # fmt: skip
    went_on, diverged = TrialTable(str(tmp_path / "table")).trials
    assert (went_on.steps, went_on.state, diverged.reason) == (4, State.DONE, "loss is nan")
    runs = runs_below(summary["mlflow_run_id"])
    attempts = [(run.data.tags["seed"], run.info.status) for run in runs]
    assert sorted(attempts) == [("0", "FINISHED"), ("1", "FAILED")]  # of a trial that is restarted, one run
    (last,) = (run for run in runs if run.info.status == "FINISHED")
    assert last.data.metrics["segment"] == 1  # from the checkpoint at step 2


@pytest.mark.slow
def test_faces_that_no_trial_can_use_are_the_users_to_mend(ray_local, tmp_path):
    values = {"preset": "debug", "train": "sr", "space": ("attentive.use_local=true",), "workers": 0}
    with pytest.raises(UsageError, match=r"no trial came to its end; the first is refused: .*smaller batch"):
        SWEEP.run(build(SweepConfig, output=str(tmp_path / "s"), hr=str(write_faces(tmp_path / "few", 5)), **values))


COMMAND = [sys.executable, "-m", "jobs.sweep", "--preset", "debug"]


@pytest.mark.slow
def test_interrupted_sweep(tmp_path):
    """Ctrl-C: exit 130; the runs of the sweep and of its trials are KILLED, no trial counts as stopped by ASHA, and all
    wait to be gone on with."""
    hr = write_faces(tmp_path / "hr", 20)
    options = ["--train", "sr", "--space", "attentive.use_local=true,false", "--search", "grid", "--workers", "0"]
    arguments = [*options, "--hr", str(hr), "--output", str(tmp_path / "s"), "--max-steps", "1000000"]
    said = tmp_path / "stderr"
    with said.open("w") as file:
        # Whoever started the tests in the background has them, and so the sweep, ignore SIGINT.
        heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        sweep = subprocess.Popen([*COMMAND, *arguments], cwd=ROOT, stderr=file, preexec_fn=heeding)
    try:
        # An epoch has ended: there would be a best point.
        while not list(tmp_path.glob("s/trials/*/samples/*.png")) and sweep.poll() is None:
            time.sleep(0.1)
        sweep.send_signal(signal.SIGINT)
        sweep.wait()
    finally:
        sweep.kill()
    assert sweep.returncode == 130, said.read_text()
    runs = client().search_runs([client().get_experiment_by_name("facelab").experiment_id])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert len(runs) > 1
    assert {trial.state for trial in TrialTable(str(tmp_path / "s" / "table")).trials} == {State.WAITING}
    assert not any(run.data.tags.get("state") == "stopped" for run in runs)


def test_a_stopped_trial_is_ranked_among_those_that_said_something_by_then(tmp_path):
    """Of one that was gone on with after a crash, what it said before may be lost."""
    table = TrialTable(str(tmp_path))
    for curve in ([(10, 3.0)], [(10, 1.0), (20, 1.0)], [(20, 0.5)]):
        table.add({"weights.beta": curve[0][1]}, 0).curve = curve
    watch = _Watch(table, rules("asha"), str, lambda: None)
    assert watch._rank(table.trials[0]) == "rank 2 of 2 at step 10 (fd 3): ASHA keeps one in 2"


@pytest.mark.slow
def test_trials_with_workers_of_their_own_do_not_wait_for_each_other(ray_local, tmp_path, hr_folder, lr_folder):
    """Two Ray Train runs on two cores, under ASHA: drivers that hold a CPU would keep each other waiting for ever."""
    config = build(
        SweepConfig, preset="debug", hr=str(hr_folder), lr=str(lr_folder), output=str(tmp_path), search="grid",
        space=("weights.beta=0.1,0.2",), max_steps=28, grace_steps=14, reduction=2,
    )  # fmt: skip
    summary = SWEEP.run(config)
    assert (config.workers, summary["n_trials"], summary["n_failed"]) == (1, 2, 0)
    assert (summary["n_done"] >= 1, summary["n_done"] + summary["n_stopped"]) == (True, 2)
    assert {run.data.metrics["world_size"] for run in runs_below(summary["mlflow_run_id"])} == {1}


@pytest.mark.chaos
def test_a_sweep_that_is_killed_twice_accounts_for_every_trial(tmp_path):
    """Twelve trials with ASHA. The driver dies without a word, twice, in the middle of trials; the same command goes on:
    no trial is lost, none is done twice, and no run is left RUNNING."""
    hr, lr = write_faces(tmp_path / "hr", 40), write_faces(tmp_path / "lr", 40, first=1000, low=True)
    options = ["--points", "12", "--max-steps", "20", "--grace-steps", "8", "--reduction", "2", "--workers", "0"]
    options += ["--hr", str(hr), "--lr", str(lr)]
    command = [*COMMAND, *options, "--output", str(tmp_path / "s")]

    def table() -> list[Trial]:
        return TrialTable(str(tmp_path / "s" / "table")).trials

    def ended() -> dict[str, State]:
        return {trial.name: trial.state for trial in table() if trial.state in ENDED}

    def stamp(name: str) -> int:
        return (tmp_path / "s" / "trials" / name / "summary.json").stat().st_mtime_ns

    before: dict[str, State] = {}
    written: dict[str, int] = {}
    for wanted in (2, 5):
        with (tmp_path / f"log-{wanted}").open("w") as log:
            sweep = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
            try:
                while len(ended()) < wanted and sweep.poll() is None:
                    time.sleep(0.2)
                assert sweep.poll() is None, (tmp_path / f"log-{wanted}").read_text()[-3000:]
            finally:
                sweep.kill()
                sweep.wait()
        now = ended()
        assert before.items() <= now.items()
        written |= {name: stamp(name) for name in now if now[name] is State.DONE}
        before = now
    assert len(before) < 12
    last = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr[-3000:]

    trials = table()
    assert len(trials) == 12
    assert {trial.state for trial in trials} == {State.DONE, State.STOPPED}
    assert before.items() <= ended().items()
    assert {name: stamp(name) for name in written} == written
    assert all(trial.reason for trial in trials if trial.state is State.STOPPED)
    assert {trial.steps for trial in trials if trial.state is State.DONE} == {20}
    runs = client().search_runs([client().get_experiment_by_name("facelab").experiment_id], max_results=1000)
    assert "RUNNING" not in {run.info.status for run in runs}
    (parent,) = (run for run in runs if run.data.tags["job"] == "sweep")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["n_trials"] == 12
    assert parent.data.metrics["n_done"] + parent.data.metrics["n_stopped"] == 12
    kept = {
        trial.name: json.loads((tmp_path / "s" / "trials" / trial.name / "run.json").read_text())["run_id"]
        for trial in trials
    }
    status = {run.info.run_id: run.info.status for run in runs}
    wanted = {State.DONE: "FINISHED", State.STOPPED: "KILLED"}
    assert {name: status[run_id] for name, run_id in kept.items()} == {t.name: wanted[t.state] for t in trials}
