"""A training in this process that meets trouble: numbers that are not finite, a store or a disk that fails, a signal, other
data under the same name."""

import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import torch
from conftest import ROOT, Notes, dies_after, write_faces
from facelab import storage
from facelab.config import build
from facelab.data.owner import Owner
from facelab.errors import StoreError, UsageError
from facelab.trained import checkpoint, store
from facelab.training import ray_train, saving
from facelab.training.context import LocalContext
from facelab.training.job import TRAIN_SR
from facelab.training.launch import run_training
from facelab.training.loop import train
from facelab.training.pace import Pace
from facelab.training.saving import Saver
from facelab.training.sr import SRObjective, TrainSRConfig
from facelab.training.update import NonFiniteLoss
from facelab.training.worker import load_stage
from ray.exceptions import RayActorError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from safetensors.torch import load_file


def config_of(hr, out, **values) -> TrainSRConfig:
    return build(TrainSRConfig, **{"preset": "debug", "hr": str(hr), "output": str(out), "model": "srcnn"} | values)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.fixture
def poisoned(monkeypatch):
    """The loss of these calls of the objective is nan."""
    calls: list[int] = []
    bad: set[int] = set()
    forward = SRObjective.forward

    def poison(self, *inputs):
        losses = forward(self, *inputs)
        calls.append(1)
        return losses._replace(total=losses.total * math.nan) if len(calls) in bad else losses

    monkeypatch.setattr(SRObjective, "forward", poison)
    return bad


def test_an_update_that_is_not_finite_is_left_out_and_counted(tmp_path, hr_folder, poisoned):
    """The others are made; and a run that is resumed has the same weights and the same count."""
    poisoned |= {3, 8}
    notes = Notes()
    run_training(config_of(hr_folder, tmp_path / "whole", max_steps=20), lambda: notes)
    assert notes.values["skipped_updates"] == [(20, 2)]
    assert [step for step, value in notes.values["train/gradient_norm"] if not math.isfinite(value)] == [3, 8]
    poisoned.clear()
    poisoned |= {20 + 3, 20 + 8}
    with dies_after(5), pytest.raises(KeyboardInterrupt):
        run_training(config_of(hr_folder, tmp_path / "parts", max_steps=20, checkpoint_every=5), Notes)
    notes = Notes()
    run_training(config_of(hr_folder, tmp_path / "parts", max_steps=20, resume=True), lambda: notes)
    assert notes.values["skipped_updates"] == [(20, 2)]
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


def test_too_many_of_them_end_the_run_and_nothing_of_them_is_saved(tmp_path, hr_folder, poisoned):
    poisoned |= set(range(11, 100))
    with pytest.raises(NonFiniteLoss, match=r"updates had a gradient that is inf or nan, .*--redraw 1"):
        run_training(config_of(hr_folder, tmp_path, max_steps=40, checkpoint_every=10), Notes)
    saved = checkpoint.newest(str(tmp_path / "checkpoints"))
    assert saved is not None
    assert (saved.step, saved.skipped) == (10, 0)
    assert not (tmp_path / "model").exists()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, hr_folder, monkeypatch):
    config = config_of(hr_folder, tmp_path)
    stage = load_stage(config, progress=False)
    step = stage.step

    def breaks(number, update):
        terms = step(number, update)
        if number == config.max_steps - 1:
            with torch.no_grad():
                next(stage.networks.parameters()).fill_(math.inf)
        return terms

    monkeypatch.setattr(stage, "step", breaks)
    with pytest.raises(NonFiniteLoss, match=r"main\..* is inf or nan and not saved"):
        train(stage, config, LocalContext(show_progress=False), Notes())
    assert checkpoint.newest(str(tmp_path / "checkpoints")) is None


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_with_its_scale(tmp_path, hr_folder, precision):
    options = {"compute": {"precision": precision}, "hr_size": 16, "batch_size": 2}  # slow on a CPU
    options |= {"max_steps": 8, "checkpoint_every": 4, "validation_images": 2}
    run_training(config_of(hr_folder, tmp_path / "whole", **options), Notes)
    with dies_after(4), pytest.raises(KeyboardInterrupt):
        run_training(config_of(hr_folder, tmp_path / "parts", **options), Notes)
    run_training(config_of(hr_folder, tmp_path / "parts", **options, resume=True), Notes)
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    scaler = checkpoint.newest(str(tmp_path / "parts" / "checkpoints")).optimisers["scaler"]
    assert bool(scaler) == (precision == "fp16")


