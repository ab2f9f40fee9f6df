"""Odd and hostile inputs through every job that reads images: each ends in a row, a count or one clear line, never in a
traceback, and never is a file of the user's touched."""

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, write_faces, write_set
from corpus import (
    CONFIGS,
    COPY,
    IGNORED,
    LR_ONLY,
    PLACES,
    ROW,
    SMALL,
    encoded,
    face,
    p3_profile,
    sixteen_bit,
    write_corpus,
    write_places,
)
from facelab import storage
from facelab.config import build, parse, to_yaml, without_secret
from facelab.data import shards
from facelab.data.faces import face_row, read_file
from facelab.data.prepare import PREPARE
from facelab.data.source import find
from facelab.data.tensors import load_faces, load_pairs
from facelab.errors import StoreError, UsageError
from facelab.evaluation import measure
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import EVALUATE, evaluate
from facelab.experiments.demo import DEMO
from facelab.experiments.sweep import SWEEP
from facelab.images import BadImage, decode, encode_png, is_plain
from facelab.reports.report import REPORT
from facelab.samples.sets import SAMPLE_FACES
from facelab.synthesis.job import SYNTHESIZE
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR
from facelab.training.sr import TrainSRConfig
from PIL import Image, ImageCms

REFUSED = {"unreadable", "truncated", "decompression bomb"}


class Corpus:
    """The folder, and how many of its files become what."""

    def __init__(self, place: Path):
        self.folder = place / "in"
        self.folder.mkdir()
        self.becomes = write_corpus(self.folder)
        self.before = snapshot(place)

    def count(self, *kinds: str) -> int:
        return sum(kind in kinds for kind in self.becomes.values())

    @property
    def seen(self) -> int:
        return len(self.becomes) - self.count(IGNORED)


def snapshot(folder: Path) -> dict[str, str]:
    """Path -> SHA-256 or target, of everything below a folder, links not followed."""
    found = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(parent, name)
            if os.path.islink(path):
                found[os.fsdecode(path)] = os.fsdecode(os.readlink(path))
            elif os.path.isfile(path):
                found[os.fsdecode(path)] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
            else:
                found[os.fsdecode(path)] = "folder or pipe"
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def run(job, output: Path, *options: str, capsys) -> tuple[int, str, dict]:
    """Exit code, what stderr says, and the summary of a job's command line."""
    code = job.main(["--output", str(output), "--preset", "debug", *options])
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    # But for progress bars, and for what Ray's worker processes say: one that is ended while Python collects its garbage
    # prints a traceback of the signal.
    said = "\n".join(line.strip() for line in lines if line.strip() and "%|" not in line and " pid=" not in line)
    assert "Traceback" not in said
    summary = output / "summary.json"
    return code, said, json.loads(summary.read_text()) if code == 0 else {}


def test_each_file(corpus):
    """As the one reader sees them, before any job."""
    assert len(corpus.becomes) + len(PLACES) + len(CONFIGS) > 130
    wanted = {name: kind for name, kind in corpus.becomes.items() if kind != IGNORED}
    found = {}
    for row in find(str(corpus.folder)).read(["id", "image", "height", "width", "sha256"]):
        found[row["id"]] = row["rejected"].split(":")[0] or ROW
        if not row["rejected"]:
            image = decode(row["image"])
            assert image.shape == (row["height"], row["width"], 3)
            assert is_plain(row["image"])
    of_reader = {SMALL: ROW, LR_ONLY: ROW, COPY: ROW}  # told by the jobs
    assert found == {name: of_reader.get(kind, kind) for name, kind in wanted.items()}


def test_prepare(ray_local, tmp_path, corpus, capsys):
    code, said, summary = run(PREPARE, tmp_path / "out", "--input", str(corpus.folder), capsys=capsys)
    assert code == 0, said
    assert summary["n"] == corpus.count(ROW, LR_ONLY)
    assert summary["n"] + summary["n_rejected"] == corpus.seen
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    found = {row["id"]: row["reason"].split(":")[0] for row in rejected}
    assert found == {n: kind for n, kind in corpus.becomes.items() if kind not in (ROW, LR_ONLY, IGNORED)}
    assert summary["rejected_copy"] == corpus.count(COPY)
    assert snapshot(corpus.folder.parent) == corpus.before
    code, said, _ = run(PREPARE, tmp_path / "b", "--input", str(corpus.folder), "--max-rejected", "0.1", capsys=capsys)
    assert code == 2
    assert f"of {corpus.seen - corpus.count(COPY)} files rejected, more than --max-rejected 0.1" in said


