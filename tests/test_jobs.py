"""Entry points as a user meets them: exit codes, one-line errors, the demo, real faces."""

import dataclasses
import json
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
import tyro
import yaml
from conftest import FACES, ROOT, save_degrader, trained_degrader, write_faces, write_set
from facelab.cluster import ray_session
from facelab.config import JobConfig, Uri, build, parse
from facelab.data.faces import face_row
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.tensors import load_faces, load_pairs
from facelab.errors import UsageError
from facelab.experiments.demo import (
    DEMO,
    OWN_ROW_STEPS,
    PRETRAIN_STEPS,
    ROW_STEPS,
    DemoConfig,
    comparisons,
    demo_steps,
)
from facelab.experiments.steps import Step, key_of, run_steps
from facelab.job import Job
from facelab.metrics import degradation_distances
from facelab.metrics.protocol import metric_names
from facelab.samples.sets import SampleFacesConfig, make_sample_sets
from facelab.synthesis.job import SYNTHESIZE
from facelab.training.config import TrainConfig

from models.resize import resize


def run(job: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", f"jobs.{job}", *arguments], capture_output=True, text=True, cwd=ROOT)


def job_of(file: Path) -> Job:
    """The one job that a file of jobs/ imports."""
    (found,) = (value for value in vars(import_module(f"jobs.{file.stem}")).values() if isinstance(value, Job))
    return found


ENTRIES = [file for file in sorted((ROOT / "jobs").glob("*.py")) if file.stem not in ("__init__", "submit")]
JOBS = [job_of(file) for file in ENTRIES]


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_help_explains_every_option(job, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(job.config, ["--help"], "job")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name, field in job.config.model_fields.items():
        positional = tyro.conf.Positional in field.metadata
        told = re.escape(" ".join(str(field.description).split()[:2]))
        shown = told if positional else rf"--(no-)?{name.replace('_', '-')}(?![\w-])"
        assert re.search(shown, text), name
        assert field.description, name


@pytest.mark.parametrize("file", ENTRIES, ids=lambda file: file.stem)
def test_an_entry_point_runs_the_job_of_its_name(file, monkeypatch, capsys):
    assert job_of(file).name == file.stem
    monkeypatch.setattr("sys.argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(file), run_name="__main__")
    assert stop.value.code == 0
    assert f"usage: jobs.{file.stem} " in capsys.readouterr().out


def test_wrong_input_is_exit_2_and_one_line(tmp_path):
    done = run("evaluate", "--model", "bicubic", "--test", str(tmp_path / "none"), "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {tmp_path}/none: not found")
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_wrong_input_found_by_a_ray_task_is_exit_2_and_one_line(ray_local, tmp_path, hr_folder, capsys):
    prepare(build(PrepareConfig, input=str(hr_folder), output=str(tmp_path / "hr")))
    shard = next((tmp_path / "hr").glob("part-*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")  # as large as it was
    arguments = ["--hr", str(tmp_path / "hr"), "--degrader", "bicubic", "--output", str(tmp_path / "out")]
    assert SYNTHESIZE.main(arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback"))]
    assert len(said) == 1
    assert "changed since" in said[0]


def test_failure_is_exit_1(tmp_path, capsys):
    def fail(config, run):
        raise RuntimeError("disk on fire")

    assert dataclasses.replace(DEMO, work=fail).main(["--output", str(tmp_path)]) == 1
    assert "jobs.demo failed: disk on fire" in capsys.readouterr().err


def test_a_ray_that_is_slow_to_start_is_started_once_more(monkeypatch, capsys):
    said = "The current node timed out during startup."
    errors = [Exception(said), None, Exception("no room"), Exception(said), Exception(said)]

    def init(**_):
        if (error := errors.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with ray_session():
        assert len(errors) == 3
    assert "did not start in 30 s; once more" in capsys.readouterr().err
    for text in ("no room", said):
        with pytest.raises(Exception, match=text), ray_session():
            pass
    assert not errors


def test_unreachable_tracker_is_exit_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert DEMO.main(["--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "cannot be reached" in error
    assert "secret" not in error


def test_demo_end_to_end(ray_local, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    config = build(
        DemoConfig,
        preset="debug",
        output=str(tmp_path),
    )
    summary = DEMO.run(config)
    truth, learnt = load_pairs(str(tmp_path / "faces" / "test")), load_pairs(str(tmp_path / "test_pairs"))
    for kind, images in (("learnt", learnt.lr), ("bicubic", resize(truth.hr, 16))):
        expected = degradation_distances(images, truth.lr)
        assert {name: summary[f"{name}_{kind}"] for name in expected} == pytest.approx(expected)
    assert summary["degradation_distance_floor"] < summary["degradation_distance_bicubic"]

    # The ceiling's pairs: the training faces, of the same splits, with LR of their own.
    sharp, true = load_faces(str(tmp_path / "faces" / "hr"), 64), load_pairs(str(tmp_path / "faces" / "true"))
    assert (true.ids, true.hr_ids, true.splits) == ([f"{i}#0" for i in sharp.ids], sharp.ids, sharp.splits)
    assert torch.equal(true.hr, sharp.images)
    assert summary["n_test"] == len(truth) == 8
    # What rows of the table are compared by, flat.
    for row in ("bicubic", "b", "classical", "s", "ceiling"):
        own = json.loads((tmp_path / "evaluation" / row / "summary.json").read_text())
        assert {f"{name}_{row}": own[name] for name in metric_names(own)}.items() <= summary.items()
    assert summary["s_minus_b_psnr_rgb"] == pytest.approx(summary["psnr_rgb_s"] - summary["psnr_rgb_b"])
    assert not [name for name in summary if name.endswith(("_low", "_high"))]  # of eight faces
    # Rows differ in nothing but their pairs.
    settings = [yaml.safe_load((tmp_path / "sr" / row / "config.yaml").read_text()) for row in ("b", "s", "ceiling")]
    differing = {key for key in settings[0] if len({str(values[key]) for values in settings}) > 1}
    assert differing == {"hr", "pairs", "output", "register_as"}
    pretrained = yaml.safe_load((tmp_path / "pretrained" / "config.yaml").read_text())
    assert settings[0]["init_from"] == pretrained["output"]

    page = (tmp_path / "report.html").read_text()
    # LR: sharp, bicubic, classical, learnt, true, real; SR: input, bicubic and four networks, with truth and without.
    assert page.count("data:image/png;base64") == 6 + 7 + 6
    assert page.count("<svg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # self-contained
    assert json.loads((tmp_path / "summary.json").read_text())["mlflow_run_id"] == summary["mlflow_run_id"]
    assert (tmp_path / "mlflow.db").exists()

    # Again, as if it had been interrupted in a training: that goes on, what came before stays.
    (tmp_path / "sr" / "s" / "summary.json").unlink()
    settings = tmp_path / "pairs" / "stylevae" / "config.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text())))  # the same, in another order
    before = (tmp_path / "pairs" / "stylevae" / "summary.json").stat().st_mtime_ns
    again = DEMO.run(config)
    kept = [name for name in summary if not name.startswith(("seconds", "mlflow"))]
    assert [again[name] for name in kept] == [summary[name] for name in kept]
    assert (tmp_path / "pairs" / "stylevae" / "summary.json").stat().st_mtime_ns == before


def test_the_demo_hands_its_gpus_to_its_trainings(tmp_path):
    for gpu in (None, False, True):
        steps = demo_steps(build(DemoConfig, output=str(tmp_path), gpu=gpu), "sqlite:///x")
        trainings = [step.config for step in steps if isinstance(step.config, TrainConfig)]
        assert [training.compute.gpu for training in trainings] == [gpu] * 6


def trainings(**values) -> dict[str, TrainConfig]:
    steps = demo_steps(build(DemoConfig, output="out", **values), "sqlite:///x")
    return {step.folder: step.config for step in steps if isinstance(step.config, TrainConfig)}


def test_the_demos_trainings_have_the_steps_of_its_preset():
    for preset in ("debug", "demo"):
        found = {folder: config.max_steps for folder, config in trainings(preset=preset).items()}
        rows = dict.fromkeys(("sr/b", "sr/classical", "sr/s", "sr/ceiling"), ROW_STEPS[preset])
        assert found == {"stylevae": found["stylevae"], "pretrained": PRETRAIN_STEPS[preset], **rows}
    paper = trainings(preset="paper")
    assert {(config.epochs, config.max_steps) for folder, config in paper.items() if folder != "stylevae"} == {
        (50, None)
    }
    assert {config.max_steps for config in trainings(preset="demo", max_steps=7).values()} == {7}


def test_of_own_faces_nobody_knows_the_ceiling():
    own = trainings(hr="a", lr="b", test="c", real="d")
    assert list(own) == ["stylevae", "pretrained", "sr/b", "sr/classical", "sr/s"]
    drawn = trainings()
    assert list(drawn) == [*own, "sr/ceiling"]
    demo = trainings(preset="demo", hr="a", lr="b", test="c", real="d")
    for row in ("sr/b", "sr/classical", "sr/s"):
        assert demo[row].max_steps == OWN_ROW_STEPS["demo"]
        assert drawn[row].watch.endswith("/out/faces/test")
        assert own[row].watch is None


def test_a_demo_compares_its_rows_image_by_image(tmp_path):
    """S has closed half of a gap of 2 dB; in SSIM the ceiling is below B, so that there is none."""
    config = build(DemoConfig, output=str(tmp_path))
    rng = np.random.default_rng(0)
    b, noise = rng.normal(25, 2, 60), rng.normal(0, 0.1, 60)
    values = {"B": (b, 0.5), "Classical": (b - 1, 0.5), "S": (b + 1 + noise, 0.6), "Ceiling": (b + 2, 0.4)}
    for row, (psnr, ssim) in values.items():
        columns = {"role": ["test"] * 60, "id": [f"{i}#0" for i in range(60)], "psnr_rgb": psnr, "ssim_y": [ssim] * 60}
        (tmp_path / "evaluation" / row.lower()).mkdir(parents=True)
        pq.write_table(pa.table(columns), tmp_path / "evaluation" / row.lower() / "per_image.parquet")
    distances = {"B": 10.0, "Classical": 9.0, "S": 7.0, "Ceiling": 6.0}
    together = 1 + rng.normal(0, 0.1, 10)  # groups of faces move all rows alike
    for row, value in distances.items():
        (tmp_path / "evaluation" / row.lower() / "jackknife.json").write_text(
            json.dumps({"fd_x": list(value * together)})
        )
    table = {row: {"lr_kind": "pairs", "fd_x": fd, "protocol_fd_x": ""} for row, fd in distances.items()}
    found = comparisons(config, table)
    assert found["gap_closed_psnr_rgb"] == pytest.approx(0.5 + noise.mean() / 2)
    assert (
        0.45
        < found["gap_closed_psnr_rgb_low"]
        < found["gap_closed_psnr_rgb"]
        < found["gap_closed_psnr_rgb_high"]
        < 0.55
    )
    assert found["gap_closed_fd_x"] == 0.75
    assert found["gap_closed_fd_x_low"] == pytest.approx(0.75)
    assert found["gap_closed_fd_x_high"] == pytest.approx(0.75)
    assert found["s_minus_b_fd_x_low"] < found["s_minus_b_fd_x"] == -3 < found["s_minus_b_fd_x_high"]
    assert found["s_minus_classical_fd_x"] == -2
    assert found["s_minus_classical_psnr_rgb"] == pytest.approx(2 + noise.mean())
    assert found["s_minus_b_psnr_rgb_low"] < found["s_minus_b_psnr_rgb"] < found["s_minus_b_psnr_rgb_high"]
    assert found["s_minus_b_ssim_y"] == pytest.approx(0.1)
    assert not [name for name in found if name.startswith("gap_closed_ssim")]

    (tmp_path / "evaluation" / "ceiling" / "jackknife.json").write_text(json.dumps({"fd_x": [*together[1:] * 6, 20.0]}))
    assert "gap_closed_fd_x_low" not in comparisons(config, table)  # without some faces there is no gap

    own = build(DemoConfig, output=str(tmp_path), hr="a", lr="b", test="c", real="d")
    left = comparisons(own, {row: numbers for row, numbers in table.items() if row != "Ceiling"})
    assert left == {name: value for name, value in found.items() if name.startswith("s_minus")}


class ToyConfig(JobConfig):
    PRESETS: ClassVar = {"paper": {}}
    value: int = 0
    source: Uri | None = None


def test_steps_of_other_settings_and_those_that_take_them_in_are_run_anew(tmp_path, monkeypatch):
    """b takes in a; c stands alone."""
    ran = []

    def work(config, run):
        ran.append(config.value)
        return {"value": config.value}

    toy = Job("toy", ToyConfig, work, plan=str)

    def steps(*values: int, **recorded: str) -> dict[str, int]:
        made = [Step(name, toy, build(ToyConfig, output=str(tmp_path / name), value=value, source=source, **recorded))
                for name, value, source in zip("abc", values, (None, str(tmp_path / "a"), None), strict=True)]  # fmt: skip
        return {folder: done.summary["value"] for folder, done in run_steps(made, parent="0" * 32).items()}

    assert steps(1, 2, 3) == {"a": 1, "b": 2, "c": 3}
    (tmp_path / "a" / "of an earlier setting").write_text("")
    assert steps(1, 2, 3) == {"a": 1, "b": 2, "c": 3}
    assert ran == [1, 2, 3]
    assert steps(1, 5, 3) == {"a": 1, "b": 5, "c": 3}
    assert ran == [1, 2, 3, 5]
    (tmp_path / "a" / "summary.json").unlink()  # interrupted
    assert steps(1, 5, 3) == {"a": 1, "b": 5, "c": 3}
    assert ran == [1, 2, 3, 5, 1]  # what comes out of a is what it was: b stands
    assert (tmp_path / "a" / "of an earlier setting").exists()  # gone on with, not begun anew
    assert steps(9, 5, 3) == {"a": 9, "b": 5, "c": 3}
    assert ran == [1, 2, 3, 5, 1, 9, 5]
    assert not (tmp_path / "a" / "of an earlier setting").exists()

    ran.clear()
    steps(9, 5, 3, experiment="another", tracking_uri=f"sqlite:///{tmp_path}/another.db")
    assert ran == []  # recorded elsewhere, but computed alike

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_terminated", interrupt)  # the very last that a step does
        with pytest.raises(KeyboardInterrupt):
            steps(8, 5, 3)
    assert steps(8, 5, 3) == {"a": 8, "b": 5, "c": 3}
    assert ran == [8, 5]  # what was made of the former a is not taken for this one's


def test_an_input_counts_by_what_it_holds_not_by_where_it_lies(tmp_path, hr_folder):
    toy = Job("toy", ToyConfig, lambda config, run: {}, plan=str)

    def key(source) -> str:
        return key_of(Step("t", toy, build(ToyConfig, output=str(tmp_path / "t"), source=str(source))))["key"]

    picture = (hr_folder / "0000.png").read_bytes()
    for name, identifier in (("one", "a"), ("two", "a"), ("other", "b")):
        write_set(str(tmp_path / name), "faces", [face_row(identifier, picture, "somewhere")])
    assert key(tmp_path / "one") == key(tmp_path / "two") != key(tmp_path / "other")
    models = [save_degrader(tmp_path / name, seed) for name, seed in (("m1", 1), ("m2", 1), ("m3", 2))]
    assert key(models[0]) == key(models[1]) != key(models[2])
    folder = write_faces(tmp_path / "folder", 2)
    before = key(folder)
    write_faces(folder, 3)
    assert key(folder) != before


def test_steps_delete_nothing_but_what_they_made(tmp_path):
    """Whatever lies where a later step will work, and wherever a link in a step's folder leads."""
    toy = Job("toy", ToyConfig, lambda config, run: {}, plan=str)

    def steps(value: int) -> None:
        made = [Step(name, toy, build(ToyConfig, output=str(tmp_path / name), value=value)) for name in "ab"]
        run_steps(made, parent="0" * 32)

    for name in ("b", "photos"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.docx").write_text("years")
    steps(1)
    assert (tmp_path / "b" / "thesis.docx").exists()
    (tmp_path / "a" / "photos").symlink_to(tmp_path / "photos")
    steps(2)
    assert not (tmp_path / "a" / "photos").is_symlink()  # an earlier step's folder is gone, with the link
    assert (tmp_path / "photos" / "thesis.docx").exists()
    (tmp_path / "c").mkdir()
    for text in ("mine: true", "- a list"):
        (tmp_path / "b" / "config.yaml").write_text(text)
        with pytest.raises(UsageError, match="was not written by facelab"):
            steps(3)
        assert (tmp_path / "b" / "config.yaml").read_text() == text
        assert (tmp_path / "a" / "summary.json").exists()  # refused before anything is deleted


@pytest.mark.slow
@pytest.mark.skipif(FACES.exists(), reason="test_real_faces asks the same of real faces")
def test_the_learnt_degradation_is_closer_to_the_true_one_than_bicubic(ray_local, tmp_path):
    """What the project is for, on held-out identities, by a measure that training never sees: at most a third of the
    distance of bicubic LR, which the classical degrader does not reach. After half of the preset's steps."""
    faces = make_sample_sets(build(SampleFacesConfig, preset="demo", output=str(tmp_path / "faces")))
    assert faces["n_test"] == 200
    hr, lr, test = (str(tmp_path / "faces" / name) for name in ("hr", "lr", "test"))
    truth = load_pairs(test)
    degrader = trained_degrader(hr, lr, tmp_path, max_steps=600)
    learnt, _ = degrader.degrade(truth.hr, truth.hr_ids, 0)
    distance = {
        name: degradation_distances(images, truth.lr)["degradation_distance"]
        for name, images in (("learnt", learnt), ("bicubic", resize(truth.hr, 16)))
    }
    assert distance["learnt"] < distance["bicubic"] / 3
