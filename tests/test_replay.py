"""A recorded run once more, from what MLflow has of it: trainings, evaluations and pairs are the same to the last bit;
what has changed since is refused, and a result that differs is told."""

import json
import os
import shutil

import mlflow
import pytest
import yaml
from conftest import save_degrader, write_faces, write_set
from facelab.config import build
from facelab.data.faces import face_row
from facelab.data.prepare import PREPARE, PrepareConfig
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import EVALUATE
from facelab.experiments import replay as module
from facelab.experiments.replay import JOBS, REPLAY, Difference, ReplayConfig, differences
from facelab.synthesis.job import SYNTHESIZE, SynthesizeConfig
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR
from facelab.training.sr import TrainSRConfig


@pytest.fixture
def client() -> mlflow.MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return mlflow.MlflowClient(uri, registry_uri=uri)


@pytest.fixture
def faces(tmp_path):
    """A folder that a test may change."""
    return write_faces(tmp_path / "hr", 60)


def trained(hr, out, **values) -> dict:
    """A training of seconds, as its summary."""
    return TRAIN_SR.run(build(TrainSRConfig, preset="debug", model="srcnn", hr=str(hr), output=str(out), **values))


def replayed(summary: dict, out, **values) -> dict:
    return REPLAY.run(build(ReplayConfig, run=summary["mlflow_run_id"], output=str(out), **values))


def shards_of(folder, place):
    rows = [face_row(file.name, file.read_bytes(), str(folder)) for file in sorted(folder.iterdir())]
    write_set(str(place), "faces", rows)


def versions(client) -> int:
    return len(client.search_model_versions())


def test_a_training_is_the_same_to_the_last_bit(client, tmp_path, faces):
    """Wherever its output went, from MLflow alone: without a second version in the registry."""
    first = trained(faces, tmp_path / "t", seed=3, max_steps=6)
    for file in (tmp_path / "t").rglob("*.*"):
        file.unlink()
    again = replayed(first, tmp_path / "replay", require_same=True)
    assert (again["same"], again["n_different"], again["same_code"]) == (True, 0, True)
    assert again["n_results"] >= 8
    place = tmp_path / "replay" / first["mlflow_run_id"]
    assert json.loads((place / "summary.json").read_text())["model_sha256"] == first["model_sha256"]
    assert versions(client) == 1
    nested = client.get_run(again["replay"])
    assert nested.data.tags["replay_of"] == first["mlflow_run_id"]
    assert nested.data.tags["mlflow.parentRunId"] == again["mlflow_run_id"]
    assert client.get_run(again["mlflow_run_id"]).data.tags["same"] == "True"
    assert replayed(first, tmp_path / "replay")["same"]  # takes the place of the one before


@pytest.mark.slow
def test_a_degraders_training_is_the_same(tmp_path, hr_folder, lr_folder):
    values = {"preset": "debug", "hr": str(hr_folder), "lr": str(lr_folder), "output": str(tmp_path / "d")}
    first = TRAIN_DEGRADER.run(build(TrainDegraderConfig, **values))
    assert replayed(first, tmp_path / "replay")["same"]


@pytest.mark.slow
def test_an_evaluation_is_the_same_and_knows_its_model(tmp_path, faces):
    """Of a network by its folder and by its version; other weights in that folder are refused."""
    first = trained(faces, tmp_path / "t")
    for name, model in (("folder", str(tmp_path / "t")), ("version", first["registered_model"])):
        values = {"preset": "debug", "model": model, "test": str(faces), "output": str(tmp_path / name)}
        measured = EVALUATE.run(build(EvaluateConfig, **values))
        assert replayed(measured, tmp_path / "replay")["same"]
        if name == "folder":
            in_folder = measured
    other = trained(faces, tmp_path / "other", seed=1)
    for file in (tmp_path / "other" / "model").iterdir():
        file.replace(tmp_path / "t" / "model" / file.name)
    then, now = first["model_sha256"][:16], other["model_sha256"][:16]
    with pytest.raises(UsageError, match=f"--model .*: is not what it was: {then} then, {now} now"):
        replayed(in_folder, tmp_path / "replay")