@pytest.mark.slow
def test_synthesize(ray_local, tmp_path, corpus, degrader, capsys):
    place = str(corpus.folder)
    options = ["--hr", place, "--lr", place, "--degrader", degrader, "--max-rejected", "0.5"]
    code, said, summary = run(SYNTHESIZE, tmp_path / "out", *options, capsys=capsys)
    assert code == 0, said
    assert summary["n"] == corpus.count(ROW, COPY)
    assert summary["n"] + summary["n_rejected"] == corpus.seen
    assert snapshot(corpus.folder.parent) == corpus.before
    training = ["--pairs", str(tmp_path / "out"), "--model", "srcnn"]
    code, said, summary = run(TRAIN_SR, tmp_path / "sr", *training, capsys=capsys)
    assert code == 0, said
    assert (summary["n_pairs"], summary["n_copies"]) == (corpus.count(ROW), corpus.count(COPY))


def test_training(tmp_path, corpus, capsys):
    place = str(corpus.folder)
    for job, options, small, sets in (
        (TRAIN_SR, ["--model", "srcnn", "--hr", place], (LR_ONLY, SMALL), 1),
        (TRAIN_DEGRADER, ["--hr", place, "--lr", place], (LR_ONLY, SMALL, SMALL), 2),
    ):
        code, said, summary = run(job, tmp_path / job.name, *options, "--max-rejected", "0.5", capsys=capsys)
        assert code == 0, said
        assert summary["n_hr"] == corpus.count(ROW)
        assert summary["n_rejected"] == sets * corpus.count(*REFUSED) + sum(corpus.count(kind) for kind in small)
        assert summary["n_copies"] == sets * corpus.count(COPY)
        code, said, _ = run(job, tmp_path / f"{job.name}-strict", *options, capsys=capsys)
        assert code == 2
        assert "files rejected, more than --max-rejected 0.1" in said
        assert len(said.splitlines()) == 1
    assert snapshot(corpus.folder.parent) == corpus.before


def test_evaluate(tmp_path, corpus, capsys):
    place = str(corpus.folder)
    options = ["--model", "bicubic", "--test", place, "--real", place, "--reference", place, "--max-rejected", "0.5"]
    code, said, summary = run(EVALUATE, tmp_path / "out", *options, capsys=capsys)
    assert code == 0, said
    assert (summary["n"], summary["n_real"]) == (corpus.count(ROW, COPY), corpus.count(ROW, COPY, LR_ONLY))
    assert summary["n"] + summary["n_rejected"] == corpus.seen
    native = ["--model", "bicubic", "--test", place, "--max-rejected", "0.5", "--native", "--metrics", "psnr"]
    code, said, summary = run(EVALUATE, tmp_path / "native", *native, capsys=capsys)
    assert code == 0, said
    assert summary["n"] == corpus.count(ROW, COPY, LR_ONLY)
    assert snapshot(corpus.folder.parent) == corpus.before


@pytest.mark.slow
def test_demo(ray_local, tmp_path, corpus, capsys):
    """The same by the job that is made of these."""
    place = str(corpus.folder)
    code, said, summary = run(DEMO, tmp_path / "demo", *(f"--{name}={place}" for name in ("hr", "lr", "test", "real")),
                              "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db", capsys=capsys)  # fmt: skip
    assert code == 0, said
    assert (summary["n_test"], summary["n_real"]) == (corpus.count(ROW), corpus.count(ROW, LR_ONLY))
    assert not [name for name in summary if "ceiling" in name or "gap_closed" in name]  # nobody knows the truth
    assert "eiling" not in (tmp_path / "demo" / "report.html").read_text()
    assert snapshot(corpus.folder.parent) == corpus.before


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("places")

    def face_shards(uri: str) -> str:
        rows = [face_row(f"{i}.png", encode_png(np.asarray(face(i))), "s") for i in range(3)]
        return f"{uri}/{write_set(uri, 'faces', rows).shards[0].name}"

    write_places(folder, face_shards)
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_each_place(place, places, hr_folder, tmp_path, capsys):
    """Given for the faces of each job: exit 2, one line that says what is wrong, no secret, and nothing is written."""
    uri, before = place.replace("{folder}", str(places)), snapshot(places)
    for job, options in (
        (PREPARE, ["--input", uri]),
        (SYNTHESIZE, ["--degrader", "bicubic", "--hr", uri]),
        (TRAIN_SR, ["--model", "srcnn", "--hr", uri]),
        (TRAIN_DEGRADER, ["--lr", str(hr_folder), "--hr", uri]),
        (EVALUATE, ["--model", "bicubic", "--test", uri]),
    ):
        if job is PREPARE and "{folder}" in place and find_images_alone(place):
            continue  # of shards it knows nothing: it sees a folder without images
        code, said, _ = run(job, tmp_path / job.name, *options, capsys=capsys)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert PLACES[place] in said
        assert "secret" not in said
    assert snapshot(places) == before


