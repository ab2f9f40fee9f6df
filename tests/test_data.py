"""Every kind of image file, what is set aside, shards, manifests, storage, samplers, sample faces."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_faces, write_set
from facelab import storage
from facelab.config import build
from facelab.data import shards
from facelab.data.faces import face_row
from facelab.data.manifest import read_manifest
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.shard_set import Totals, claimed
from facelab.data.source import scan_images
from facelab.data.tensors import load_faces, load_pairs
from facelab.data.units import image_units
from facelab.errors import UsageError
from facelab.images import BadImage, decode, encode_png, training_image
from facelab.samples.faces import sample_face
from facelab.samples.nuisance import degrade
from facelab.synthesis.classical import degrade_classically
from facelab.synthesis.job import SynthesizeConfig, synthesize
from facelab.training.batches import batch_indices, cropped, draws, mirrored, turned
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.resize import resize


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def face() -> np.ndarray:
    return sample_face(0, 0, 48)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in grey levels."""
    return float(np.abs(a.astype(float) - b).mean())


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
    assert apart(decode(encoded(image.convert("CMYK"), "JPEG")), face) < 3  # inverted, it would be 90
    grey = image.convert("L")
    assert np.array_equal(decode(encoded(grey, "PNG")), np.asarray(grey.convert("RGB")))
    assert (decode(encoded(alpha, "PNG")) == 255).all()  # fully transparent: white
    assert (decode(encoded(sixteen, "PNG")) == 100).all()
    wide = Image.fromarray(face[:24])
    assert apart(decode(encoded(wide, "JPEG", exif=rotated)), np.rot90(face[:24], -1)) < 6  # turned otherwise, 30


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
    assert np.array_equal(training_image(Image.fromarray(wide), 48).permute(1, 2, 0).numpy(), face)


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
    with pytest.raises(UsageError, match="begun with rows_per_shard 3, not 2000"):
        prepare(build(PrepareConfig, input=str(tmp_path / "in"), output=str(out)))


def test_prepare_fails_when_too_much_or_all_is_rejected(ray_local, tmp_path):
    folder = write_faces(tmp_path / "in", 2)
    for i in range(3):
        (folder / f"bad{i}.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="3 of 5 files rejected"):
        prepare(build(PrepareConfig, input=str(folder), output=str(tmp_path / "a")))
    for good in folder.glob("00*.png"):
        good.unlink()
    with pytest.raises(UsageError, match="none of 3 files is usable"):
        prepare(build(PrepareConfig, input=str(folder), output=str(tmp_path / "b")))
    with pytest.raises(UsageError, match="no images"):
        prepare(build(PrepareConfig, input=str(tmp_path / "a"), output=str(tmp_path / "c")))


def test_shards_without_manifest_are_not_taken_for_whole(tmp_path):
    row = dict(id="a", image=b"x", height=1, width=1, source="s", split="train", sha256="0")
    shards.commit(str(tmp_path), "0" * 20, [row], [], shards.FACE_SCHEMA)
    with pytest.raises(UsageError, match="did not finish"):
        load_faces(str(tmp_path), 32)
    write_set(str(tmp_path), "faces", [row])
    with pytest.raises(UsageError, match="faces, but pairs"):
        load_pairs(str(tmp_path))
    shard = tmp_path / read_manifest(str(tmp_path)).shards[0].name
    shard.write_bytes(b"PAR1 half")
    with pytest.raises(UsageError, match=f"{shard}: changed since"):
        load_faces(str(tmp_path), 32)
    shard.unlink()
    with pytest.raises(UsageError, match=f"{shard}: not found.*write the set again"):
        load_faces(str(tmp_path), 32)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace(shard.name, "../../secret.parquet"))
    with pytest.raises(UsageError, match="which is no shard"):
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
    assert abs(share - 0.1) < 0.0127  # three standard errors


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


