"""Every kind of image file, what is set aside, shards, manifests, storage, samplers, sample faces."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_faces
from facelab import storage
from facelab.config import build
from facelab.data import shards
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.tensors import load_faces, load_pairs
from facelab.errors import UsageError
from facelab.images import BadImage, decode, encode_png, training_image
from facelab.samples.faces import sample_face
from facelab.samples.nuisance import degrade
from facelab.synthesis.classical import degrade_classically
from facelab.training.batches import batch_indices, cropped, draws, mirrored, turned
from PIL import Image

from models.resize import resize


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def face() -> np.ndarray:
    return sample_face(0, 0, 48)


def test_every_kind_of_file_becomes_rgb(face):
    image = Image.fromarray(face)
    alpha = image.convert("RGBA")
    alpha.putalpha(Image.new("L", image.size, 0))
    sixteen = Image.fromarray(np.full((48, 48), 257 * 100, np.uint16))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    assert np.array_equal(decode(encoded(image, "PNG")), face)
    assert np.array_equal(decode(encoded(image, "BMP")), face)
    assert np.array_equal(decode(encoded(image, "WEBP", lossless=True)), face)
    assert decode(encoded(image.convert("CMYK"), "JPEG")).shape == (48, 48, 3)
    assert decode(encoded(image.convert("L"), "PNG")).shape == (48, 48, 3)
    assert (decode(encoded(alpha, "PNG")) == 255).all()  # fully transparent: white
    assert (decode(encoded(sixteen, "PNG")) == 100).all()
    wide = Image.fromarray(face[:24])
    assert decode(encoded(wide, "JPEG", exif=rotated)).shape == (48, 24, 3)


def bomb() -> bytes:
    """A PNG header that promises 100 000 x 100 000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def test_bad_files_are_told_apart(face):
    good = encoded(Image.fromarray(face), "JPEG")
    for data, reason in (
        (b"no image", "unreadable"),
        (good[: len(good) // 2], "truncated"),
        (bomb(), "bomb"),
        (b"", "unread"),
    ):
        with pytest.raises(BadImage, match=reason):
            decode(data)


def test_training_image_is_the_centre_square(face):
    wide = np.concatenate([np.zeros((48, 30, 3), np.uint8), face, np.zeros((48, 30, 3), np.uint8)], axis=1)
    assert np.array_equal(training_image(encode_png(wide), 48).permute(1, 2, 0).numpy(), face)


def test_prepare_sets_bad_files_aside(ray_local, tmp_path, face):
    folder = write_faces(tmp_path / "in" / "deep" / "er", 5)
    (folder / "text.jpg").write_bytes(b"no image")
    (folder / "half.jpg").write_bytes(encoded(Image.fromarray(face), "JPEG")[:500])
    (folder / "bomb.png").write_bytes(bomb())
    Image.fromarray(face[:8]).save(folder / "tiny.bmp")
    out = tmp_path / "out"
    summary = prepare(build(PrepareConfig, input=str(tmp_path / "in"), output=str(out), rows_per_shard=3))
    assert (summary["n"], summary["n_rejected"]) == (5, 4)
    rejected = pq.read_table(out / "rejected.parquet").to_pylist()
    assert {row["id"].split("/")[-1]: row["reason"].split(":")[0] for row in rejected} == {
        "text.jpg": "unreadable", "half.jpg": "truncated", "bomb.png": "decompression bomb", "tiny.bmp": "too small",
    }  # fmt: skip
    assert len(load_faces(str(out), 32)) == 5
    # Other shards of the same rows have the same hash.
    again = prepare(
        build(PrepareConfig, input=str(tmp_path / "in"), output=str(tmp_path / "again"), rows_per_shard=100)
    )
    assert again["data_hash"] == summary["data_hash"]
    with pytest.raises(UsageError, match="finished shard set"):
        prepare(build(PrepareConfig, input=str(tmp_path / "in"), output=str(out)))


def test_prepare_fails_when_too_much_or_all_is_rejected(ray_local, tmp_path):
    folder = write_faces(tmp_path / "in", 2)
    for i in range(3):
        (folder / f"bad{i}.png").write_bytes(b"no image")
    with pytest.raises(RuntimeError, match="3 of 5 files rejected"):
        prepare(build(PrepareConfig, input=str(folder), output=str(tmp_path / "a")))
    for good in folder.glob("00*.png"):
        good.unlink()
    with pytest.raises(UsageError, match="none of 3 files is usable"):
        prepare(build(PrepareConfig, input=str(folder), output=str(tmp_path / "b")))
    with pytest.raises(UsageError, match="no images"):
        prepare(build(PrepareConfig, input=str(tmp_path / "a"), output=str(tmp_path / "c")))


def test_shards_without_manifest_are_not_taken_for_whole(tmp_path):
    row = dict(id="a", image=b"x", height=1, width=1, source="s", split="train", sha256="0")
    summary = shards.write_shard(str(tmp_path), [row], shards.FACE_SCHEMA)
    with pytest.raises(UsageError, match="did not finish"):
        load_faces(str(tmp_path), 32)
    shards.finish_set(str(tmp_path), "faces", [summary], {})
    with pytest.raises(UsageError, match="faces, but pairs"):
        load_pairs(str(tmp_path))
    next(tmp_path.glob("part-*.parquet")).write_bytes(b"PAR1 half")
    with pytest.raises(UsageError, match="damaged shard"):
        load_faces(str(tmp_path), 32)


def test_row_hash_does_not_depend_on_order_or_split():
    rows = [{"id": str(i), "image": bytes([i])} for i in range(5)]
    whole, left, right = shards.RowHash(), shards.RowHash(), shards.RowHash()
    for row in rows:
        whole.add(row)
    for row in reversed(rows):
        (left if int(row["id"]) % 2 else right).add(row)
    assert (left + right).hexdigest() == whole.hexdigest()
    left.add(rows[0])
    assert (left + right).hexdigest() != whole.hexdigest()


def test_a_tenth_is_held_out():
    share = np.mean([shards.split_of(f"face{i}") == "val" for i in range(5000)])
    assert 0.085 < share < 0.115  # three standard errors


def test_writes_are_whole_or_absent(tmp_path, monkeypatch):
    place = str(tmp_path / "deep" / "file")
    storage.write_text(place, "old")
    monkeypatch.setattr("os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(UsageError, match="disk full"):
        storage.write_text(place, "new")
    assert storage.read_bytes(place) == b"old"
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["file"]


def test_uris(tmp_path):
    assert storage.normalise(f"file://{tmp_path}") == str(tmp_path)
    assert storage.normalise("s3://bucket/a/") == "s3://bucket/a"
    for wrong in ("gs://bucket", "s3:///prefix"):
        with pytest.raises(UsageError):
            storage.normalise(wrong)
    with pytest.raises(UsageError, match="not found"):
        load_faces(str(tmp_path / "nothing"), 32)


def test_sampler_covers_every_face_once_an_epoch():
    seen = torch.cat([batch_indices(10, 4, step, seed=0, stream="hr") for step in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_one_global_batch(world):
    whole = batch_indices(50, 8, 3, seed=1, stream="hr")
    parts = [batch_indices(50, 8, 3, seed=1, stream="hr", rank=r, world_size=world) for r in range(world)]
    assert sorted(torch.cat(parts).tolist()) == sorted(whole.tolist())
    parts = [draws("flip", 8, 3, seed=1, rank=r, world_size=world) for r in range(world)]
    assert torch.equal(torch.stack(parts, 1).flatten(), draws("flip", 8, 3, seed=1))
    assert not torch.equal(draws("flip", 8, 3, seed=1), draws("turn", 8, 3, seed=1))


def test_augmentation_by_definition():
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    assert torch.equal(mirrored(images, torch.tensor([0.2, 0.7])), torch.stack([images[0].flip(2), images[1]]))
    assert torch.equal(turned(images, torch.tensor([0.1, 0.6])), torch.stack([images[0], images[1].flip(1).flip(2)]))
    assert torch.equal(turned(images, torch.tensor([0.3, 0.3]))[0], images[0].transpose(1, 2).flip(1))


def test_crops_of_a_pair_show_the_same_place():
    """LR is a fourth of HR by average: the crop of the one is that of the other; every corner is reached, none beyond."""
    hr = torch.rand(300, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    place = (draws("top", 300, 0, seed=0), draws("left", 300, 0, seed=0))
    small, large = cropped(lr, 4, place), cropped(hr, 16, place, grid=4)
    torch.testing.assert_close(torch.nn.functional.avg_pool2d(large, 4), small)
    corners = {tuple(c) for c in zip(*((d * 3).long().tolist() for d in place), strict=True)}
    assert len(corners) == 9


def test_classical_degradation_is_seeded_varied_and_keeps_the_face():
    """Draws differ and depend on the generator alone; on average they are nearer to this face's bicubic LR than to that of
    any other of ten faces, by a factor of 1.5; sizes that are no square are kept."""
    face = sample_face(0, 1, 64)

    def draw(seed: int) -> np.ndarray:
        return degrade_classically(face, 4, np.random.default_rng(seed))

    assert np.array_equal(draw(3), draw(3))
    many = np.stack([draw(seed) for seed in range(60)]).astype(float)
    assert many.shape == (60, 16, 16, 3)
    apart = np.abs(many[:, None] - many[None]).mean(axis=(2, 3, 4))
    assert apart[~np.eye(60, dtype=bool)].min() > 1
    faces = torch.stack([torch.from_numpy(sample_face(0, i, 64)).permute(2, 0, 1) for i in range(1, 11)])
    bicubic = resize(faces, 16).permute(0, 2, 3, 1).numpy()
    distances = np.abs(many.mean(axis=0) - bicubic).mean(axis=(1, 2, 3))
    assert 1.5 * distances[0] < distances[1:].min()
    assert degrade_classically(face[:48], 2, np.random.default_rng(0)).shape == (24, 32, 3)


def test_sample_faces_are_seeded_and_varied():
    assert np.array_equal(sample_face(0, 5, 48), sample_face(0, 5, 48))
    faces = np.stack([sample_face(0, i, 32) for i in range(12)]).astype(float)
    apart = [np.abs(faces[i] - faces[j]).mean() for i in range(12) for j in range(i)]
    assert min(apart) > 8  # grey levels: no two are alike
    small, large = sample_face(0, 3, 32).astype(float), sample_face(0, 3, 64).astype(float)
    assert np.abs(large.reshape(32, 2, 32, 2, 3).mean((1, 3)) - small).mean() < 8  # the same face at any size


def test_nuisance_varies_blurs_and_keeps_colours(face):
    rng = np.random.default_rng(0)
    lows = np.stack([degrade(face, 4, rng) for _ in range(20)])
    assert lows.shape == (20, 12, 12, 3)
    assert lows.dtype == np.uint8
    assert len({low.tobytes() for low in lows}) == 20
    bicubic = resize(torch.from_numpy(face).permute(2, 0, 1)[None], 12)[0].permute(1, 2, 0).numpy()
    assert np.abs(lows.mean((0, 1, 2)) - bicubic.mean((0, 1))).max() < 4
    assert lows.astype(float).var((1, 2)).mean() < bicubic.astype(float).var((0, 1)).mean()


def test_manifest_is_json(tmp_path):
    shards.finish_set(str(tmp_path), "faces", [], {"seed": 1})
    assert json.loads((tmp_path / "manifest.json").read_text())["details"] == {"seed": 1}