def find_images_alone(place: str) -> bool:
    return place.rsplit("/", 1)[1] in ("unfinished", "manifest", "damaged", "lost")


@pytest.mark.parametrize("text", CONFIGS)
def test_each_config(text, tmp_path, capsys):
    file = tmp_path / "run.yaml"
    file.write_bytes(text)
    options = ["--config", str(file), "--model", "srcnn", "--hr", str(tmp_path)]
    code = TRAIN_SR.main(["--output", str(tmp_path / "out"), *options] if b"output" not in text else options)
    said = capsys.readouterr().err
    assert (code, len(said.strip().splitlines())) == (2, 1), said
    assert CONFIGS[text] in said
    assert "secret" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


# Other people's data


@pytest.mark.parametrize("where", ["same", "below", "above", "link", "dots"])
def test_no_output_touches_an_input(where, tmp_path, hr_folder, degrader, capsys):
    """Of any job: the same place, one in the other, or the same by a link or by dots."""
    place = write_faces(tmp_path / "all" / "faces", 3)
    (place / "real.png").write_bytes(b"my own picture")
    (tmp_path / "link").symlink_to(place)
    output = {"same": place, "below": place / "out", "above": place.parent, "link": tmp_path / "link" / "x",
              "dots": tmp_path / "all" / "x" / ".." / "faces"}[where]  # fmt: skip
    before = snapshot(tmp_path)
    for job, options in (
        (PREPARE, ["--input", str(place), "--overwrite"]),
        (SYNTHESIZE, ["--degrader", "bicubic", "--hr", str(place), "--overwrite"]),
        (SYNTHESIZE, ["--degrader", degrader, "--hr", str(hr_folder), "--lr", str(place), "--overwrite"]),
        (TRAIN_SR, ["--model", "srcnn", "--hr", str(place)]),
        (TRAIN_DEGRADER, ["--hr", str(hr_folder), "--lr", str(place)]),
        (EVALUATE, ["--model", "bicubic", "--real", str(place), "--reference", str(hr_folder)]),
        (EVALUATE, ["--model", str(place), "--test", str(hr_folder)]),
        (SWEEP, ["--train", "sr", "--hr", str(place)]),
        (DEMO, ["--hr", str(place), "--lr", str(hr_folder), "--test", str(hr_folder), "--real", str(hr_folder)]),
        (REPORT, ["--runs", str(hr_folder), str(place)]),
    ):
        code, said, _ = run(job, output, *options, capsys=capsys)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert "the same place, or one lies in the other" in said
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("job", "name"), [
    (PREPARE, "manifest.json"), (PREPARE, "rejected.parquet"), (SYNTHESIZE, "manifest.json"), (TRAIN_SR, "training.json"),
    (TRAIN_SR, "model/model.json"), (SAMPLE_FACES, "hr/manifest.json"), (SWEEP, "trials.json"), (REPORT, "table.md"),
    (DEMO, "report.html"), (EVALUATE, "per_image.parquet"),
])  # fmt: skip
def test_every_job_knows_what_it_writes(job, name, tmp_path, hr_folder):
    options = {PREPARE: {"input": "x", "overwrite": True}, SYNTHESIZE: {"degrader": "bicubic", "overwrite": True},
               TRAIN_SR: {"model": "srcnn"}, SWEEP: {"train": "sr", "preset": "ablation-sr"}, REPORT: {"runs": ("x",)},
               EVALUATE: {"model": "bicubic", "test": "x"}}.get(job, {})  # fmt: skip
    hr = {"hr": str(hr_folder)} if job in (SYNTHESIZE, TRAIN_SR, SWEEP) else {}
    config = build(job.config, output=str(tmp_path / "out"), **hr, **options)
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(UsageError, match="no facelab job wrote"):
        job.run(config)
    assert snapshot(tmp_path).keys() == {str(file), *map(str, file.parents)} - {
        str(p) for p in (tmp_path, *tmp_path.parents)
    }


