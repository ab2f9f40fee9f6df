"""A shard set that is killed, resumed, begun twice, or begun by two: what is committed is kept, nothing is doubled, and
the finished set is the one that an undisturbed run makes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, files_of, save_degrader, write_faces
from facelab import storage
from facelab.config import build
from facelab.data import owner, work
from facelab.data.manifest import read_manifest
from facelab.data.owner import Owner
from facelab.data.prepare import PREPARE, PrepareConfig, prepare
from facelab.data.shard_set import claimed
from facelab.data.validate import VALIDATE
from facelab.errors import StoreError, UsageError
from facelab.synthesis.job import SynthesizeConfig, synthesize
from nodes import Nodes, cluster_of, processes_named


def receipts_of(folder: Path) -> dict[str, int]:
    """Receipt -> when it was written, ns."""
    return {file.name: file.stat().st_mtime_ns for file in (folder / "receipts").glob("*.json")}


def test_what_is_committed_is_not_computed_again(ray_local, tmp_path, monkeypatch):
    """A run that breaks off after some units, then the same command: the receipts of before are as they were, and the
    set is that of a run that was left alone. Again: it is finished, and nothing is written."""
    folder = write_faces(tmp_path / "in", 12)
    (folder / "copy.png").write_bytes((folder / "0003.png").read_bytes())
    (folder / "bad.png").write_bytes(b"no image")

    def run(out: str) -> dict:
        return prepare(build(PrepareConfig, input=str(folder), output=str(tmp_path / out), rows_per_shard=3))

    whole = run("whole")
    assert (whole["n"], whole["n_rejected"], whole["n_train"] + whole["n_val"]) == (12, 2, 12)

    def two_units(units):
        yield list(units)[:2]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work, "chunks", lambda units, size: two_units(units))
        with pytest.raises(KeyboardInterrupt):
            run("broken")
    before = receipts_of(tmp_path / "broken")
    assert len(before) == 2
    with pytest.raises(UsageError, match="did not finish"):
        read_manifest(str(tmp_path / "broken"))
    assert run("broken") == whole
    after = receipts_of(tmp_path / "broken")
    copied = [name for name in before if b'"copy: of' in (tmp_path / "broken" / "receipts" / name).read_bytes()]
    assert {name: after[name] for name in before if name not in copied} == {
        name: when for name, when in before.items() if name not in copied
    }
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    assert run("broken") == whole
    assert receipts_of(tmp_path / "broken") == after
    assert not list(tmp_path.glob("*/owner.json"))


def test_other_settings_are_refused_and_named(ray_local, tmp_path, hr_folder, capsys):
    """Before anything is written or deleted; --overwrite deletes."""
    options = ["--input", str(hr_folder), "--output", str(tmp_path / "out"), "--preset", "debug"]
    assert PREPARE.main(options) == 0
    summary = (tmp_path / "out" / "summary.json").read_text()
    assert PREPARE.main([*options, "--min-side", "20"]) == 2
    assert "was begun with min_side 12, not 20" in capsys.readouterr().err
    assert (tmp_path / "out" / "summary.json").read_text() == summary
    assert PREPARE.main(options) == 0
    assert "finished before" in capsys.readouterr().out
    assert PREPARE.main([*options, "--min-side", "20", "--overwrite"]) == 0
    assert read_manifest(str(tmp_path / "out")).settings["min_side"] == 20


@pytest.mark.slow
def test_a_set_of_other_inputs_is_refused(ray_local, tmp_path, hr_folder, degrader):
    """At the same places: another degrader, other faces."""
    place, hr, out = tmp_path / "degrader", tmp_path / "hr", str(tmp_path / "pairs")
    write_faces(tmp_path / "faces", 6)
    prepare(build(PrepareConfig, input=str(tmp_path / "faces"), output=str(hr)))

    def run(**values) -> dict:
        given = {"hr": str(hr), "degrader": str(place), "style_mode": "prior", "output": out, "actors": 0}
        return synthesize(build(SynthesizeConfig, **given | values))

    save_degrader(place, seed=4)
    first = run()
    assert run() == first
    with pytest.raises(UsageError, match="begun with model"):
        run(degrader=degrader)
    save_degrader(place, seed=5)
    with pytest.raises(UsageError, match="begun with model"):
        run()
    second = run(overwrite=True)
    assert second["data_hash"] != first["data_hash"]
    write_faces(tmp_path / "faces", 1, first=70)
    prepare(build(PrepareConfig, input=str(tmp_path / "faces"), output=str(hr), overwrite=True))
    with pytest.raises(UsageError, match="begun with hr_hash"):
        run()


def test_a_set_has_one_writer(tmp_path, monkeypatch):
    """A live job keeps others out; one that died on this machine is succeeded at once; one elsewhere after so many
    missed heartbeats; who was taken for dead does not finish the set."""
    monkeypatch.setattr(owner, "BEAT_S", 0.05)
    uri = str(tmp_path)
    with Owner(uri), pytest.raises(UsageError, match=f"process {os.getpid()} on .* is writing there"), Owner(uri):
        pass
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for record in ({"host": Owner(uri).record["host"], "pid": gone.pid}, {"host": "elsewhere", "pid": 1}):
        storage.write_text(f"{uri}/owner.json", json.dumps({"token": "x", "beat": 7} | record))
        with Owner(uri) as one:
            one.check()
    with claimed(uri, "faces", {}, {}) as target:
        storage.write_text(
            f"{uri}/owner.json", json.dumps({"token": "other", "host": "elsewhere", "pid": 1, "beat": 0})
        )
        deadline = time.monotonic() + 20
        while not target.owner._lost and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(StoreError, match="another job took over"):
            target.finish(target.totals([]))
    assert not (tmp_path / "manifest.json").exists()
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "other"


def test_what_killed_writers_left_is_swept(tmp_path):
    ours = [".part-0123456789abcdef0123.parquet.0a1b2c3d", "receipts/.0123456789abcdef0123.json.00000000"]
    ours += ["units/.0123456789abcdef0123.parquet.0a1b2c3d", ".manifest.json.ffffffff", ".units.12345678/a.parquet"]
    others = [
        ".notes.json.0a1b2c3d",
        "part-of-mine.parquet",
        ".part-0123456789abcdef0123.parquet",
        ".owner.json.0a1b2c3d",
    ]
    for name in [*ours, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    with claimed(str(tmp_path), "faces", {}, {}):
        pass
    assert not [name for name in ours if (tmp_path / name).exists()]
    assert not (tmp_path / ".units.12345678").exists()
    assert [name for name in others if not (tmp_path / name).exists()] == []


def test_the_end_of_a_job_is_told_though_its_store_is_gone(tmp_path, monkeypatch):
    def gone(*_):
        raise StoreError("the store is gone")

    def work(place: str, trouble: Exception | None) -> None:
        with Owner(str(tmp_path / place)):
            monkeypatch.setattr(storage, "read_bytes", gone)
            if trouble:
                raise trouble

    with pytest.raises(ValueError, match="the trouble"):
        work("a", ValueError("the trouble"))
    monkeypatch.undo()
    with pytest.raises(StoreError, match="the store is gone"):
        work("b", None)


def test_a_set_is_validated(ray_local, tmp_path, capsys):
    """As written: equal hashes. A byte changed, at the same size: told by name, and listed."""
    write_faces(tmp_path / "in", 6)
    prepare(build(PrepareConfig, input=str(tmp_path / "in"), output=str(tmp_path / "set"), rows_per_shard=2))
    options = ["--input", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    assert VALIDATE.main(options) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    manifest = read_manifest(str(tmp_path / "set"))
    assert (summary["n"], summary["n_shards"], summary["data_hash"]) == (6, 3, manifest.hash)
    shard = tmp_path / "set" / manifest.shards[1].name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    capsys.readouterr()
    assert VALIDATE.main(options) == 2
    assert f"1 of 3 shards are not as they were written, such as {shard.name}" in capsys.readouterr().err
    assert list(json.loads((tmp_path / "out" / "problems.json").read_text())) == [shard.name]
    assert VALIDATE.main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]) == 2


def test_an_object_is_created_once(tmp_path):
    place = str(tmp_path / "deep" / "object")
    assert storage.create(place, b"first")
    assert not storage.create(place, b"second")
    assert storage.read_bytes(place) == b"first"
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["object"]


def synthesis(folder: Path, lr: Path, degrader: str, tmp_path: Path, out: str) -> list[str]:
    """The command of a job of one unit for each face."""
    options = ["--hr", str(folder), "--lr", str(lr), "--degrader", degrader, "--rows-per-shard", "1"]
    options += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", "--output", str(tmp_path / out)]
    return [sys.executable, "-m", "jobs.synthesize", *options]


def wait_for_receipts(out: Path, count: int, job: subprocess.Popen) -> None:
    deadline = time.monotonic() + 240
    while len(receipts_of(out)) < count:
        assert job.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, f"{len(receipts_of(out))} receipts, not {count}"
        time.sleep(0.01)


def assert_whole(out: Path, computed: dict[str, int], undisturbed: Path) -> None:
    """The set of an undisturbed run, with every receipt of before as it was."""
    now = receipts_of(out)
    assert {name: now[name] for name in computed} == computed
    assert files_of(out) == files_of(undisturbed)


class Site:
    """A cluster of two nodes, on which a job is started again and again."""

    def __init__(self, nodes: Nodes):
        self.nodes = nodes

    def start(self, command: list[str]) -> subprocess.Popen:
        """What it says is shown where the test fails."""
        path = os.pathsep.join(map(str, (ROOT / "platform", ROOT)))
        there = {"RAY_ADDRESS": self.nodes.address, "PYTHONPATH": path}
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=os.environ | there)

    def kill(self, actor: str, job: subprocess.Popen) -> None:
        while not (actors := processes_named(actor, below=self.nodes.pid)):  # the one of before is begun anew
            assert job.poll() is None, "it ended before it was killed"
        os.kill(actors[0], signal.SIGKILL)

    def kill_driver(self, job: subprocess.Popen) -> None:
        """And wait until its actors have ended with it."""
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()
        deadline = time.monotonic() + 60
        while processes_named("MapWorker", below=self.nodes.pid):
            assert time.monotonic() < deadline, "actors outlive their driver"
            time.sleep(0.2)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with cluster_of("a", "b") as nodes:
        yield Site(nodes)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, lr_folder, degrader) -> Path:
    """The pairs of 60 faces, made by one process that is left alone; the faces are in `in` beside them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_faces(folder / "in", 60)
    subprocess.run(
        [*synthesis(folder / "in", lr_folder, degrader, folder, "out"), "--actors", "0"], cwd=ROOT, check=True
    )
    return folder / "out"