@pytest.mark.slow
def test_pairs_are_the_same(ray_local, tmp_path, hr_folder, lr_folder):
    sets = {}
    for name, folder in (("hr", hr_folder), ("lr", lr_folder)):
        values = {"preset": "debug", "input": str(folder), "output": str(tmp_path / name)}
        prepared = PREPARE.run(build(PrepareConfig, **values))
        sets[name] = str(tmp_path / name)
    assert replayed(prepared, tmp_path / "replay")["same"]
    values = {"preset": "debug", "degrader": save_degrader(tmp_path / "d"), "output": str(tmp_path / "pairs")}
    first = SYNTHESIZE.run(build(SynthesizeConfig, **values, **sets))
    assert replayed(first, tmp_path / "replay")["same"]
    save_degrader(tmp_path / "d", seed=4)
    with pytest.raises(UsageError, match=r"--degrader .*: is not what it was"):
        replayed(first, tmp_path / "replay")


@pytest.mark.slow
def test_a_start_from_other_weights_is_refused(tmp_path, faces):
    start, other = (trained(faces, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 1)))
    assert start["model_sha256"] != other["model_sha256"]
    first = trained(faces, tmp_path / "t", init_from=str(tmp_path / "a"))
    assert first["init_from_sha256"] == start["model_sha256"]
    by_version = trained(faces, tmp_path / "v", init_from=start["registered_model"])
    assert replayed(by_version, tmp_path / "replay")["same"]
    for file in (tmp_path / "b" / "model").iterdir():
        file.replace(tmp_path / "a" / "model" / file.name)
    with pytest.raises(UsageError, match=r"--init-from .*: is not what it was"):
        replayed(first, tmp_path / "replay")


def test_other_data_is_refused_before_any_work(client, tmp_path, faces):
    """Of a folder and of shards; and what is gone."""
    shards_of(faces, tmp_path / "shards")
    of_folder, of_shards = trained(faces, tmp_path / "f"), trained(tmp_path / "shards", tmp_path / "s")
    write_faces(faces, 1, first=7000)
    shutil.rmtree(tmp_path / "shards")
    shards_of(faces, tmp_path / "shards")
    for summary in (of_folder, of_shards):
        with pytest.raises(UsageError, match=r"--hr .*: is not what it was: \w{16} then, \w{16} now"):
            replayed(summary, tmp_path / "replay")
    faces.rename(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=f"--hr {faces}: is not there any more: put back .*{of_folder['hr_hash']}"):
        replayed(of_folder, tmp_path / "replay")
    assert not (tmp_path / "replay" / of_folder["mlflow_run_id"]).exists()
    assert not client.search_runs(["1"], "tags.replay_of != ''")


@pytest.mark.slow
def test_other_images_of_an_evaluation_are_told_once_they_were_read(tmp_path, faces):
    """Their hash is of pixels: nobody knows it before."""
    values = {"preset": "debug", "model": "bicubic", "test": str(faces), "output": str(tmp_path / "e")}
    first = EVALUATE.run(build(EvaluateConfig, **values))
    write_faces(faces, 1, first=7000)
    with pytest.raises(UsageError, match=f"--test {faces}: is not what it was: {first['data_hash']} then"):
        replayed(first, tmp_path / "replay")


def test_other_code_is_refused_and_can_be_allowed(client, tmp_path, faces, monkeypatch, capsys):
    first = trained(faces, tmp_path / "t")
    client.set_tag(first["mlflow_run_id"], "mlflow.source.git.commit", "0123456789abcdef")
    client.set_tag(first["mlflow_run_id"], "mlflow.source.git.dirty", "true")
    monkeypatch.setattr(module, "code_hash", lambda: "f" * 64)
    with pytest.raises(
        UsageError, match=r"other code \(hash \w{16}\) than is here \(f{16}\): `git checkout 0123456789`"
    ):
        replayed(first, tmp_path / "replay")
    again = replayed(first, tmp_path / "replay", allow_other_code=True)
    assert (again["same"], again["same_code"]) == (True, False)
    assert f"all {again['n_results']} results are the same, with other code" in capsys.readouterr().out