def test_what_resumes_must_be_the_same_training(tmp_path, hr_folder):
    """Another seed, batch size, or other faces at the same place would go on as if nothing had changed."""
    faces = write_faces(tmp_path / "faces", 40)
    run_training(config_of(faces, tmp_path / "out"), Notes)
    for values in ({"seed": 1}, {"batch_size": 8}):
        name = next(iter(values)).replace("_", "-")
        with pytest.raises(UsageError, match=f"was begun with --{name}"):
            run_training(config_of(faces, tmp_path / "out", max_steps=6, resume=True, **values), Notes)
    write_faces(tmp_path / "faces", 1, first=50)
    with pytest.raises(UsageError, match="was begun with images"):
        run_training(config_of(faces, tmp_path / "out", max_steps=6, resume=True), Notes)


def test_the_best_network_is_written_when_it_changes_and_kept_beside_the_last(tmp_path, hr_folder):
    """One file for all checkpoints that share it; gone with the last of them; a checkpoint folder is a model, too."""
    place = tmp_path / "checkpoints"
    config = config_of(hr_folder, tmp_path, batch_size=27, max_steps=6, checkpoint_every=1, keep_checkpoints=3)
    found = run_training(config, Notes)
    assert [folder.name for folder in sorted(place.glob("step-*"))] == [
        "step-000000004",
        "step-000000005",
        "step-000000006",
    ]
    metas = [json.loads(file.read_text()) for file in sorted(place.glob("*/meta.json"))]
    named = {meta["best_sha256"][:16] for meta in metas}
    assert {file.stem.removeprefix("best-") for file in place.glob("best-*")} == named
    assert len(named) == len({meta["best"]["step"] for meta in metas})
    newest = checkpoint.newest(str(place))
    assert_equal(newest.best_network, weights_of(tmp_path))
    assert store.load_model(str(place / "step-000000006"), "sr").digest == found["model_sha256"]


def test_a_foreign_checkpoint_is_passed_over(tmp_path, hr_folder, capsys):
    """Files of another run under this one's name, another program's, and a best network that was changed."""
    for name in ("own", "other"):
        seed = {"own": 0, "other": 1}[name]
        run_training(config_of(hr_folder, tmp_path / name, seed=seed, checkpoint_every=2), Notes)
    place = tmp_path / "own" / "checkpoints"
    for file in ("networks.safetensors", "optimisers.pt"):
        (place / "step-000000004" / file).write_bytes(
            (tmp_path / "other" / "checkpoints" / "step-000000004" / file).read_bytes()
        )
    (place / "step-000000009").mkdir()
    (place / "step-000000009" / "meta.json").write_text('{"step": 9, "of": "another program"}')
    assert checkpoint.newest(str(place)).step == 2
    said = capsys.readouterr().err
    assert "step-000000009: no checkpoint of this version of facelab" in said
    assert "step-000000004/networks.safetensors: damaged checkpoint" in said
    for best in place.glob("best-*"):
        best.write_bytes(best.read_bytes()[:-1])
    assert checkpoint.newest(str(place)).step == 2  # from before the first validation, so it has no best


class Failing:
    """Writes that fail so many times, as a store's, or as a disk's that is full."""

    def __init__(self, monkeypatch, times: int, error: Exception):
        self.left, self.error, self.write = times, error, storage.write_bytes
        monkeypatch.setattr(storage, "write_bytes", self)

    def __call__(self, uri, data):
        if self.left and "networks" in uri:
            self.left -= 1
            raise self.error
        self.write(uri, data)


def snapshot(step: int) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(step, {"a": torch.full((2,), float(step))}, {})


