"""A store that fails: for a moment, and nothing is lost or doubled; for good, and it is told where, and what to check; in
the middle, and the same command goes on. S3 is real where anything comes through: rclone behind a proxy of faults."""

import errno
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import ROOT, S3_SECRET, forget_s3, free_port, s3_server, write_faces
from facelab import storage
from facelab.config import build
from facelab.data import prepare as preparing
from facelab.data import shards
from facelab.data.manifest import read_manifest
from facelab.data.prepare import PREPARE, PrepareConfig, prepare
from facelab.errors import StoreError, UsageError
from faults import PASSING, Seeded, proxy

PLACE = "s3://bucket/deep/key"


@pytest.fixture
def connect(monkeypatch):
    """A function of an endpoint, which this process then uses, with as many tries and seconds as a test can wait for."""
    monkeypatch.setitem(storage._SETTINGS, "retries", {"mode": "standard", "total_max_attempts": 2})
    monkeypatch.setitem(storage._SETTINGS, "connect_timeout", 0.2)
    monkeypatch.setitem(storage._SETTINGS, "read_timeout", 0.2)

    def to(url: str) -> None:
        given = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "facelab-test-key", "SECRET_ACCESS_KEY": S3_SECRET}
        for name, value in (given | {"DEFAULT_REGION": "us-east-1"}).items():
            monkeypatch.setenv(f"AWS_{name}", value)
        forget_s3()

    yield to
    forget_s3()


def copied(uri: str) -> bytes:
    with storage.local_copy(uri) as file:
        return file.read_bytes()


ACTS = {
    "read": storage.read_bytes,
    "write": partial(storage.write_bytes, data=b"x"),
    "create": partial(storage.create, data=b"x"),
    "list": storage.list_files,
    "copy": copied,
}


LASTING = {
    "denied": "check the AWS credentials",
    "no bucket": "the bucket is not there: check the bucket's name",
    "internal error": "check AWS_ENDPOINT_URL",
    "slow down": "check AWS_ENDPOINT_URL",
    "reset": "check AWS_ENDPOINT_URL",
    "silence": "check AWS_ENDPOINT_URL",
    "refused": "check AWS_ENDPOINT_URL",
}
"""Fault -> what its error says."""


@contextmanager
def failing(fault: str, connect):
    with proxy(lambda method, path: fault) as store:
        connect(store.url if fault != "refused" else f"http://127.0.0.1:{free_port()}")
        yield store


@pytest.mark.parametrize("fault", LASTING)
def test_a_fault_that_lasts_is_told(fault, connect):
    """With bucket, key and what to check; and tried no more often than botocore was told to."""
    with failing(fault, connect) as store:
        for act in ACTS.values():
            before = store.requests
            with pytest.raises(StoreError, match=PLACE) as told:
                act(PLACE)
            assert LASTING[fault] in str(told.value)
            assert S3_SECRET not in str(told.value)
            if fault in ("internal error", "slow down", "silence"):  # of resets, aiohttp makes good one by itself
                assert store.requests - before == 2


def test_a_job_tells_of_a_fault_that_lasts(connect, tmp_path, capsys):
    """In one line, as of whatever the user can mend."""
    write_faces(tmp_path / "in", 1)
    for fault in ("denied", "no bucket", "refused"):
        with failing(fault, connect):
            assert PREPARE.main(["--input", str(tmp_path / "in"), "--output", "s3://bucket/set"]) == 1
        said = capsys.readouterr().err
        assert "error: s3://bucket/set/" in said
        assert LASTING[fault] in said
        assert S3_SECRET not in said
        assert "Traceback" not in said


