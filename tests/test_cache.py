"""Decoded sets on a node's disk: built once by all who want them, resumed, verified, bounded; and sets that are larger,
read window by window in an order that follows from seed and step."""

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import boto3
import numpy as np
import pytest
import torch
from botocore.stub import Stubber
from conftest import Notes, dies_after, write_faces, write_set
from facelab import storage
from facelab.config import build
from facelab.data import shards
from facelab.data.cache import Cache
from facelab.data.decoding import Decoding, faces_of, pairs_of
from facelab.data.faces import face_row
from facelab.data.items import Item
from facelab.data.source import Source
from facelab.data.tensors import ImageSet, load, load_faces, load_pairs
from facelab.data.windows import Streamed, streamed
from facelab.errors import UsageError
from facelab.images import encode_png
from facelab.training.images import Ahead
from facelab.training.launch import run_training
from facelab.training.sr import TrainSRConfig
from PIL import Image
from safetensors.torch import load_file

SIDE = 16
ROW_BYTES = 3 * (SIDE**2 + (SIDE // 4) ** 2)
LARGE = 2**30


def numbered(number: int, side: int) -> np.ndarray:
    """An image that tells its number."""
    return np.full((side, side, 3), (number // 256, number % 256, 7), np.uint8)


def number_of(images: torch.Tensor) -> list[int]:
    return [256 * int(image[0, 0, 0]) + int(image[1, 0, 0]) for image in images]


def write_pairs(place: Path, count: int, per_shard: int = 5, side: int = SIDE) -> str:
    """Pairs with numbers; every eighth is held out."""
    rows = []
    for i in range(count):
        hr = encode_png(numbered(i, side))
        known = {"id": f"{i:05d}.png#0", "hr_id": f"{i:05d}.png", "split": "train" if i % 8 else "val"}
        rows.append(known | {"hr": hr, "lr": encode_png(numbered(i, side // 4)), "hr_sha256": sha256(hr).hexdigest()})
    write_set(str(place), "pairs", [dict.fromkeys(shards.PAIR_SCHEMA.names) | row for row in rows], None, per_shard)
    return str(place)


def write_sharp(place: Path, count: int, per_shard: int = 5, small: tuple[int, ...] = (), held: int = 8) -> str:
    """Faces with numbers, some of them too small; every so manieth is held out, of 0 the last ten."""
    rows = []
    for i in range(count):
        split = "val" if (i % held == 0 if held else i >= count - 10) else "train"
        data = encode_png(numbered(i, SIDE // 2 if i in small else SIDE))
        rows.append(face_row(f"{i:05d}.png", data, "drawn", split))
    write_set(str(place), "faces", rows, None, per_shard)
    return str(place)


@pytest.fixture
def decoded_parts(monkeypatch) -> list[int]:
    """The parts that are decoded in this process, as they are."""
    found, decode = [], Decoding.decode

    def counted(self, number, into):
        found.append(number)
        return decode(self, number, into)

    monkeypatch.setattr(Decoding, "decode", counted)
    return found


def assert_same(a: ImageSet, b: ImageSet) -> None:
    assert (a.ids, a.splits, a.hash) == (b.ids, b.splits, b.hash)
    assert a.decoded.facts == b.decoded.facts
    for name, images in a.all.items():
        assert torch.equal(images, b.all[name])


# Entries


def test_a_cache_holds_what_memory_would(tmp_path):
    """Folder and shards of faces, with copies and files that are no images; pairs with variants of a face."""
    folder = write_faces(tmp_path / "folder", 6, size=32)
    shutil.copy(folder / "0002.png", folder / "0000-copy.png")
    (folder / "0001.png").write_bytes(b"no image")
    cache = Cache(tmp_path / "cache", LARGE)
    for uri in (str(folder), write_sharp(tmp_path / "sharp", 12, small=(3,))):
        memory, cached = (load_faces(uri, 16, least_side=16, cache=where) for where in (None, cache))
        assert_same(memory, cached)
        assert memory.digests == cached.digests
        assert memory.counts == cached.counts
        assert cached.counts["n_rejected"] == 1
        for split in ("train", "val"):
            part = cached.subset(split)
            assert part.ids == [i for i, own in zip(memory.ids, memory.splits, strict=True) if own == split]
            assert torch.equal(part.images, memory.images[[memory.ids.index(i) for i in part.ids]])
            assert torch.equal(part.first(2)["image"], part.images[:2])
    assert load_faces(str(folder), 16, cache=cache).copies == 1
    assert "0002.png" not in load_faces(str(folder), 16, cache=cache).ids
    pairs = write_pairs(tmp_path / "pairs", 12)
    assert_same(load_pairs(pairs), load_pairs(pairs, cache=cache))
    assert load_pairs(pairs, cache=cache).hr_ids == [f"{i:05d}.png" for i in range(12)]


def test_the_second_opening_decodes_nothing_wherever_the_set_lies(tmp_path, decoded_parts):
    cache, uri = Cache(tmp_path / "cache", LARGE), write_pairs(tmp_path / "a", 12)
    load_pairs(uri, cache=cache)
    assert decoded_parts == [0, 1, 2]
    shutil.copytree(uri, tmp_path / "b")
    for place in (uri, str(tmp_path / "b")):
        load_pairs(place, cache=cache)
    assert decoded_parts == [0, 1, 2]
    load_pairs(write_pairs(tmp_path / "c", 13), cache=cache)
    assert decoded_parts == [0, 1, 2] * 2


def test_a_file_of_a_folder_that_was_changed_is_read_again(tmp_path, decoded_parts):
    """Also where it has the size and the time of the one before, as what an archive brings may have."""
    (folder := tmp_path / "faces").mkdir()
    for i in range(3):
        Image.fromarray(numbered(i, SIDE)).save(folder / f"{i}.bmp")
    cache, changed = Cache(tmp_path / "cache", LARGE), folder / "1.bmp"
    assert number_of(load_faces(str(folder), SIDE, cache=cache).images) == [0, 1, 2]
    there = changed.stat()
    Image.fromarray(numbered(7, SIDE)).save(changed)
    os.utime(changed, ns=(there.st_atime_ns, there.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (there.st_size, there.st_mtime_ns)
    assert number_of(load_faces(str(folder), SIDE, cache=cache).images) == [0, 7, 2]
    load_faces(str(folder), SIDE, cache=cache)
    assert decoded_parts == [0, 0]


def _open_slowly(uri: str, folder: str, log: str, hang_at: int | None) -> None:
    """In a process of its own: tells which parts it decodes, and may never end with one."""
    decode = Decoding.decode

    def told(self, number, into):
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {number}\n")
        time.sleep(600 if number == hang_at else 0.1)
        return decode(self, number, into)

    Decoding.decode = told
    pairs = load_pairs(uri, cache=Cache(Path(folder), LARGE))
    Path(f"{log}.{os.getpid()}").write_text(json.dumps(number_of(pairs.hr)))


def _start(*arguments) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("spawn").Process(target=_open_slowly, args=arguments)
    process.start()
    return process


def test_two_processes_build_one_entry_together(tmp_path):
    """Each decodes a part of it, none twice, and both have the whole."""
    uri, log = write_pairs(tmp_path / "pairs", 60), tmp_path / "log"
    processes = [_start(uri, str(tmp_path / "cache"), str(log), None) for _ in range(2)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    who, what = zip(*(map(int, line.split()) for line in log.read_text().splitlines()), strict=True)
    assert sorted(what) == list(range(12))
    assert set(who) == {process.pid for process in processes}
    for process in processes:
        assert json.loads(Path(f"{log}.{process.pid}").read_text()) == list(range(60))
    assert_same(load_pairs(uri), load_pairs(uri, cache=Cache(tmp_path / "cache", LARGE)))


def test_what_a_killed_builder_had_done_is_not_done_again(tmp_path, decoded_parts):
    """kill -9 in the middle of a part: its lock is free, the parts before it are kept."""
    uri, log = write_pairs(tmp_path / "pairs", 30), tmp_path / "log"
    process = _start(uri, str(tmp_path / "cache"), str(log), 3)
    while not log.exists() or not log.read_text().endswith(" 3\n"):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert_same(load_pairs(uri, cache=Cache(tmp_path / "cache", LARGE)), load_pairs(uri))
    assert decoded_parts == [3, 4, 5, *range(6)]


def flip(file: Path, at: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte[0] ^ 255]))


@pytest.mark.parametrize(
    ("damage", "again"),
    [
        (lambda place: os.truncate(place / "hr.u8", 22 * 3 * SIDE**2), [4, 5]),
        (lambda place: flip(place / "lr.u8", 11 * 3 * (SIDE // 4) ** 2), [2]),
        (lambda place: flip(place / "index.arrow", 700), []),
        (lambda place: (place / "index.arrow").unlink(), []),
        (lambda place: (place / "complete.json").write_text('{"files"'), []),
        (lambda place: flip(place / "part-000001.arrow", 500), []),
        (lambda place: ((place / "complete.json").unlink(), flip(place / "part-000001.arrow", 500)), [1]),
        (lambda place: (place / "hr.u8").unlink(), [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_damaged_entry_is_never_used_and_only_what_is_damaged_is_decoded(tmp_path, decoded_parts, damage, again):
    uri, cache = write_pairs(tmp_path / "pairs", 30), Cache(tmp_path / "cache", LARGE)
    place = load_pairs(uri, cache=cache).decoded.hold.place
    decoded_parts.clear()
    damage(place)
    assert_same(load_pairs(uri, cache=cache), load_pairs(uri))
    assert decoded_parts == [*again, *range(6)]


def test_a_changed_shard_is_refused_by_name(tmp_path):
    uri = write_sharp(tmp_path / "faces", 10)
    shard = sorted((tmp_path / "faces").glob("*.parquet"))[1]
    flip(shard, 100)
    for cache in (None, Cache(tmp_path / "cache", LARGE)):
        with pytest.raises(UsageError, match=f"{shard}: changed since the set was written"):
            load_faces(uri, SIDE, cache=cache)


def test_a_pair_that_cannot_be_decoded_is_told_with_its_shard(tmp_path, monkeypatch):
    plain = numbered

    def drawn(number, side):
        return plain(number, 5 if number == 7 and side == SIDE // 4 else side)

    monkeypatch.setitem(globals(), "numbered", drawn)
    with pytest.raises(UsageError, match=r"part-\w+.parquet: pair 00007.png#0: another size than the first's"):
        load_pairs(write_pairs(tmp_path / "sizes", 10))
    monkeypatch.undo()
    monkeypatch.setitem(globals(), "encode_png", lambda image: b"no image" if image[0, 0, 1] == 7 else _png(image))
    with pytest.raises(UsageError, match=r"part-\w+.parquet: pair 00007.png#0: unreadable"):
        load_pairs(write_pairs(tmp_path / "bytes", 10), cache=Cache(tmp_path / "cache", LARGE))


def _png(image: np.ndarray) -> bytes:
    Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def test_a_full_disk_is_told_before_anything_is_decoded(tmp_path, decoded_parts, monkeypatch):
    """By what the disk says it has, and by what it does not give then."""
    uri, cache = write_pairs(tmp_path / "pairs", 10), Cache(tmp_path / "cache", LARGE)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UsageError, match=r"cache: decoded images need 7.6e-06 GiB, .* give another --cache-folder"):
        load_pairs(uri, cache=cache)
    monkeypatch.undo()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UsageError, match="give another --cache-folder"):
        load_pairs(uri, cache=cache)
    assert not list(cache.folder.glob("*/*.u8"))
    monkeypatch.undo()
    assert decoded_parts == []
    assert len(load_pairs(uri, cache=cache)) == 10


def test_what_was_not_used_for_longest_has_to_go(tmp_path, decoded_parts):
    """But not what somebody has open."""
    sets = [write_pairs(tmp_path / str(i), 20 + i) for i in range(4)]
    cache = Cache(tmp_path / "cache", 58 * (ROW_BYTES + 300))  # two of them, with their indexes
    first = load_pairs(sets[0], cache=cache)
    load_pairs(sets[1], cache=cache).decoded.hold.release()
    load_pairs(sets[2], cache=cache).decoded.hold.release()
    decoded_parts.clear()
    assert len(first.hr) == len(load_pairs(sets[0], cache=cache)) == 20
    load_pairs(sets[2], cache=cache).decoded.hold.release()
    assert decoded_parts == []
    load_pairs(sets[1], cache=cache)
    assert decoded_parts == [0, 1, 2, 3, 4]


def test_two_jobs_with_two_sets_count_each_other(tmp_path, monkeypatch):
    """What one has asked the disk for is seen by the next that makes room; what neither has open has to go."""
    sets = [write_pairs(tmp_path / str(i), 20 + i) for i in range(3)]
    cache, made = Cache(tmp_path / "cache", 45 * (ROW_BYTES + 300)), []
    load_pairs(sets[2], cache=cache).decoded.hold.release()
    make_room, both = Cache._make_room, threading.Event()

    def slowly(self, wanted):
        make_room(self, wanted)
        made.append(sorted(file.stat().st_size for file in self.folder.glob("*/hr.u8")))
        both.wait(0.2)  # the other would come in now

    monkeypatch.setattr(Cache, "_make_room", slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda uri: load_pairs(uri, cache=cache), sets[:2]))
    assert [len(each) for each in found] == [20, 21]
    sizes = [count * 3 * SIDE**2 for count in (20, 21, 22)]
    assert made in ([[sizes[2]], [sizes[0]]], [[sizes[2]], [sizes[1]]])


def test_sets_that_push_each_other_out_are_never_wrong(tmp_path):
    sets = [write_pairs(tmp_path / str(i), 10 + i) for i in range(3)]
    cache = Cache(tmp_path / "cache", 13 * (ROW_BYTES + 300))

    def often(uri):
        for _ in range(15):
            found = load_pairs(uri, cache=cache)
            assert number_of(found.hr) == list(range(len(found)))
            found.decoded.hold.release()
        return len(found)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(often, sets)) == [10, 11, 12]


def test_an_object_of_a_folder_on_s3_that_was_changed_is_read_again(monkeypatch):
    """Of the same size, it has another ETag; with the same ETag, a store without digests tells by the time."""

    def key(etag: str, second: int) -> str:
        entry = {"Key": "faces/a.png", "Size": 9, "ETag": etag, "LastModified": datetime(2026, 1, 1, 0, 0, second)}
        client = boto3.client("s3", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
        store = Stubber(client)
        store.add_client_error("head_object", "404")
        asked = {"Bucket": "bucket", "Prefix": "faces/", "Delimiter": "/"}
        store.add_response("list_objects_v2", {"IsTruncated": False, "Contents": [entry]}, asked)
        monkeypatch.setattr(storage, "_client", lambda: client)
        with store:
            (found,) = storage.scan("s3://bucket/faces", (".png",))
        item = Item(found.name, found.uri, found.size, stamp=found.stamp)
        return Decoding(Source("s3://bucket/faces", "folder", (item,), 1), {"image": (3, SIDE, SIDE)}).key

    assert key('"1"', 0) == key('"1"', 0)
    assert len({key('"1"', 0), key('"2"', 0), key('"1"', 1)}) == 3


# Windows

SHARDS, ROWS = 14, 5


def windows_of(uri: str, folder: Path, *, seed: int = 3, windows: int = 4) -> Streamed:
    """Of pairs, so many shards at a time."""
    cache = Cache(folder, 3 * windows * ROWS * ROW_BYTES)
    return streamed(cache, pairs_of(uri), order=(seed, "hr"), some=4)


@pytest.fixture(scope="module")
def many_pairs(tmp_path_factory) -> str:
    return write_pairs(tmp_path_factory.mktemp("many"), SHARDS * ROWS, ROWS)


def seen(data: Streamed, steps: range, batch: int = 4, **ranks) -> list[list[int]]:
    return [number_of(data.train.take(batch, step, **ranks)["hr"]) for step in steps]


def test_an_epoch_of_windows_shows_every_training_row_once(tmp_path, many_pairs):
    data = windows_of(many_pairs, tmp_path)
    trained = [i for i in range(SHARDS * ROWS) if i % 8]
    assert len(data) == SHARDS * ROWS
    assert len(data.train) == len(trained)
    images = [i for step in seen(data, range(3 * len(trained))) for i in step]  # twelve epochs, whole in batches of 4
    epochs = [images[i : i + len(trained)] for i in range(0, len(images), len(trained))]
    assert all(sorted(epoch) == trained for epoch in epochs)
    assert len(set(map(tuple, epochs))) == len(epochs)
    held = number_of(data.subset("val").first(99)["hr"])
    assert len(held) >= 4
    assert not set(held) & set(trained)
    pairs = data.train.take(4, 0)
    assert number_of(pairs["lr"]) == number_of(pairs["hr"])


def test_the_rows_of_a_step_do_not_depend_on_ranks_or_on_where_training_began(tmp_path, many_pairs):
    steps = range(40)
    whole = seen(windows_of(many_pairs, tmp_path / "whole"), steps)
    ranks = [windows_of(many_pairs, tmp_path / "two") for _ in range(2)]
    for step in steps:
        halves = [seen(data, range(step, step + 1), rank=i, world_size=2)[0] for i, data in enumerate(ranks)]
        assert [i for both in zip(*halves, strict=True) for i in both] == whole[step]
    for start in (1, 13, 14, 15, 29):
        assert seen(windows_of(many_pairs, tmp_path / f"from-{start}"), range(start, 40)) == whole[start:]
    assert seen(windows_of(many_pairs, tmp_path / "whole", windows=2), range(1))[0] != whole[0]
    assert seen(windows_of(many_pairs, tmp_path / "whole", seed=4), steps) != whole


def test_windows_are_bounded_made_ahead_and_deleted(tmp_path, many_pairs):
    """At each step, at most three, each a third of the cache; the next is there before it is asked for."""
    data = windows_of(many_pairs, tmp_path, windows=3)
    limit, kept = data.train.cache.limit, data.some.decoded.hold.place
    places = [data.train.rows_of(np.arange(4 * step, 4 * step + 1)) for step in range(60)]
    for step, (present, _) in enumerate(next(place) for place in places):
        data.train.take(4, step)
        assert data.train._after(present) in data.train._open
        for window in list(data.train._open.values()):
            window.result()
        sizes = [
            sum(file.stat().st_size for file in entry.glob("*.u8")) for entry in tmp_path.iterdir()
            if entry.is_dir() and entry != kept
        ]  # fmt: skip
        assert len(sizes) <= 3
        assert max(sizes) <= limit / 3
    plans = [data.train.plan(epoch).windows for epoch in (0, 1)]
    assert plans[0] != plans[1]
    assert all(Counter(item.name for window in plan for item in window).values() for plan in plans)


def test_the_present_window_is_left_to_a_worker_that_is_at_it(tmp_path, many_pairs):
    """One that is ahead deletes nothing that the other has open."""
    fast, slow = windows_of(many_pairs, tmp_path), windows_of(many_pairs, tmp_path)
    expected = seen(windows_of(many_pairs, tmp_path / "alone"), range(3))
    assert seen(slow, range(1)) == expected[:1]
    seen(fast, range(60))
    assert seen(slow, range(1, 3)) == expected[1:]


def test_a_face_of_a_window_that_cannot_be_used_is_replaced_by_another(tmp_path):
    uri = write_sharp(tmp_path / "faces", SHARDS * ROWS, ROWS, small=(9, 10, 33))
    cache = Cache(tmp_path / "cache", 3 * 5 * ROWS * 3 * SIDE**2)
    data = streamed(cache, faces_of(uri, SIDE, SIDE), order=(0, "hr"), some=4, max_rejected=0.5)
    epoch = [i for step in range(len(data.train)) for i in number_of(data.train.take(1, step)["image"])]
    usable = {i for i in range(SHARDS * ROWS) if i % 8 and i not in (9, 10, 33)}
    assert set(epoch) == usable
    assert len(epoch) == len(usable) + 3


def test_what_is_held_out_is_found_in_whichever_shards_have_it(tmp_path):
    """A recipe's splits may fill whole shards."""
    uri = write_sharp(tmp_path / "faces", 60, ROWS, held=0)
    cache = Cache(tmp_path / "cache", 3 * 3 * ROWS * 3 * SIDE**2)
    data = streamed(cache, faces_of(uri, SIDE), order=(0, "hr"), some=7)
    assert number_of(data.subset("val").first(7)["image"]) == list(range(50, 57))
    assert len(first := number_of(data.train.first(9)["image"])) == ROWS
    assert max(first) < 50
    shown = [i for step in range(10) for i in number_of(data.train.take(5, step)["image"])]
    assert sorted(shown) == list(range(50))


def test_what_cannot_be_read_in_windows_is_told_at_the_start(tmp_path, many_pairs):
    folder = write_faces(tmp_path / "faces", 4, size=SIDE)
    few = Cache(tmp_path / "cache", 2000)
    options = {"order": (0, "hr"), "some": 4}
    with pytest.raises(UsageError, match=r"a folder that needs 2.86e-06 GiB when decoded, .*jobs.prepare"):
        streamed(few, faces_of(str(folder), SIDE), **options)
    with pytest.raises(UsageError, match=r"largest shard alone needs --cache 1.14e-05: give at least that"):
        streamed(few, pairs_of(many_pairs), **options)


# Trainings


@pytest.fixture(scope="module")
def training_pairs(tmp_path_factory) -> str:
    return write_pairs(tmp_path_factory.mktemp("training"), 60, 6, side=64)


def sr_config(pairs: str, out: Path, **values) -> TrainSRConfig:
    options = {"preset": "debug", "model": "srcnn", "cache_folder": str(out.parent / "cache")} | values
    return build(TrainSRConfig, pairs=pairs, output=str(out), **options)


FEW = 8 * 6 * 13_056 / 2**30
"""GiB for eight shards of ten: windows of two."""


@pytest.mark.parametrize("cache", [1, FEW])
def test_a_resumed_training_sees_what_the_whole_one_saw(tmp_path, training_pairs, cache):
    """Through the cache and in windows, stopped in an epoch: bit for bit the same weights. Neither leaves a window."""

    def left():
        return [file.parent.name for file in (tmp_path / "cache").glob("*/hr.u8")]

    found = run_training(sr_config(training_pairs, tmp_path / "whole", cache=cache, max_steps=40), Notes)
    assert found["n_pairs"] == 60
    assert ("n_copies" in found) == (cache == 1)
    with dies_after(17), pytest.raises(KeyboardInterrupt):
        run_training(
            sr_config(training_pairs, tmp_path / "parts", cache=cache, max_steps=40, checkpoint_every=17), Notes
        )
    assert len(left()) == 1  # the set, or what is held out of it
    run_training(sr_config(training_pairs, tmp_path / "parts", cache=cache, max_steps=40, resume=True), Notes)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert len(left()) == 1


def test_a_cache_that_would_give_another_order_is_refused_on_resuming(tmp_path, training_pairs):
    """Windows of another size, or none; but any cache does that holds the sets whole."""
    for name, cache, other in (("windows", FEW, 6 / 8 * FEW), ("windows", FEW, 1), ("whole", 1, FEW)):
        out = tmp_path / name
        if not out.exists():
            run_training(sr_config(training_pairs, out, cache=cache), Notes)
        with pytest.raises(UsageError, match=r"order of images \(--cache\) .* windows of .*: give what"):
            run_training(sr_config(training_pairs, out, cache=other, max_steps=5, resume=True), Notes)
    run_training(sr_config(training_pairs, tmp_path / "whole", cache=2, max_steps=5, resume=True), Notes)


def test_a_cache_that_is_deleted_by_hand_stops_no_training(tmp_path, many_pairs):
    """Mapped files stay until they are given up, and the next windows are decoded anew."""
    expected = seen(windows_of(many_pairs, tmp_path / "kept"), range(20))
    data = windows_of(many_pairs, tmp_path / "gone")
    assert seen(data, range(1)) == expected[:1]
    data.train._window((0, 1)).result()
    shutil.rmtree(tmp_path / "gone")
    assert seen(data, range(1, 20)) == expected[1:]


def test_the_second_training_decodes_nothing(tmp_path, training_pairs, decoded_parts):
    run_training(sr_config(training_pairs, tmp_path / "a"), Notes)
    assert decoded_parts == list(range(10))
    run_training(sr_config(training_pairs, tmp_path / "b"), Notes)
    assert decoded_parts == list(range(10))


def test_a_cache_lies_on_a_disk_of_the_node(tmp_path, monkeypatch):
    config = {"preset": "debug", "model": "srcnn", "pairs": str(tmp_path), "output": str(tmp_path / "out")}
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert build(TrainSRConfig, **config).image_cache == Cache(Path("/scratch/facelab"), 100 * 2**30)
    monkeypatch.chdir(tmp_path)
    there = build(TrainSRConfig, **config, cache_folder="here", cache=0.5).image_cache
    assert there == Cache(tmp_path / "here", 2**29)
    with pytest.raises(UsageError, match="own disk"):
        build(TrainSRConfig, **config, cache_folder="s3://bucket/cache")


def test_the_next_batch_is_made_ahead_and_its_trouble_is_told():
    """Once each, in order, without torch's own generator; an error is raised where its batch is asked for."""
    made = []

    def make(step: int) -> int:
        made.append(step)
        if step == 3:
            raise UsageError("no third")
        return 10 * step

    torch.manual_seed(0)
    before, batches = torch.get_rng_state(), Ahead(make)
    assert [batches(step) for step in (0, 1, 2)] == [0, 10, 20]
    with pytest.raises(UsageError, match="no third"):
        batches(3)
    assert batches(7) == 70  # resumed elsewhere
    batches(8)
    assert all(a < b for a, b in pairwise(made))
    assert made[:4] == [0, 1, 2, 3]
    assert torch.equal(before, torch.get_rng_state())


def test_in_memory_and_cached_sets_are_read_by_one_reader(tmp_path, decoded_parts):
    decoding = pairs_of(write_pairs(tmp_path / "pairs", 12))
    load(decoding, None)
    load(decoding, Cache(tmp_path / "cache", LARGE))
    assert decoded_parts == [0, 1, 2] * 2
