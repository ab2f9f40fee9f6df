"""A pair depends on seed, HR content, variant, model, style bank and mode; on nothing else."""

import io
import shutil

import numpy as np
import pytest
import torch
from conftest import files_of, save_degrader
from facelab.cluster import room
from facelab.config import build
from facelab.data import decoding, shards
from facelab.data.faces import face_row
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.source import find
from facelab.data.tensors import load_faces, load_pairs
from facelab.data.work import HELPER_CPUS, require_actors
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import evaluate
from facelab.images import decode_tensor, to_float
from facelab.samples.faces import sample_face
from facelab.synthesis import styles
from facelab.synthesis.job import Steps, SynthesizeConfig, load_degrader, synthesize
from facelab.synthesis.pairs import decode_faces
from facelab.synthesis.styles import _codes
from facelab.trained import store
from PIL import Image
from ray import cloudpickle

from models import build_degrader
from models.resize import resize


@pytest.fixture(scope="module")
def hr_shards(ray_local, hr_folder, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("shards"))
    prepare(build(PrepareConfig, input=str(hr_folder), output=out, rows_per_shard=7))
    return out


def config(hr, lr, degrader, out, **values) -> SynthesizeConfig:
    base = dict(hr=str(hr), lr=lr and str(lr), degrader=degrader, output=str(out), variants=2, rows_per_shard=16)
    return build(SynthesizeConfig, **base | {"actors": 0} | values)


def rows(uri) -> dict[str, dict]:
    return {row["id"]: row for row in find(str(uri), "pairs").read(shards.PAIR_SCHEMA.names)}


@pytest.mark.slow
def test_pairs_are_identical_in_this_process_and_by_three_actors(
    ray_local, tmp_path, hr_folder, hr_shards, lr_folder, degrader
):
    """From a folder or from shards, however the faces are cut into them, and into batches; of one cut, the files are."""
    threads = torch.get_num_threads()
    one = synthesize(config(hr_shards, lr_folder, degrader, tmp_path / "one"))
    assert torch.get_num_threads() == threads
    three = config(hr_shards, lr_folder, degrader, tmp_path / "three", actors=3, cpus_per_actor=0.25)
    assert synthesize(three)["data_hash"] == one["data_hash"]
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")
    fives = synthesize(config(hr_folder, lr_folder, degrader, tmp_path / "fives", micro_batch=5, rows_per_shard=13))
    assert fives["data_hash"] == one["data_hash"]
    assert one["n"] == 120
    a, b = rows(tmp_path / "one"), rows(tmp_path / "fives")
    assert a == b
    assert len({row["lr"] for row in a.values()}) == 120  # every variant differs
    first = a["0000.png#1"]
    assert (first["hr_id"], first["variant"], first["style_mode"]) == ("0000.png", 1, "random")
    assert first["style_ids"][0].endswith(".png")
    assert first["model"].startswith("stylevae@")


def test_the_style_bank_is_encoded_once(hr_folder, lr_folder, degrader, tmp_path, monkeypatch):
    """Part by part, copies and unusable faces left out; other faces or another degrader are encoded anew."""
    folder = shutil.copytree(lr_folder, tmp_path / "lr")
    broken, gone, twice, *_ = sorted(folder.iterdir())
    shutil.copy(twice, folder / "copy.png")
    broken.write_bytes(b"no image")
    given = config(hr_folder, folder, degrader, tmp_path / "out")
    monkeypatch.setattr(decoding, "_IMAGES", 7)
    bank = load_degrader(given).bank
    monkeypatch.undo()
    faces = load_faces(str(folder), given.lr_size)
    assert sorted(bank.ids.to_pylist()) == faces.ids
    assert bank.hash == faces.hash
    network = store.load_model(degrader, "degrader").network
    mu, logvar = (part.detach() for part in network.encode_style(to_float(faces.images)))
    order = [faces.ids.index(name) for name in bank.ids.to_pylist()]
    for found, expected in ((bank.mu, mu[order]), (bank.logvar, logvar[order])):
        assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
    assert (np.diff(bank.luminance) >= 0).all()
    encoded = []
    monkeypatch.setattr(styles, "_codes", lambda *given: encoded.append(1) or _codes(*given))
    again = load_degrader(given).bank
    assert not encoded
    assert (again.hash, again.ids.to_pylist()) == (bank.hash, bank.ids.to_pylist())
    assert np.array_equal(again.mu, bank.mu)
    gone.unlink()
    assert len(load_degrader(given).bank) == len(bank) - 1
    load_degrader(given.model_copy(update={"degrader": save_degrader(tmp_path / "other", 4)}))
    assert len(encoded) == 2


def test_place_in_the_batch_does_not_matter(hr_folder, lr_folder, degrader, tmp_path):
    d = load_degrader(config(hr_folder, lr_folder, degrader, tmp_path))
    faces = load_faces(str(hr_folder), 64)
    hr, digests = faces.images[:10], faces.digests[:10]
    whole, _ = d.degrade(hr, digests, 0)
    order = torch.tensor([7, 2, 9, 0, 4, 1, 8, 3, 6, 5])
    shuffled, _ = d.degrade(hr[order], [digests[i] for i in order], 0)
    assert torch.equal(whole[order], shuffled)
    alone, _ = d.degrade(hr[5:6], digests[5:6], 0)
    assert torch.equal(alone, whole[5:6])