def test_an_options_file_of_ones_own_is_no_record_of_a_job(tmp_path, hr_folder):
    file = tmp_path / "out" / "config.yaml"
    file.parent.mkdir()
    file.write_text("# my notes\noutput: out\npreset: debug\nseed: 1\n")
    before = file.read_bytes()
    with pytest.raises(UsageError, match="was not written by facelab"):
        TRAIN_SR.run(build(TrainSRConfig, output=str(file.parent), model="srcnn", hr=str(hr_folder)))
    assert file.read_bytes() == before


def test_weights_are_inputs_too(tmp_path):
    config = build(EvaluateConfig, model="bicubic", test="t", features={"weights": str(tmp_path / "vgg.pth")},
                   output=str(tmp_path))  # fmt: skip
    with pytest.raises(UsageError, match=r"--features\.weights"):
        config.check_files()


@pytest.mark.parametrize("job", [PREPARE, SYNTHESIZE, TRAIN_SR, TRAIN_DEGRADER, EVALUATE, SWEEP, REPORT, SAMPLE_FACES])
def test_a_job_without_any_option_says_what_is_missing(job, capsys):
    assert job.main([]) == 2
    said = capsys.readouterr().err
    assert "--output" in said
    assert len(said.splitlines()) == 1


def test_mlflows_uris_are_taken_where_they_are_meant():
    for kind, values in (
        (EvaluateConfig, {"model": "runs:/abc", "test": "t"}),
        (REPORT.config, {"runs": ("models:/a/1",)}),
    ):
        with pytest.raises(UsageError, match="unknown scheme"):
            build(kind, output="out", **values)


@pytest.mark.parametrize("name", ["real.png", "summary.json", "config.yaml"])
def test_no_output_replaces_what_no_job_wrote(name, tmp_path, hr_folder, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("title: mine")
    (out / "notes.txt").write_text("these alone would do no harm")
    options = ["--model", "bicubic", "--test", str(hr_folder)]
    code, said, _ = run(EVALUATE, out, *options, capsys=capsys)
    assert (code, (out / name).read_text()) == (2, "title: mine")
    assert name in said
    (out / name).unlink()
    for _ in range(2):  # again over its own
        assert run(EVALUATE, out, *options, capsys=capsys)[0] == 0


def test_a_denied_key_on_s3_is_the_stores_error(tmp_path, hr_folder, monkeypatch):
    """An expired token, a denied key or a skewed clock arrive as PermissionError; on a disk, that is one file's."""
    file = next(hr_folder.iterdir())

    def denied(*_: object, **__: object):
        raise PermissionError(errno.EACCES, "The provided token has expired.")

    monkeypatch.setattr(storage._S3, "cat_file", denied)
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StoreError, match="whether they have expired"):
        read_file("s3://bucket/a.png")
    with pytest.raises(BadImage, match="Permission denied"):
        read_file(str(file))
    monkeypatch.setattr("pyarrow.parquet.read_table", denied)
    with pytest.raises(StoreError, match="whether they have expired"):
        shards.read_columns("s3://bucket/part.parquet", ["id"])