@pytest.mark.cluster
def test_a_body_that_breaks_off_is_read_again(connect, tmp_path):
    """By s3fs, up to 5 times; botocore's tries end where the body begins. Larger objects are no exception."""
    data = os.urandom(60 * 2**20)  # s3fs would read it in two parts
    broken = 0

    def rule(method: str, path: str) -> str | None:
        nonlocal broken
        broken += method == "GET" and path.startswith("/bucket/")
        return "broken body" if method == "GET" and broken <= last else None

    with s3_server(tmp_path / "store") as env, proxy(rule, env["AWS_ENDPOINT_URL"]) as store:
        connect(store.url)
        storage._SETTINGS["read_timeout"] = 60
        (tmp_path / "store" / "bucket" / "large").write_bytes(data)
        for read in (storage.read_bytes, copied):
            broken, last = 0, 2
            assert read("s3://bucket/large") == data
            assert broken == 3
        storage.write_bytes(PLACE, b"some bytes")
        broken, last = 0, 1000
        for read in (storage.read_bytes, copied):
            with pytest.raises(StoreError, match=PLACE):
                read(PLACE)
        assert broken == 10
    assert store.count("broken body") == 14


@pytest.mark.cluster
def test_a_conditional_put_knows_its_own_write(connect, tmp_path):
    """The answer to it is lost, and the store refuses the second try; others are refused all the same."""
    with (
        s3_server(tmp_path / "store") as env,
        proxy(
            lambda method, path: "lost answer" if method == "PUT" and not store.faults else None,
            env["AWS_ENDPOINT_URL"],
            conditional=True,
        ) as store,
    ):
        connect(store.url)
        storage._SETTINGS["read_timeout"] = 60
        assert storage.create(PLACE, b"first")
        assert store.faults == {("lost answer", "PUT"): 1}
        assert not storage.create(PLACE, b"second")
        assert not storage._put_new(PLACE, b"of one who came at the same time")
        assert storage.read_bytes(PLACE) == b"first"


def test_a_file_is_no_prefix_while_the_store_fails(connect):
    """A HEAD that fails says nothing of a file: taken for a prefix, it would be listed as no file at all."""
    with proxy(lambda method, path: "internal error") as store:
        connect(store.url)
        with pytest.raises(StoreError, match=PLACE):
            storage.list_files(PLACE)
        assert store.faults == {("internal error", "HEAD"): 2}


FACES = 40
JOBS = """
import sys
from facelab.cluster import ray_session
from facelab.data.prepare import PREPARE
from facelab.synthesis.job import SYNTHESIZE
faces = ["--input", "s3://bucket/in", "--output", "s3://bucket/faces", "--rows-per-shard", "4"]
pairs = ["--hr", "s3://bucket/faces", "--degrader", "classical", "--variants", "2", "--hr-size", "64"]
pairs += ["--rows-per-shard", "4", "--output", "s3://bucket/pairs", *sys.argv[1:]]
with ray_session():
    for job, options in ((PREPARE, faces), (SYNTHESIZE, pairs)):
        if code := job.main(options):
            sys.exit(code)
"""