@pytest.mark.chaos
def test_a_driver_killed_at_two_moments_and_actors_at_three(site, tmp_path, lr_folder, degrader, undisturbed):
    """kill -9 at five moments of the writing of the shards, of the driver, of who holds the model and of who writes: the
    same command goes on, every receipt of before is as it was, and the set is that of an undisturbed run."""
    command, out = synthesis(undisturbed.parent / "in", lr_folder, degrader, tmp_path, "out"), tmp_path / "out"
    job = site.start(command)
    wait_for_receipts(out, 4, job)
    site.kill_driver(job)
    computed = receipts_of(out)
    job = site.start(command)
    wait_for_receipts(out, len(computed) + 4, job)
    site.kill("_Making", job)
    wait_for_receipts(out, len(receipts_of(out)) + 4, job)
    site.kill_driver(job)
    now = receipts_of(out)
    assert {name: now[name] for name in computed} == computed
    assert len(now) > len(computed)
    computed = now
    job = site.start(command)
    for actor in ("_Making", "_Committing"):
        wait_for_receipts(out, len(receipts_of(out)) + 4, job)
        computed |= receipts_of(out)
        site.kill(actor, job)
    assert job.wait(240) == 0
    assert_whole(out, computed, undisturbed)


@pytest.mark.chaos
def test_a_node_killed(site, tmp_path, lr_folder, degrader, undisturbed):
    """Of two, one of which has the model's actors: the job goes on where a node takes its place."""
    job = site.start([*synthesis(undisturbed.parent / "in", lr_folder, degrader, tmp_path, "out"), "--actors", "2"])
    wait_for_receipts(tmp_path / "out", 10, job)
    computed = receipts_of(tmp_path / "out")
    site.nodes.kill("a")
    site.nodes.add("c")
    assert job.wait(240) == 0
    assert_whole(tmp_path / "out", computed, undisturbed)