@pytest.mark.slow
def test_small_faces_are_rejected_or_enlarged_and_counted(ray_local, tmp_path, capsys):
    """By every job that makes them larger than they are; an LR face may lack a quarter."""
    place = write_faces(tmp_path / "faces", 60)
    for i in range(12):
        face(i, 48).resize((20, 20)).save(place / f"small{i}.png")
    out = str(tmp_path / "shards")
    assert PREPARE.main(["--input", str(place), "--output", out]) == 0
    for job, *options in (
        (TRAIN_SR, "--model", "srcnn", "--hr", out),
        (EVALUATE, "--model", "bicubic", "--test", str(place)),
        (SYNTHESIZE, "--degrader", "bicubic", "--hr", out),
    ):
        name = f"{job.name}-{Path(options[-1]).name}"
        code, said, _ = run(job, tmp_path / name, *options, capsys=capsys)
        assert code == 2
        assert "12 of 72 files rejected" in said
        assert "20x20 px, shorter side under 64: give --allow-enlarged, or a smaller --hr-size" in said
        if job is not SYNTHESIZE:  # the same as in the corpus's test, and Ray takes its time
            _, _, strict = run(job, tmp_path / f"{name}-1", *options, "--max-rejected", "0.2", capsys=capsys)
            assert (strict["n_rejected"], strict["n_enlarged"]) == (12, 0)
        _, _, loose = run(job, tmp_path / f"{name}-2", *options, "--allow-enlarged", capsys=capsys)
        assert (loose["n_rejected"], loose["n_enlarged"]) == (0, 12)


def test_a_file_of_gigabytes_is_not_read(tmp_path):
    place = tmp_path / "huge.png"
    with place.open("wb") as file:
        file.truncate(2**40)  # of holes: it takes no room
    with pytest.raises(BadImage, match="too large: a file of 1048576 MiB"):
        read_file(str(place))


@pytest.mark.parametrize(("hr_size", "scale"), [(64, 8), (32, 4)])
def test_lr_faces_of_eight_px(ray_local, hr_size, scale, tmp_path, capsys):
    sharp, low = write_faces(tmp_path / "hr", 12, size=hr_size), tmp_path / "lr"
    low.mkdir()
    for i in range(12):
        face(i, 48).resize((8, 8)).save(low / f"{i}.png")
    sizes = ["--hr-size", str(hr_size), "--scale", str(scale)]
    options = ["--model", "bicubic", "--real", str(low), "--reference", str(sharp), *sizes]
    code, said, summary = run(EVALUATE, tmp_path / "e", *options, capsys=capsys)
    assert (code, summary["n_real"], summary["n_enlarged_real"]) == (0, 12, 0), said
    code, said, _ = run(PREPARE, tmp_path / "p", "--input", str(low), capsys=capsys)
    assert code == 2
    assert "8x8 px, shorter side under 12: lower --min-side" in said


@pytest.mark.slow
def test_copies_never_straddle_the_splits(ray_local, tmp_path, capsys):
    """Of equal bytes under several names, one is trained or validated on, in folders, shards and pairs."""
    place = write_faces(tmp_path / "faces", 60)
    for file in sorted(place.iterdir()):
        (place / f"copy-{file.name}").write_bytes(file.read_bytes())
    for name, source in (("folder", place), ("shards", tmp_path / "p")):
        if name == "shards":
            _, _, made = run(PREPARE, source, "--input", str(place), "--rows-per-shard", "7", capsys=capsys)
            assert (made["n"], made["rejected_copy"]) == (60, 60)
        faces = load_faces(str(source), 64)
        assert (len(faces), faces.copies) == (60, 60 if name == "folder" else 0)
        assert not set(faces.subset("train").digests) & set(faces.subset("val").digests)
    assert run(SYNTHESIZE, tmp_path / "s", "--hr", str(place), "--degrader", "bicubic", capsys=capsys)[0] == 0
    pairs = load_pairs(str(tmp_path / "s"))
    train, held = ({x.numpy().tobytes() for x in pairs.subset(split).hr} for split in ("train", "val"))
    assert (len(pairs), pairs.copies, len(train & held)) == (60, 60, 0)
    assert held


def test_a_copy_is_no_reason(ray_local, tmp_path, capsys):
    """What is wrong with a folder is told by a file with which something is, and copies are no part of its share."""
    place = write_faces(tmp_path / "faces", 1)
    for i in range(9):
        (place / f"a{i}.png").write_bytes((place / "0000.png").read_bytes())
    (place / "line\nbreak.png").write_bytes(b"no image")
    (place / "z.png").write_bytes(b"no image")
    code, said, _ = run(PREPARE, tmp_path / "p", "--input", str(place), "--rows-per-shard", "5", capsys=capsys)
    assert (code, len(said.splitlines())) == (2, 1)
    assert "2 of 3 files rejected" in said
    assert "unreadable: no JPEG" in said