def run_jobs(env: dict[str, str], *options: str, expect: int = 0) -> str:
    """prepare, then synthesize with these options, from S3 to S3; returns what they said."""
    path = os.pathsep.join(map(str, (ROOT / "platform", ROOT)))
    command, environment = [sys.executable, "-c", JOBS, *options], os.environ | env | {"PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def set_of(place: Path) -> dict[str, bytes]:
    """Every file of a set, but those that tell of the run."""
    files = {str(file.relative_to(place)): file.read_bytes() for file in place.rglob("*") if file.is_file()}
    return {name: data for name, data in files.items() if name not in ("config.yaml", "summary.json")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The bucket after both jobs, of a store without faults."""
    store = tmp_path_factory.mktemp("whole")
    folder = write_faces(store / "bucket" / "in", FACES)
    (folder / "copy.png").write_bytes((folder / "0003.png").read_bytes())
    (folder / "bad.png").write_bytes(b"no image")
    with s3_server(store) as env:
        run_jobs(env, "--actors", "0")
    return store / "bucket"


@pytest.mark.cluster
def test_faults_that_pass_lose_and_double_nothing(tmp_path, whole):
    """A quarter of all requests fail, each in one of six ways: the sets are those of a store without faults, byte for
    byte: manifest, shards, receipts, rejections."""
    shutil.copytree(whole / "in", tmp_path / "bucket" / "in")
    with s3_server(tmp_path) as env, proxy(Seeded(5, 0.3), env["AWS_ENDPOINT_URL"]) as store:
        run_jobs(env | {"AWS_ENDPOINT_URL": store.url})
    assert sum(store.faults.values()) >= 100
    assert {name for name, _ in store.faults} == set(PASSING)
    assert store.faults["lost answer", "PUT"] > 0
    for name, kept, rejected in (("faces", FACES, 2), ("pairs", 2 * FACES, 0)):
        assert set_of(tmp_path / "bucket" / name) == set_of(whole / name)
        manifest = read_manifest(str(whole / name))
        rows = [
            row
            for file in (tmp_path / "bucket" / name).glob("part-*.parquet")
            for row in pq.read_table(file, columns=["id"]).to_pylist()
        ]
        assert len({row["id"] for row in rows}) == len(rows) == manifest.rows == kept
        assert manifest.counts["n_rejected"] == rejected


@pytest.mark.cluster
def test_a_bucket_that_vanishes_midway(tmp_path, whole):
    """The job says so and ends. When the bucket is back, the same command keeps what was committed, and completes."""
    for name in ("in", "faces"):
        shutil.copytree(whole / name, tmp_path / "bucket" / name)
    receipts = 0

    def rule(method: str, path: str) -> str | None:
        nonlocal receipts
        if receipts >= 3:
            return "no bucket"
        receipts += method == "PUT" and path.startswith("/bucket/pairs/receipts/")
        return None

    with s3_server(tmp_path) as env:
        with proxy(rule, env["AWS_ENDPOINT_URL"]) as store:
            said = run_jobs(env | {"AWS_ENDPOINT_URL": store.url}, expect=1)
        assert "error: s3://bucket/pairs/" in said
        assert "the bucket is not there: check the bucket's name" in said
        pairs = tmp_path / "bucket" / "pairs"
        before = {file: file.stat().st_mtime_ns for file in (pairs / "receipts").iterdir()}
        assert len(before) == 3
        assert not (pairs / "manifest.json").exists()
        assert f"12 of {FACES} images were committed before" in run_jobs(env)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert set_of(pairs) == set_of(whole / "pairs")


def test_a_disk_that_is_full_midway(ray_local, tmp_path, monkeypatch):
    """The job says so, leaves nothing half-written, and goes on when there is room."""
    write_faces(tmp_path / "in", 12)

    def run(out: str) -> dict:
        config = build(PrepareConfig, input=str(tmp_path / "in"), output=str(tmp_path / out), rows_per_shard=3)
        return prepare(config)

    undisturbed, faces, replace = run("whole"), preparing._faces, os.replace

    def full(source: Path, target: Path) -> None:
        os.replace = replace
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    third = list(json.loads((tmp_path / "whole" / "units.json").read_text()))[2]

    def faces_on_a_full_disk(unit, min_side):
        yield from faces(unit, min_side)
        if unit.name == third:
            os.replace = full

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_faces", faces_on_a_full_disk)
        with pytest.raises(StoreError, match="the disk is full: free some space"):
            run("out")
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="did not finish"):
        read_manifest(str(out))
    assert not (out / "receipts" / f"{third}.json").exists()
    assert not list(out.rglob(f".*{third}*"))
    before = {file: file.stat().st_mtime_ns for file in (out / "receipts").iterdir()}
    assert run("out") == undisturbed
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert {file.name for file in out.glob("part-*")} == {file.name for file in (tmp_path / "whole").glob("part-*")}
    assert shards.read_receipt(str(out), third) == shards.read_receipt(str(tmp_path / "whole"), third)