def test_who_reads_and_who_writes_has_no_copy_of_the_model(hr_folder, lr_folder, degrader, tmp_path):
    given = config(hr_folder, lr_folder, degrader, tmp_path)
    steps = Steps.of(given, load_degrader(given))
    copied = [len(cloudpickle.dumps(step)) for step in (steps.read, steps.encode)]
    assert max(copied) < 4000 < len(cloudpickle.dumps(steps.degrade))


def test_actors_that_find_no_room_beside_their_helpers_are_refused(ray_local):
    pool = config("unused", None, "bicubic", "unused", actors=1, cpus_per_actor=room()["CPU"] - HELPER_CPUS)
    require_actors(pool, "a reader")
    with pytest.raises(UsageError, match=r"beside a reader and a writer need .* CPUs, but this machine has"):
        require_actors(pool, "a reader", "a writer")


def test_classical_and_high_to_low_need_no_style_bank(hr_folder, tmp_path):
    """Each face and variant has its own draw, wherever it stands in a batch."""
    torch.manual_seed(0)
    place = str(tmp_path / "model")
    store.save_model(place, "degrader", "bulat", build_degrader("bulat", 4, size="mini"), 4, 64)
    faces = load_faces(str(hr_folder), 64)
    hr, digests = faces.images[:6], faces.digests[:6]
    for name in ("classical", place):
        d = load_degrader(config(hr_folder, None, name, tmp_path))
        assert d.style_mode == "none"
        assert d.name == "classical" or d.name.startswith("bulat@")
        (whole, ids), (other, _) = d.degrade(hr, digests, 0), d.degrade(hr, digests, 1)
        assert ids == [[]] * 6
        assert not any(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
        order = torch.tensor([4, 2, 5, 0, 1, 3])
        shuffled, _ = d.degrade(hr[order], [digests[i] for i in order], 0)
        assert torch.equal(whole[order], shuffled)


def test_styles_of_the_prior(tmp_path, hr_folder, degrader):
    """Each face has its own, of no real face."""
    given = config(hr_folder, None, degrader, tmp_path, style_mode="prior", variants=1)
    steps = Steps.of(given, load_degrader(given))
    (unit,) = find(str(hr_folder), "faces").units(60)
    made = list(steps.encode(steps.degrade(steps.read(unit))))
    assert {(row["style_mode"], row["style_bank"], *row["style_ids"]) for row in made} == {("prior", "")}
    assert len({row["lr"] for row in made}) == len(made) == 60


@pytest.fixture(scope="module")
def bicubic_pairs(hr_folder, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("bicubic"))
    synthesize(config(hr_folder, None, "bicubic", out, variants=1))
    return out


def test_bicubic_pairs_are_the_faces_with_bicubic_lr(tmp_path, hr_folder, bicubic_pairs):
    """Evaluated, too, but under a protocol of their own."""
    pairs = load_pairs(bicubic_pairs)
    assert torch.equal(pairs.lr, resize(pairs.hr, 16))
    from_pairs, from_faces = (
        evaluate(build(EvaluateConfig, model="bicubic", test=test, actors=0, output=str(tmp_path / "e")))
        for test in (bicubic_pairs, str(hr_folder))
    )
    assert from_pairs["psnr_rgb"] == pytest.approx(from_faces["psnr_rgb"], abs=1e-9)
    assert from_pairs["data_hash"] == from_faces["data_hash"]
    assert from_pairs["protocol_psnr_rgb"] != from_faces["protocol_psnr_rgb"]


def test_wrong_inputs_are_refused(ray_local, tmp_path, hr_folder, lr_folder, degrader, bicubic_pairs):
    with pytest.raises(UsageError, match="needs --lr"):
        synthesize(config(hr_folder, None, degrader, tmp_path / "none"))
    with pytest.raises(UsageError, match="trained for --hr-size 64"):
        synthesize(config(hr_folder, lr_folder, degrader, tmp_path / "a", hr_size=32))
    with pytest.raises(UsageError, match="CPUs"):
        synthesize(config(hr_folder, lr_folder, degrader, bicubic_pairs, actors=500, overwrite=True))
    assert len(load_pairs(bicubic_pairs)) == 60  # nothing was replaced
    with pytest.raises(UsageError, match="no trained model"):
        synthesize(config(hr_folder, lr_folder, str(hr_folder), tmp_path / "c"))


def test_a_pair_has_the_pixels_that_were_degraded_and_the_file_itself_where_it_can():
    """A PNG of another compression, so that encoding it again would not give the same bytes."""
    face = Image.fromarray(sample_face(0, 0, 64))
    rows = []
    for name, image, options in (
        ("own.png", face, {"format": "PNG", "compress_level": 9}),
        ("small.jpg", face, {"format": "JPEG"}),
        ("large.png", face.resize((96, 80)), {"format": "PNG", "compress_level": 9}),
    ):
        image.save(buffer := io.BytesIO(), **options)
        rows.append(face_row(name, buffer.getvalue(), "here") | {"rejected": ""})
    faces = decode_faces(rows, 64, 64)
    for row, pixels in zip(faces.rows, faces.hr, strict=True):
        assert Image.open(io.BytesIO(row["hr"])).format == "PNG"
        assert torch.equal(decode_tensor(row["hr"]), pixels)
    assert [row["hr"] == given["image"] for row, given in zip(faces.rows, rows, strict=True)] == [True, False, False]