@given(
    count=st.integers(1, 60), per_rank=st.integers(1, 5), ranks=st.integers(1, 6), seed=st.integers(0, 3),
    epochs=st.integers(1, 4),
)  # fmt: skip
@settings(deadline=None)
def test_the_sampler_shows_every_face_once_an_epoch_whatever_the_ranks(count, per_rank, ranks, seed, epochs):
    """Over (N, ranks, seed, epoch): the ranks' parts, interleaved, are the one global batch; the stream of batches is
    epoch after epoch a permutation of all N, whether a batch spans two, ten or none; another seed, another order."""
    batch = per_rank * ranks
    stream = []
    for step in range(-(-count * epochs // batch)):
        parts = [
            batch_indices(count, batch, step, seed=seed, stream="hr", rank=rank, world_size=ranks)
            for rank in range(ranks)
        ]
        assert {len(part) for part in parts} == {per_rank}
        assert torch.equal(torch.stack(parts, 1).flatten(), batch_indices(count, batch, step, seed=seed, stream="hr"))
        stream += torch.stack(parts, 1).flatten().tolist()
    orders = [stream[epoch * count : (epoch + 1) * count] for epoch in range(epochs)]
    assert all(sorted(order) == list(range(count)) for order in orders)
    if count > 20:  # by chance equal: less than once in 20!
        assert len({tuple(order) for order in orders}) == epochs
        other = [
            batch_indices(count, count, 0, seed=s, stream=name).tolist() for s, name in ((seed + 1, "hr"), (seed, "lr"))
        ]
        assert orders[0] not in other


@pytest.mark.parametrize("world", [2, 4])
def test_draws_of_the_ranks_are_those_of_the_global_batch(world):
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


def face_rows(count: int, split: str | None = None) -> list[dict]:
    rows = [face_row(f"{i}.png", encode_png(sample_face(0, i, 32)), "s") for i in range(count)]
    return [row | ({"split": split} if split else {}) for row in rows]


def test_a_set_is_made_of_its_receipts(tmp_path):
    """Rows, hash and rejections add up, however the rows are cut; a unit done again leaves the same files; one whose
    receipt was not written is not taken for done."""
    rows, bad = face_rows(5), [{"id": "x", "source": "s", "reason": "truncated: half"}]
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    one = shards.commit(whole, "a" * 20, rows, bad, shards.FACE_SCHEMA)
    for name, part, rejected in (("b" * 20, rows[:2], []), ("c" * 20, rows[2:], bad), ("d" * 20, [], bad)):
        shards.commit(parts, name, part, rejected, shards.FACE_SCHEMA)
    found = list(shards.read_receipts(parts, [letter * 20 for letter in "bcd"]))
    assert [(r.rows, len(r.rejected), bool(r.sha256)) for r in found] == [(2, 0, True), (3, 1, True), (0, 1, False)]
    totals = Totals.of(found)
    assert totals.row_hash.hexdigest() == one.row_hash
    assert (totals.rows, totals.rejected, totals.reasons, totals.first) == (
        5,
        2,
        {"truncated": 2},
        "x: truncated: half",
    )
    assert [place.name for place in sorted((tmp_path / "parts").glob("*.parquet"))] == [
        f"part-{c * 20}.parquet" for c in "bc"
    ]

    before = {file: file.read_bytes() for file in (tmp_path / "whole").rglob("*") if file.is_file()}
    assert hashlib.sha256(before[tmp_path / "whole" / f"part-{'a' * 20}.parquet"]).hexdigest() == one.sha256
    shards.commit(whole, "a" * 20, rows, bad, shards.FACE_SCHEMA)
    assert {file: file.read_bytes() for file in (tmp_path / "whole").rglob("*") if file.is_file()} == before
    (tmp_path / "whole" / "receipts" / f"{'a' * 20}.json").unlink()
    with pytest.raises(UsageError, match="not found"):
        list(shards.read_receipts(whole, ["a" * 20]))
    with claimed(parts, "faces", {"seed": 1}, {}) as target:
        manifest = target.finish(target.totals([letter * 20 for letter in "bcd"]))
    assert read_manifest(parts) == manifest
    assert {f"part-{r.unit}.parquet": (r.rows, r.bytes, r.sha256) for r in found if r.rows} == {
        shard.name: (shard.rows, shard.bytes, shard.sha256) for shard in manifest.shards
    }
    (tmp_path / "parts" / "mine.txt").write_text("mine")
    with claimed(parts, "faces", {"seed": 2}, {}, overwrite=True):
        left = sorted(file.name for file in (tmp_path / "parts").rglob("*") if file.is_file())
    assert left == ["mine.txt", "owner.json", "settings.json"]


def test_units_are_a_function_of_the_input_and_the_settings(tmp_path):
    """Each file in one unit, in the order of names, whole in number and in bytes; a unit's name says what is in it and
    by which settings, and nothing else; who goes on has the files that were there when the set was begun."""
    write_faces(tmp_path / "in", 7)
    write_faces(tmp_path / "elsewhere", 7)

    def units(folder: str, settings: dict, out: str, rows: int = 3, size: float = 1e9):
        uri = str(tmp_path / folder)
        with claimed(str(tmp_path / out), "faces", settings, {"input": uri}) as target:
            return image_units(target, uri, scan_images(uri), rows, size)

    found = units("in", {"seed": 1}, "a")
    assert [len(unit.load()) for unit in found] == [unit.rows for unit in found] == [3, 3, 1]
    assert [item.name for unit in found for item in unit.load()] == [f"{i:04d}.png" for i in range(7)]
    names = [unit.name for unit in found]
    assert len(set(names)) == 3
    assert [unit.name for unit in units("elsewhere", {"seed": 1}, "b")] == names
    assert not {unit.name for unit in units("in", {"seed": 2}, "c")} & set(names)
    write_faces(tmp_path / "in", 1, first=50)
    assert [unit.name for unit in units("in", {"seed": 1}, "a")] == names
    sizes = [file.stat().st_size for file in sorted((tmp_path / "elsewhere").iterdir())]
    assert units("elsewhere", {}, "d", 100, sum(sizes[:2]))[0].rows == 2


def test_splits_are_decided_once_and_obeyed(tmp_path):
    """Faces prepared as "test" or "val" against the rule, which goes by hash of the id: every reader takes the shard's
    word, and pairs inherit it."""
    uri = str(tmp_path / "faces")
    rows = face_rows(9, "train")
    for row, split in zip(rows[4:], ["val"] * 3 + ["test"] * 2, strict=True):
        row |= {"id": f"{'held' if split == 'val' else split}-{row['id']}", "split": split}
    assert any(row["split"] != shards.split_of(row["id"]) for row in rows)
    write_set(uri, "faces", rows)
    faces = load_faces(uri, 32)
    assert {split: len(faces.subset(split)) for split in ("train", "val", "test")} == {"train": 4, "val": 3, "test": 2}
    assert all(identifier.startswith("held-") for identifier in faces.subset("val").ids)
    out = str(tmp_path / "pairs")
    synthesize(build(SynthesizeConfig, hr=uri, degrader="bicubic", hr_size=32, variants=2, output=out, actors=0))
    pairs = load_pairs(out)
    assert {split: len(pairs.subset(split)) for split in ("train", "val", "test")} == {"train": 8, "val": 6, "test": 4}
    assert all(identifier.startswith("held-") for identifier in pairs.subset("val").hr_ids)


def test_faces_without_a_split_are_refused(tmp_path):
    schema = shards.FACE_SCHEMA.remove(shards.FACE_SCHEMA.get_field_index("split"))
    with claimed(str(tmp_path), "faces", {}, {}) as target:
        shards.commit(target.uri, "0" * 20, face_rows(1), [], schema)
        target.finish(target.totals(["0" * 20]))
    with pytest.raises(UsageError, match="no column"):
        load_faces(str(tmp_path), 32)


def test_a_box_is_what_is_kept_of_an_image(face):
    """As far as it lies in the image; a recipe's split stands for the rule's."""
    data = encode_png(face)
    row = face_row("a.png", data, "s", "test", (-5, 10, 30, 90))
    assert np.array_equal(decode(row["image"]), face[10:, :30])
    assert (row["height"], row["width"], row["split"]) == (38, 30, "test")
    with pytest.raises(BadImage, match="outside the image of 48x48 px"):
        face_row("a.png", data, "s", box=(48, 0, 60, 20))