def test_a_store_that_is_away_is_tried_again_with_what_is_newest(tmp_path, monkeypatch, capsys):
    """Of those that came meanwhile, the last is written; what is told with each, once, and in order."""
    monkeypatch.setattr(saving, "_PAUSES", (0.05,))
    monkeypatch.setattr(checkpoint, "place_of", lambda place, step: str(tmp_path / f"step-{step}"))
    monkeypatch.setattr(checkpoint, "prune", lambda place, keep: None)
    failing, told, waits = Failing(monkeypatch, 3, StoreError("the store is away")), [], threading.Event()
    with Saver("s3://bucket/checkpoints", 2, print) as saver:
        for step in (1, 2, 3):
            saver.save(snapshot(step), lambda step=step: told.append(step))
            waits.wait(0.02)
        saver.wait()
        assert told == [1, 2, 3]
    assert failing.left == 0
    assert checkpoint.read(str(tmp_path / "step-3")).step == 3
    said = capsys.readouterr().out
    assert "the store is away; the training goes on, again in" in said
    assert "checkpoint of step 3: written now" in said


def test_a_store_that_stays_away_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_PAUSES", (0.01,))
    monkeypatch.setattr(saving, "PATIENCE_S", 0.05)
    Failing(monkeypatch, 10**9, StoreError("the store is away"))
    with pytest.raises(StoreError, match="the store is away"), Saver("s3://bucket/checkpoints", 2, print) as saver:
        saver.save(snapshot(1), lambda: None)
    saver = Saver("s3://bucket/checkpoints", 2, print)
    saver.save(snapshot(1), lambda: None)
    with pytest.raises(StoreError, match="the store is away"):
        saver.wait()


def test_a_full_disk_is_said_and_the_last_checkpoint_is_whole(tmp_path, hr_folder, monkeypatch):
    """At once; the command's next try goes on from there."""
    whole = config_of(hr_folder, tmp_path / "whole", max_steps=8)
    run_training(whole, Notes)
    config = config_of(hr_folder, tmp_path / "parts", max_steps=8, checkpoint_every=4)
    write = storage.write_bytes

    def fills(uri, data):
        with storage.explained(uri):
            if "step-000000008" in uri:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(uri, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", fills)
        with pytest.raises(StoreError, match=r"step-000000008.*the disk is full: free some space"):
            run_training(config, Notes)
    assert checkpoint.newest(str(tmp_path / "parts" / "checkpoints")).step == 4
    run_training(config.model_copy(update={"resume": True}), Notes)
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))