@pytest.mark.slow
def test_another_result_is_told_number_by_number(client, tmp_path, faces, capsys):
    """As if the recorded run had come out otherwise; exit code 1 only if asked for."""
    first = trained(faces, tmp_path / "t")
    told = {name: value for name, value in first.items() if name != "n_hr"} | {"best_psnr_y": first["best_psnr_y"] + 1}
    client.log_text(first["mlflow_run_id"], json.dumps(told), "summary.json")
    again = replayed(first, tmp_path / "replay")
    assert (again["same"], again["n_different"]) == (False, 2)
    found = json.loads((tmp_path / "replay" / "differences.json").read_text())
    assert [each["name"] for each in found["differences"]] == ["best_psnr_y", "n_hr"]
    assert "-1" in next(line for line in capsys.readouterr().out.splitlines() if line.startswith("best_psnr_y"))
    options = [first["mlflow_run_id"], "--output", str(tmp_path / "replay")]
    assert REPLAY.main(options) == 0
    capsys.readouterr()
    assert REPLAY.main([*options, "--require-same"]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {first['mlflow_run_id']}: not the same: 2 of ")


def test_differences_are_exact_and_leave_out_what_is_no_result():
    then = {"psnr": 1.0, "n": 3, "hash": "a", "mlflow_run_id": "x", "train_seconds": 9.0, "inf": None}
    assert differences(then, then | {"mlflow_run_id": "y", "train_seconds": 8.0}) == []
    found = differences(then, then | {"psnr": 1.0 + 2**-52, "hash": "b", "new": 1})
    assert [(each.name, each.by) for each in found] == [("psnr", 2**-52), ("hash", None), ("new", None)]
    assert Difference("same", True, False).by is None


def test_what_cannot_be_replayed_is_refused(client, tmp_path, faces):
    run = client.create_run(client.create_experiment("e"), tags={"job": "report"})
    strange = client.create_run(run.info.experiment_id)
    for made, text in ((run, "is of jobs.report: give one of sample_faces, "), (strange, "is not of facelab")):
        with pytest.raises(UsageError, match=text):
            replayed({"mlflow_run_id": made.info.run_id}, tmp_path / "replay")
    first = trained(faces, tmp_path / "t", max_steps=2)
    again = trained(faces, tmp_path / "t", max_steps=4, resume=True)
    assert again["mlflow_run_id"] == first["mlflow_run_id"]
    with pytest.raises(UsageError, match=r"gone on with by other settings \(max_steps\)"):
        replayed(again, tmp_path / "replay")
    client.set_terminated(first["mlflow_run_id"], "FAILED")
    with pytest.raises(UsageError, match="is FAILED: give a FINISHED one"):
        replayed(first, tmp_path / "replay")
    with pytest.raises(UsageError, match="no such run at"):
        replayed({"mlflow_run_id": "0" * 32}, tmp_path / "replay")


def test_it_writes_into_none_of_the_inputs(tmp_path, faces):
    first = trained(faces, tmp_path / "t")
    with pytest.raises(UsageError, match=f"--hr {faces} are the same place, or one lies in the other"):
        replayed(first, faces / "replay")


def test_a_dry_run_touches_nothing(tmp_path, capsys):
    assert REPLAY.main(["abc", "--output", str(tmp_path / "o"), "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out.split("# plan")[0])["run"] == "abc"
    assert not (tmp_path / "o").exists()


def test_each_job_of_the_table_has_its_own_name():
    assert all(name == job.name for name, job in JOBS.items())
