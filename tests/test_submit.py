"""Jobs on their way to a cluster: what is told before, with and without one."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from facelab.config import build
from facelab.errors import UsageError
from facelab.submission import checks
from facelab.submission.checks import Demand, NodeType, demand_of, no_local_places, no_secrets, room, upload
from facelab.submission.client import Log, archive_size, uploaded_files
from facelab.synthesis.job import SynthesizeConfig
from facelab.tracking.client import tracking_uri
from facelab.training.sr import TrainSRConfig

MIB = 2**20


def config_of(**values) -> TrainSRConfig:
    return build(TrainSRConfig, **{"hr": "s3://b/hr", "output": "s3://b/o", "model": "srcnn", "workers": 2} | values)


def test_an_upload_names_what_is_too_large_and_what_is_missing(tmp_path):
    files = {f"{name}.bin": size * MIB for name, size in (("a", 60), ("b", 1), ("c", 50))}
    with pytest.raises(UsageError, match=r"exceeds Ray's 100.0 MiB: .*: a.bin \(60.0 MiB\), c.bin \(50.0 MiB\), b.bin"):
        upload(tmp_path, files, archive_size(files), 100 * MIB, [])
    with pytest.raises(UsageError, match=r"jobs/train_sr.py: the job needs it, but .gitignore"):
        upload(tmp_path, {"a": 1}, 1, 100 * MIB, ["a", "jobs/train_sr.py"])
    assert upload(tmp_path, {"a": 1}, 123, 100 * MIB, ["a"]) == "1 files, 0.0 MiB of 100.0 MiB"


def test_the_upload_is_what_ray_would_zip(tmp_path):
    """Its size to the byte, without what .gitignore and the excludes keep back."""
    from ray._private.runtime_env.packaging import _zip_files

    for name, text in (("code.py", "x = 1"), ("ignored.bin", "no"), ("outputs/model", "no"), (".gitignore", "*.bin\n")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(text)
    files = uploaded_files(tmp_path / "in", {"excludes": ["outputs"]})
    assert files.keys() == {"code.py", ".gitignore"}
    excludes = ["outputs"]
    _zip_files(tmp_path / "in", excludes, str(tmp_path / "out.zip"), include_parent_dir=False, include_gitignore=True)
    assert (tmp_path / "out.zip").stat().st_size == archive_size(files)


def test_room_is_counted_by_nodes_and_by_what_an_autoscaler_may_add():
    demand = demand_of(config_of(workers=3, batch_size=12, compute={"cpus_per_worker": 2, "gpu": True}))
    assert demand == Demand("--workers", 3, {"CPU": 2.0, "GPU": 1.0})
    large, small = {"CPU": 8, "GPU": 2}, {"CPU": 3, "GPU": 4}
    assert room(demand, [large, small], None) == "3 × (2 CPU, 1 GPU) fit now"
    with pytest.raises(
        UsageError, match=r"room for 1, and nothing tells of an autoscaler: lower --workers, or say --grows"
    ):
        room(demand, [small], None)
    assert "the others wait for the autoscaler" in room(demand, [small], None, grows=True)
    assert "wait for the autoscaler" in room(demand, [], [NodeType(2, large)])
    with pytest.raises(UsageError, match="may grow to 2"):
        room(demand, [], [NodeType(1, large), NodeType(9, {"CPU": 64})])
    with pytest.raises(UsageError, match="may grow to 2"):
        room(demand, [], [NodeType(2, large)], most_nodes=1)
    actors = build(SynthesizeConfig, hr="s3://b/hr", output="s3://b/o", degrader="bicubic", actors=4)
    assert demand_of(actors) == Demand("--actors", 4, {"CPU": 0.5})


def test_what_only_this_machine_has_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"--output .* lies in this checkout, of which the job has a copy"):
        no_local_places(config_of(output=str(tmp_path / "out")), tmp_path)
    said = no_local_places(config_of(output="/shared/out", hr="/shared/hr"), tmp_path)
    assert said == "--output, --hr on disks that all nodes must share"
    assert no_local_places(config_of(), tmp_path) is None
    with pytest.raises(UsageError, match="copy it into"):
        checks.config_file(config_of(config="/home/me/own.yaml"), tmp_path)
    with pytest.raises(UsageError, match="--workers 0: would work on the head"):
        checks.works_on_workers(config_of(workers=0))


def test_secrets_are_not_submitted():
    with pytest.raises(UsageError, match=r"http://\*\*\*@mlflow: Ray would show the secret") as caught:
        no_secrets(["--tracking-uri", "http://me:hunter2@mlflow"], {})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY is no place for a secret"):
        no_secrets([], {"AWS_SECRET_ACCESS_KEY": "hunter2"})
    no_secrets(["--output", "s3://bucket/x@y"], {"PYTHONPATH": "platform"})


def test_a_submitted_job_does_not_track_into_the_folder_that_dies_with_it(tmp_path, monkeypatch):
    """Nor without saying so into none: refused, or beside an output that outlives it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(config_of()) == f"sqlite:///{tmp_path}/outputs/mlflow.db"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "job-1"}}))
    with pytest.raises(UsageError, match="would die with the submitted job: give --tracking-uri http://HOST:5000"):
        tracking_uri(config_of())
    assert tracking_uri(config_of(output="/shared/runs/a")) == "sqlite:////shared/runs/mlflow.db"
    with pytest.raises(UsageError, match="lies in the folder that the submitted job was unpacked to"):
        tracking_uri(config_of(tracking_uri="sqlite:///mlflow.db"))
    assert tracking_uri(config_of(tracking_uri="http://mlflow:5000")) == "http://mlflow:5000"


def test_progress_bars_in_a_log_are_a_line_for_each_tenth():
    log = Log()
    bars = "".join(
        f"\repoch 1: {percent:3d}%|██  | {percent}/100 [00:01<00:01, 9step/s]" for percent in range(0, 100, 2)
    )
    shown = list(log.readable(f"begins\n{bars}\nends\n"))
    assert (shown[0], shown[-1], len(shown)) == ("begins", "ends", 12)
    assert "90%" in shown[-2]


def test_a_typo_is_told_before_anything_is_looked_for(tmp_path):
    for arguments, said in (
        (["--", "train_srr", "--hr", "s3://b/hr"], "job 'train_srr' is unknown: did you mean 'train_sr'?"),
        (["--", "train_sr", "--model", "srcnn", "--hr", "s3://b/hr", "--output", "s3://b/o", "--worker", "2"], "--worker"),
        ([], "no job: write it behind --"),
    ):  # fmt: skip
        command = [sys.executable, "-m", "jobs.submit", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2, done.stdout
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
