"""What MLflow is told of a run, in the words that its pages show: kind, source, commit, data sets, parameters, note."""

import json
import os
import subprocess

import mlflow
import pytest
from conftest import ROOT, write_set
from facelab import version
from facelab.config import build, changes
from facelab.data.faces import face_row
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import EVALUATE
from facelab.tracking.description import note, params_of, tags_of
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.job import TRAIN_SR
from facelab.training.sr import TrainSRConfig


def config_of(**values) -> TrainSRConfig:
    return build(TrainSRConfig, **{"preset": "debug", "model": "srcnn", "hr": "/hr", "output": "/o/name"} | values)


@pytest.fixture
def client() -> mlflow.MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return mlflow.MlflowClient(uri, registry_uri=uri)  # else that of the test before


@pytest.fixture
def fresh():
    """What was asked of git before is forgotten, and what a test makes it say afterwards."""
    version.commit.cache_clear()
    yield
    version.commit.cache_clear()


def test_settings_are_what_decides_the_result():
    """Neither where it goes nor how often it is saved, no options of networks that are not trained, nor of a
    discriminator that is not there."""
    base = config_of()
    other = {"output": "/p", "checkpoint_minutes": 1, "resume": True, "experiment": "e", "register_as": "n"}
    assert config_of(**other, compute={"max_failures": 9}, rdn={"size": "A"}).settings() == base.settings()
    assert not {"rdn.size", "adversarial.weight", "output", "preset", "cache_folder"} & base.settings().keys()
    for changed in (
        {"seed": 1},
        {"learning_rate": 0.5},
        {"hr": "/other"},
        {"srcnn": {"init": "paper"}},
        {"workers": 2},
    ):
        assert config_of(**changed).settings() != base.settings()
    assert "adversarial.weight" in config_of(model="srgan").settings()
    evaluation = {"model": "bicubic", "test": "/t", "output": "/o"}
    one, two = (build(EvaluateConfig, **evaluation, actors=n, batch_size=n) for n in (1, 2))
    assert one.settings() == two.settings()


def test_changes_are_those_of_the_preset():
    assert changes(config_of()) == {"hr": (None, "/hr")}
    own = config_of(max_steps=9, optimiser={"decay_at": (0.1,)}, seed=3)
    assert changes(own) == {
        "seed": (0, 3),
        "hr": (None, "/hr"),
        "max_steps": (4, 9),
        "optimiser.decay_at": ([], [0.1]),
    }
    weights = {"hr": "/hr", "lr": "/lr", "output": "/o", "preset": "mini", "weights": {"beta": 0.5}}
    found = changes(build(TrainDegraderConfig, **weights))
    assert found.keys() == {"weights.beta"}


def test_a_note_shows_changes_and_pictures():
    text = note("train_sr", config_of(hr="s3://b/a|b", max_steps=9), {"grid.png": "get-artifact?path=grid.png"})
    assert text.splitlines() == [
        "**train_sr**, preset debug, seed 0", "", "| option | debug | here |", "|---|---|---|",
        "| max_steps | 4 | 9 |", "| hr | – | s3://b/a\\|b |", "", "![grid.png](get-artifact?path=grid.png)", "", "grid.png",
    ]  # fmt: skip


def test_the_commit_is_gits_and_of_a_submitted_job_what_its_submission_told(monkeypatch, fresh, tmp_path):
    tags = tags_of("train_sr", config_of())
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("jobs/train_sr.py", "LOCAL")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert tags.get("mlflow.source.git.commit") == (head.stdout.strip() or None)
    monkeypatch.setattr(version, "_ROOT", tmp_path)  # an upload without .git
    version.commit.cache_clear()
    assert not [tag for tag in tags_of("train_sr", config_of()) if "git" in tag]
    assert version.git_sha() == "unknown"
    told = version.Commit("0123456789abcdef", "main", True, "https://me:hunter2@host/x.git").metadata()
    metadata = {"job_submission_id": "job-1", "dashboard": "http://d"} | told
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": metadata}))
    version.commit.cache_clear()
    tags = tags_of("train_sr", config_of())
    assert {tag.rpartition(".")[2]: value for tag, value in tags.items() if ".git." in tag} == {
        "commit": "0123456789abcdef", "branch": "main", "dirty": "true", "repoURL": "https://***@host/x.git",
    }  # fmt: skip
    assert (tags["mlflow.source.type"], tags["ray_submission_id"]) == ("JOB", "job-1")
    assert version.git_sha() == "0123456789ab+"


def test_an_experiment_opens_as_a_table_of_runs(client, hr_folder, tmp_path):
    """Also one that was made by hand; a kind that somebody chose stays."""
    for name, tags in (("by-hand", None), ("chosen", {"mlflow.experimentKind": "finetuning"})):
        client.create_experiment(name, tags=tags)
    for name, kind in (
        ("facelab", "custom_model_development"),
        ("by-hand", "custom_model_development"),
        ("chosen", "finetuning"),
    ):
        TRAIN_SR.run(config_of(hr=str(hr_folder), output=str(tmp_path / name), experiment=name, max_steps=1))
        assert client.get_experiment_by_name(name).tags["mlflow.experimentKind"] == kind


def test_a_run_has_its_data_sets_its_models_metrics_and_a_picture(client, hr_folder, tmp_path):
    """The digest of shards is their manifest's; of a folder, that of the rows that were read."""
    rows = [face_row(file.name, file.read_bytes(), "drawn") for file in sorted(hr_folder.iterdir())]
    manifest = write_set(str(tmp_path / "shards"), "faces", rows)
    runs = []
    for name, hr in (("of-folder", hr_folder), ("of-shards", tmp_path / "shards")):
        summary = TRAIN_SR.run(config_of(hr=str(hr), output=str(tmp_path / name)))
        runs.append((client.get_run(summary["mlflow_run_id"]), summary))
    for (run, summary), digest in zip(runs, (runs[0][1]["hr_hash"], manifest.hash[:16]), strict=True):
        (given,) = run.inputs.dataset_inputs
        assert given.dataset.digest == digest
        assert json.loads(given.dataset.profile) == {"num_rows": 60}
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "hr")]
        name, version_ = summary["registered_model"].removeprefix("models:/").split("/")
        model = client.get_logged_model(client.get_model_version(name, version_).source.removeprefix("models:/"))
        assert model.source_run_id == run.info.run_id
        assert {m.key: m.value for m in model.metrics}["best/psnr_rgb"] == summary["best_psnr_rgb"]
        shown = run.data.tags["mlflow.note.content"]
        assert f"](get-artifact?path=samples/epoch-0001.png&run_uuid={run.info.run_id})" in shown
        assert len(run.data.params) < 40
        assert run.data.params.keys() == params_of(config_of()).keys()
    folder, shards = (json.loads(run.inputs.dataset_inputs[0].dataset.source)["uri"] for run, _ in runs)
    assert (folder, shards) == (str(hr_folder), str(tmp_path / "shards"))
    sets = {"test": str(hr_folder), "real": str(hr_folder), "reference": str(tmp_path / "shards")}
    done = EVALUATE.run(build(EvaluateConfig, preset="debug", model="bicubic", output=str(tmp_path / "e"), **sets))
    run = client.get_run(done["mlflow_run_id"])
    assert {each.tags[0].value for each in run.inputs.dataset_inputs} == {"test", "real", "reference"}
    assert {each.dataset.digest for each in run.inputs.dataset_inputs} >= {manifest.hash[:16]}
    assert "![grid.png]" in run.data.tags["mlflow.note.content"]