def test_two_files_never_have_one_id(tmp_path):
    place = write_faces(tmp_path / "faces", 1)
    for name in (b"a\xff.png", rb"a\xff.png"):
        Path(os.fsdecode(os.path.join(os.fsencode(place), name))).write_bytes(b"")
    with pytest.raises(UsageError, match="two files have one name"):
        find(str(place))


# Images


def test_colours_of_another_profile_become_srgb():
    """By Display P3's definition: linear light, D65 white in both, primaries of P3. Within 2 grey levels (8 bits twice)."""
    image = Image.fromarray(np.random.default_rng(0).integers(60, 190, (16, 16, 3), np.uint8))
    found = decode(encoded(image, "PNG", icc_profile=p3_profile())).astype(float)
    to_srgb = np.array([[1.2249, -0.2247, 0], [-0.0420, 1.0419, 0], [-0.0197, -0.0786, 1.0979]])  # CSS Color 4
    x = np.asarray(image) / 255
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ to_srgb.T
    linear = np.clip(linear, 0, 1)
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(found - expected).max() < 2
    assert np.abs(found - np.asarray(image)).max() > 10  # as it was shown before
    assert not is_plain(encoded(image, "PNG", icc_profile=p3_profile()))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decode(encoded(image, "PNG", icc_profile=srgb)), np.asarray(image))
    assert is_plain(encoded(image, "PNG", icc_profile=srgb))


def test_grey_of_another_profile_becomes_srgb():
    """Linear light of 50 % is 188 in sRGB; the profile has a curve and no colours."""
    white, curve = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061), struct.pack(">4s4xI", b"curv", 0)
    text = b"desc" + struct.pack(">4xI", 7) + b"Linear\0" + bytes(79)
    tags, at = b"", 132 + 12 * 3
    for tag, data in ((b"wtpt", white), (b"kTRC", curve), (b"desc", text)):
        tags += struct.pack(">4sII", tag, at, len(data))
        at += len(data)
    header = struct.pack(">I4sI4s4s4s12x4s", at, b"test", 0x02100000, b"mntr", b"GRAY", b"XYZ ", b"acsp")
    header += bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    profile = header + struct.pack(">I", 3) + tags + white + curve + text
    grey = encoded(Image.new("L", (8, 8), 128), "JPEG", icc_profile=profile)
    assert np.abs(decode(grey).astype(int) - 188).max() <= 1


def test_sixteen_bits_become_eight():
    data = sixteen_bit(face(0))
    assert not is_plain(data)
    row = face_row("a.png", data, "s")
    assert row["image"][24] == 8
    assert np.array_equal(decode(row["image"]), np.asarray(face(0)))


def test_no_decoder_but_the_four_is_asked(monkeypatch):
    """Whatever Pillow would make of it: EPS starts Ghostscript."""
    asked = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **_: asked.append(args))
    for kind in ("EPS", "GIF", "TIFF", "PPM", "ICO"):
        with pytest.raises(BadImage, match="no JPEG, PNG, WebP or BMP"):
            decode(encoded(face(0), kind))
    assert not asked


def test_large_images_take_turns():
    """Four at once, in threads, as they are loaded: less than two copies of one's pixels in all, at 3 bytes each. A
    child's peak, as Linux counts it."""
    code = (
        "import io, sys, resource, threading; from concurrent.futures import ThreadPoolExecutor\n"
        "from PIL import Image; from facelab.data.faces import training_face\n"
        "buffer = io.BytesIO(); Image.new('RGB', (100, 100)).resize((7000, 7000)).save(buffer, 'JPEG')\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "data = buffer.getvalue(); del buffer\n"
        "list(ThreadPoolExecutor(4).map(lambda _: training_face(data, 64, 64), range(4)))\n"
        "print(peak())"
    )

    def peak(side: int) -> float:
        env = os.environ | {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}
        done = subprocess.run([sys.executable, "-c", code.replace("7000", str(side))], env=env, capture_output=True,
                              text=True, check=True)  # fmt: skip
        return float(done.stdout)

    # Making the file takes one copy of the pixels, too, and is gone by then.
    assert peak(7000) - peak(100) < 2.2 * 3 * 7000**2 / 2**20