class Clock:
    """Stands for the module `time`, and moves by hand."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_checkpoints_are_minutes_apart_whatever_a_step_takes(tmp_path, hr_folder, monkeypatch):
    """And the look at the clock is some seconds apart, not every step."""
    clock = Clock()
    monkeypatch.setattr("facelab.training.pace.time", clock)
    for seconds, looks_at_most in ((0.01, 140), (1.0, 130), (20.0, 31)):
        config = config_of(hr_folder, tmp_path, checkpoint_minutes=2)
        pace, saves, looks = Pace(LocalContext(), config, 0, print), [], 0
        start = clock.now
        for step in range(1, int(600 / seconds) + 1):
            clock.now += seconds
            if pace.is_due(step):
                looks += 1
                if pace.look(step).save:
                    saves.append(clock.now - start)
                    pace.saved()
        assert len(saves) == (4 if seconds < 20 else 5)
        gaps = [b - a for a, b in zip([0, *saves], saves, strict=False)]
        assert all(120 <= gap <= 120 + max(20, seconds) for gap in gaps), gaps
        assert looks <= looks_at_most


def test_a_notice_makes_one_checkpoint(tmp_path, hr_folder, capsys):
    class Noticed(LocalContext):
        said = ""

        def notice(self):
            return self.said

    context = Noticed()
    pace = Pace(context, config_of(hr_folder, tmp_path), 0, print)
    assert not pace.look(1).save
    context.said = "nodes a will be taken away"
    assert [pace.look(2).save, pace.look(3).save] == [True, False]
    context.said = "nodes a, b will be taken away"
    assert [pace.look(4).save, pace.look(5).save] == [True, False]
    said = capsys.readouterr().out.splitlines()
    assert said == ["nodes a will be taken away: checkpoint now", "nodes a, b will be taken away: checkpoint now"]


@pytest.mark.chaos
def test_a_terminated_training_saves_first_and_goes_on_bit_for_bit(tmp_path, hr_folder):
    """SIGTERM (of a stopped job, an evicted pod, a spot node) at any moment, without a checkpoint before: what was trained
    is kept, and the run KILLED."""
    values = {"model": "srcnn", "validation_images": 2, "batch_size": 27}
    options = ["--preset", "debug", "--hr", str(hr_folder), "--output", str(tmp_path / "parts"), "--max-steps", "9999"]
    options += [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    command = [sys.executable, "-m", "jobs.train_sr", *options, "--tracking-uri", uri]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # another number sums in another order
    job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | threads)
    assert job.stderr is not None
    shown = ""
    while "epoch" not in shown:  # of the progress bar
        read = job.stderr.read(1)
        assert read, shown
        shown += read
    job.send_signal(signal.SIGTERM)
    said = job.communicate()[1]
    assert job.returncode == 143, said
    assert re.search(r"\[train_sr parts, rank 0 of 1, step (\d+)\] told to end: saved at step \1 of 9999", said), said
    assert "Traceback" not in said
    client = mlflow.MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("facelab").experiment_id])
    assert [run.info.status for run in runs] == ["KILLED"]
    step = checkpoint.newest(str(tmp_path / "parts" / "checkpoints")).step
    assert 0 < step < 9999
    for out, resume in (("parts", True), ("whole", False)):
        run_training(config_of(hr_folder, tmp_path / out, max_steps=step + 2, resume=resume, **values), Notes)
    whole, parts = (checkpoint.newest(str(tmp_path / name / "checkpoints")) for name in ("whole", "parts"))
    own = [name for name in whole.networks if name.startswith("networks.")]
    assert_equal({name: whole.networks[name] for name in own}, {name: parts.networks[name] for name in own})


def test_a_batch_of_each_worker_comes_with_its_rate(tmp_path, hr_folder):
    """Four times the batch: four times the rate for SGD, twice for Adam; the batch of a run does not change with the
    workers that it has at a time."""
    for optimiser, rate in (("sgd", 4e-4), ("adam", 2e-4)):
        values = {"optimiser": {"name": optimiser}, "learning_rate": 1e-4, "batch_size": 4, "workers": 2}
        config = config_of(hr_folder, tmp_path, batch_per_worker=8, **values)
        assert (config.images_per_update, config.rate) == (16, pytest.approx(rate))
        alone = config_of(hr_folder, tmp_path, **values)
        assert (alone.images_per_update, alone.rate) == (4, 1e-4)
    with pytest.raises(UsageError, match="no multiple of 3 workers"):
        config_of(hr_folder, tmp_path, batch_size=16, workers=4, min_workers=2)
    with pytest.raises(UsageError, match="min_workers 3 is more than --workers 2"):
        config_of(hr_folder, tmp_path, workers=2, min_workers=3)


def test_time_is_accounted_for(tmp_path, hr_folder):
    notes = Notes()
    run_training(config_of(hr_folder, tmp_path), lambda: notes)
    system = {name.removeprefix("system/"): values[-1][1] for name, values in notes.values.items() if "system/" in name}
    assert system.keys() == {"data_wait_share", "cpu_percent", "memory_gib", "step_seconds_p50", "step_seconds_p95"}
    assert 0 <= system["data_wait_share"] <= 1
    assert 0.05 < system["memory_gib"] < 20
    assert 0 < system["step_seconds_p50"] <= system["step_seconds_p95"]
    assert notes.values["world_size"] == [(4, 1)]


def test_one_update_that_is_not_finite_ends_no_run_that_saves_each_step(tmp_path, hr_folder, poisoned):
    poisoned |= {3}
    notes = Notes()
    run_training(config_of(hr_folder, tmp_path, max_steps=6, checkpoint_every=1), lambda: notes)
    assert notes.values["skipped_updates"][-1] == (6, 1)


def test_what_a_dead_writer_left_of_a_checkpoint_is_deleted(tmp_path, hr_folder, monkeypatch, capsys):
    """With the next one; a store that does not delete ends no training."""
    place = tmp_path / "checkpoints" / "step-000000003"
    place.mkdir(parents=True)
    (place / "networks.safetensors").write_bytes(b"half")
    config = config_of(hr_folder, tmp_path, max_steps=8, checkpoint_every=4)
    run_training(config, Notes)
    assert sorted(folder.name[-1] for folder in (tmp_path / "checkpoints").glob("step-*")) == ["4", "8"]

    def refuses(uri):
        raise StoreError(f"{uri}: may not be deleted")

    monkeypatch.setattr(checkpoint.storage, "delete", refuses)
    run_training(config.model_copy(update={"resume": True, "max_steps": 12}), Notes)
    assert checkpoint.newest_step(str(tmp_path / "checkpoints")) == 12
    assert "older checkpoints could not be deleted" in capsys.readouterr().err


def test_a_training_has_its_output_for_itself(tmp_path, hr_folder):
    config = config_of(hr_folder, tmp_path)
    with Owner(str(tmp_path)), pytest.raises(UsageError, match="is writing there: wait for it"):
        TRAIN_SR.run(config)
    assert TRAIN_SR.run(config)["steps"] == config.max_steps
    assert not (tmp_path / "owner.json").exists()


def test_who_searches_is_told_once_all_is_written(tmp_path, hr_folder):
    """As the search may end the training there."""
    found = []

    def report(values: dict[str, float]) -> None:
        found.append((values["step"], checkpoint.newest_step(str(tmp_path / "checkpoints"))))

    run_training(config_of(hr_folder, tmp_path, batch_size=27, max_steps=5), Notes, report=report)
    assert len(found) > 1
    assert [step for step, _ in found] == [saved for _, saved in found]


class Fits:
    """Stands for the trainer: fails in these ways, one after another, then ends well."""

    def __init__(self, *failures: Exception):
        self.failures, self.tries = list(failures), 0

    def __call__(self, *_: object) -> "Fits":
        return self

    def fit(self) -> SimpleNamespace:
        self.tries += 1
        if self.failures:
            raise self.failures.pop(0)
        return SimpleNamespace(return_value=None)


def test_which_losses_of_workers_are_survived(tmp_path, hr_folder, monkeypatch):
    """A lost node or controller, some times without a newer checkpoint; a store that is away, for half an hour; never what
    a restart would meet again, though one worker alone met it."""
    config = config_of(hr_folder, tmp_path, workers=2)
    monkeypatch.setattr(ray_train, "_PAUSE_S", 0)

    def fit(*failures: Exception) -> Fits:
        fits = Fits(*failures)
        monkeypatch.setattr(ray_train, "_trainer", fits)
        ray_train._fit(config, Notes, [], use_gpu=False)
        return fits

    away = WorkerGroupError("", {1: StoreError("the store is away")})
    assert fit(ControllerError(RuntimeError("no node")), RayActorError()).tries == 3
    assert fit(*[away] * 5).tries == 6
    with pytest.raises(ControllerError) as raised:
        fit(*[ControllerError(RuntimeError("no node"))] * 3)
    assert raised.value.__cause__ is not raised.value  # who looks for a cause comes to an end
    with pytest.raises(UsageError, match="damaged shard"):
        fit(WorkerGroupError("", {0: RuntimeError("gone"), 1: UsageError("damaged shard")}))
    monkeypatch.setattr(ray_train, "PATIENCE_S", 0)
    with pytest.raises(StoreError, match="the store is away"):
        fit(*[away] * 3)


def test_patience_for_a_start_is_of_one_training(tmp_path, hr_folder, monkeypatch):
    """Not of the next one in this process; what the user set stays."""
    name, seen = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", []

    class Looks(Fits):
        def fit(self) -> SimpleNamespace:
            seen.append(os.environ[name])
            return super().fit()

    def fit(**values) -> None:
        monkeypatch.setattr(ray_train, "_trainer", Looks())
        ray_train._fit(config_of(hr_folder, tmp_path, workers=2, **values), Notes, [], use_gpu=False)

    monkeypatch.delenv(name, raising=False)
    fit()
    fit(min_workers=1)
    assert name not in os.environ
    monkeypatch.setenv(name, "7")
    fit()
    assert (seen, os.environ[name]) == (["900", "30", "7"], "7")


def test_elastic_workers_need_room_for_the_fewest(tmp_path, hr_folder, monkeypatch):
    monkeypatch.setattr(ray_train, "room", lambda: {"CPU": 2.0})
    monkeypatch.setattr("facelab.cluster.room", lambda: {"CPU": 2.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert ray_train._enough(config_of(hr_folder, tmp_path, batch_size=12, workers=4, min_workers=2)) is False
    with pytest.raises(UsageError, match="--workers 4 needs 4 CPUs, but this machine has 2"):
        ray_train._enough(config_of(hr_folder, tmp_path, batch_size=12, workers=4))