def test_native_images_are_measured_as_they_come(tmp_path, hr_folder, monkeypatch):
    """Whole photographs are not held 64 at a time; the numbers do not depend on it."""
    config = build(
        EvaluateConfig, preset="debug", model="bicubic", test=str(hr_folder), native=True, output=str(tmp_path)
    )
    whole = evaluate(config)
    monkeypatch.setattr(measure, "_MOST_PIXELS", 3 * 64 * 64)
    largest, groups = [], measure.Measure._measure_groups

    def watched(self, held, out):
        largest.append(sum(face.pixels for group in held.values() for face in group))
        groups(self, held, out)

    monkeypatch.setattr(measure.Measure, "_measure_groups", watched)
    assert evaluate(config) == whole
    assert max(largest) <= 5 * 64 * 64


# Places, secrets, disks


def test_file_uris(tmp_path):
    assert storage.normalise("file:///a%20b/c%23d") == "/a b/c#d"
    assert storage.normalise("file:///a#b?c") == "/a#b?c"
    assert storage.normalise("FILE://localhost/a") == storage.normalise("file:/a") == "/a"
    assert storage.normalise("S3://Bucket/Key/") == "s3://Bucket/Key"
    assert storage.normalise("~") == str(Path.home())


def test_a_table_beside_the_images_is_no_shard(tmp_path):
    place = write_faces(tmp_path / "faces", 3)
    for name in ("metadata.parquet", "part-0.parquet"):
        pq.write_table(pa.table({"name": ["0000.png"]}), place / name)
    assert len(load_faces(str(place), 64)) == 3


SECRET = "hunter2"


@pytest.mark.parametrize("uri", [
    "postgresql://u:hunter2@h/db", "postgresql://u:p/hunter2@h/db", "postgresql://u:p@hunter2@h/db",
    "mysql+pymysql://u:hunter2'x\"y@h", "https://:hunter2@h", "https://hunter2@h/x", "https://h/x?password=hunter2",
    "https://h/x?a=1&sig=hunter2", "HTTPS://u:hunter2@h:5000/#x", "http://u:a b hunter2@h",
])  # fmt: skip
def test_no_secret_can_be_read(uri, capsys, tmp_path):
    """In config.yaml, error messages and the report; what is left can be read back as YAML. On a command line, where `ps`
    and Ray show it, it is refused."""
    config = build(TrainSRConfig, model="srcnn", hr="hr", output="out", tracking_uri=uri)
    assert SECRET not in to_yaml(config)
    assert yaml.safe_load(to_yaml(config))["model"] == "srcnn"
    if " " not in uri:  # in a sentence, a URL ends there
        options = ["--model", "srcnn", "--hr", "hr", "--output", "out", "--tracking-uri", uri, "--dry-run"]
        assert TRAIN_SR.main(options) == 2
        assert SECRET not in without_secret(f"cannot reach {uri}: refused")
    assert SECRET not in "".join(capsys.readouterr())


def test_what_is_no_secret_stays():
    for text in ("s3://bucket/a@2x/b?c", "/a@b:c", "sqlite:////a@b/mlflow.db", "http://host:5000/x", "models:/x@best"):
        assert without_secret(text) == text
    assert without_secret("s3://key:secret/with@bucket/x") == "s3://***@bucket/x"


@pytest.mark.parametrize(("code", "hint"), [
    (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.EACCES, "rights"),
])  # fmt: skip
def test_a_disk_that_refuses_says_why(code, hint, tmp_path, hr_folder, monkeypatch, capsys):
    def refuse(*_: object, **__: object):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", refuse)
        with pytest.raises(StoreError, match=hint):
            storage.write_text(str(tmp_path / "file"), "text")
    if hint == "rights":
        return
    options = ["--model", "srcnn", "--hr", str(hr_folder)]
    monkeypatch.setattr(Path, "write_bytes", refuse)
    code, said, _ = run(TRAIN_SR, tmp_path / "sr", *options, capsys=capsys)
    assert code == 1
    assert hint in said


def test_yaml_of_yes_and_no_is_not_guessed(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("experiment: 'no'\nrotate: yes\ncompute: {gpu: off}\n")
    config = parse(TrainSRConfig, ["--model", "srcnn", "--hr", "hr", "--output", "o", "--config", str(file)], "job")
    assert (config.experiment, config.rotate, config.compute.gpu) == ("no", True, False)
