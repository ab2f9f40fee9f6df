"""Evaluation: the same numbers however the work is cut, finished images of other tools, odd sets, floors, reports."""

import html
import io
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Notes, he_, save_embedding, write_set
from facelab.config import Config, build, parse
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.tables import write_table
from facelab.data.tensors import load_faces
from facelab.errors import UsageError
from facelab.evaluation import config as evaluation_config
from facelab.evaluation import run
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.measure import Measure
from facelab.evaluation.rows import image_sets, read_rows
from facelab.evaluation.run import EVALUATE, EXAMPLE_SCHEMA, evaluate
from facelab.evaluation.subject import load_subject
from facelab.evaluation.tally import Tally
from facelab.experiments.demo import DemoConfig
from facelab.images import decode_tensor, encode_png
from facelab.metrics import psnr
from facelab.metrics.catalogue import IMAGE_METRICS
from facelab.metrics.features import Features
from facelab.metrics.frechet import NOT_FINITE
from facelab.metrics.image_metric import ImageMetric
from facelab.metrics.intervals import LEAST_FACES
from facelab.metrics.number import Metric
from facelab.reports.demo import DemoResults, _commands, _curves, _gap_curves, _headline
from facelab.reports.page import svg
from facelab.reports.report import REPORT, ReportConfig
from facelab.reports.table import Row, build_table
from facelab.trained import store
from facelab.trained.apply import super_resolve
from facelab.trained.pyfunc import _load_pyfunc
from facelab.training.launch import run_training
from facelab.training.sr import TrainSRConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from PIL import Image
from torch import nn

from models import build_sr
from models.resize import resize

FEATURES = {"network": "mobilenet_v2", "layer": "block1"}


def config(tmp_path: Path, name: str = "out", **values) -> EvaluateConfig:
    values = {"model": "bicubic", "features": FEATURES, "actors": 0, "output": str(tmp_path / name)} | values
    return build(EvaluateConfig, **values)


def numbers(summary: dict) -> dict[str, float]:
    return {key: value for key, value in summary.items() if isinstance(value, float)}


def table_of(folder: Path) -> dict[str, list]:
    return pq.read_table(folder / "per_image.parquet").to_pydict()


def enlarged(lr: torch.Tensor) -> torch.Tensor:
    """What `--model bicubic` makes."""
    return super_resolve(build_sr("bicubic", 4), lr)


def write_images(folder: Path, images: dict[str, torch.Tensor]) -> Path:
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_png(image))
    return folder


def part_of(folder: Path, count: int, tmp_path: Path) -> str:
    """A copy of a folder's first files."""
    place = tmp_path / folder.name
    place.mkdir(parents=True)
    for file in sorted(folder.iterdir())[:count]:
        shutil.copy(file, place)
    return str(place)


@pytest.fixture(scope="module")
def edsr(tmp_path_factory) -> str:
    """An untrained network: what it makes is ugly, but depends on every pixel."""
    torch.manual_seed(0)
    place = str(tmp_path_factory.mktemp("model"))
    store.save_model(place, "sr", "edsr", build_sr("edsr", 4, size="mini"), 4, 64)
    return place


def test_a_model_on_faces_with_and_without_truth(tmp_path, hr_folder, lr_folder, edsr):
    base = {"test": str(hr_folder)}
    bicubic = evaluate(config(tmp_path, **base, real=str(lr_folder), reference=str(hr_folder)))
    untrained = evaluate(config(tmp_path, **base, model=edsr, name="untrained"))
    assert bicubic["n"] == untrained["n"] == 60
    assert bicubic["psnr_rgb"] > 18 > untrained["psnr_rgb"]
    faces = load_faces(str(hr_folder), 64).images
    each = psnr(enlarged(resize(faces, 16)), faces)
    assert bicubic["psnr_rgb"] == pytest.approx(float(each.mean()), abs=1e-9)
    assert bicubic["psnr_rgb_low"] < bicubic["psnr_rgb"] < bicubic["psnr_rgb_high"]
    assert (bicubic["fd_mobilenet_v2_dims"], bicubic["n_real"], bicubic["n_reference"]) == (16, 60, 60)
    assert bicubic["fd_mobilenet_v2_low"] < bicubic["fd_mobilenet_v2"] < bicubic["fd_mobilenet_v2_high"]
    # The test faces are the reference's own here.
    assert bicubic["fd_mobilenet_v2_floor"] == pytest.approx(0, abs=1e-6)
    assert bicubic["fd_mobilenet_v2_floor_n"] == 60
    for name in ("per_image.parquet", "examples.parquet", "protocol.json", "jackknife.json", "grid.png", "real.png"):
        assert (tmp_path / "out" / name).exists()
    with pytest.raises(UsageError, match="not one of mobilenet_v2's"):
        config(tmp_path, **base, features=FEATURES | {"layer": "relu1_1"})


@pytest.mark.slow
def test_numbers_do_not_depend_on_actors_or_batches(ray_local, tmp_path, monkeypatch, hr_folder, lr_folder, edsr):
    """One actor and two, batches of 64 and of 7: every number of every image to the last bit, those of sets but for
    the order of float64 sums. In the process itself more threads work, which may round a pixel otherwise."""
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(nn.Conv2d(3, 64, 11), nn.Conv2d(64, 192, 5), nn.Conv2d(192, 384, 3))
    backbone.extend([nn.Conv2d(384, 256, 3), nn.Conv2d(256, 256, 3)])
    he_(backbone)
    places = dict(zip("01234", (0, 3, 6, 8, 10), strict=True))
    alexnet = {f"features.{places[k[0]]}{k[1:]}": v for k, v in backbone.state_dict().items()}
    torch.save(alexnet, tmp_path / "alex.pth")
    torch.save((torch.randn(9, 1), torch.rand(9, 36) * 2 - 1), tmp_path / "svm.pt")
    save_embedding("onnx", tmp_path / "embedding.onnx")
    few, shards = part_of(hr_folder, 30, tmp_path), str(tmp_path / "shards")
    prepare(build(PrepareConfig, input=few, output=shards, rows_per_shard=12))
    base = {
        "model": edsr, "test": shards, "real": part_of(lr_folder, 20, tmp_path), "reference": few, "cpus_per_actor": 0.25,
        "metrics": ("psnr", "ssim", "lpips", "identity", "brisque"), "lpips": {"weights": str(tmp_path / "alex.pth")},
        "identity": {"embedding": str(tmp_path / "embedding.onnx")}, "brisque": {"weights": str(tmp_path / "svm.pt")},
    }  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-of-one"))
    one = evaluate(config(tmp_path, "one", **base, actors=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-of-two"))  # which measure the reference themselves
    two = evaluate(config(tmp_path, "two", **base, actors=2, batch_size=7))
    here = evaluate(config(tmp_path, "here", **base, batch_size=33))
    assert table_of(tmp_path / "one") == table_of(tmp_path / "two")
    assert {"lpips_alex", "identity", "brisque", "brisque_real", "fd_mobilenet_v2_floor"} <= one.keys()
    assert numbers(two) == pytest.approx(numbers(one), rel=1e-9, abs=1e-9)
    assert [two[key] for key in two if key.startswith("protocol")] == [one[k] for k in one if k.startswith("protocol")]
    assert numbers(here) == pytest.approx(numbers(one), rel=1e-3, abs=1e-4)


@pytest.fixture
def passes(tmp_path, monkeypatch) -> list[str]:
    """Roles of the units that an evaluation reads in the process itself; with a cache of the test's own."""
    roles: list[str] = []

    def counted(unit):
        roles.append(unit.role)
        return read_rows(unit)

    monkeypatch.setattr(run, "read_rows", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return roles


def test_the_next_model_does_not_pass_the_reference_again(
    tmp_path, monkeypatch, capsys, passes, lr_folder, hr_folder, edsr
):
    """Nothing of it is read; all that is written is the same, byte for byte."""
    reference = Path(part_of(hr_folder, 20, tmp_path))
    (reference / "broken.png").write_bytes(b"no image")
    (reference / "broken-too.png").write_bytes(b"")
    with Image.open(reference / "0000.png") as image:
        image.resize((40, 40)).save(reference / "small.png")
    sets = {"real": part_of(lr_folder, 12, tmp_path), "reference": str(reference), "max_rejected": 0.5}
    chosen = sets | {"allow_enlarged": True, "features": FEATURES | {"layer": "block14"}}

    def written(name: str) -> dict[str, bytes]:
        names = ("per_image.parquet", "protocol.json", "jackknife.json", "rejected.parquet")
        return {each: (tmp_path / name / each).read_bytes() for each in names}

    cold = evaluate(config(tmp_path, "cold", **chosen))
    assert passes.count("reference") == 23
    assert (cold["n_reference"], cold["n_rejected_reference"], cold["n_enlarged_reference"]) == (21, 2, 1)
    assert {"fd_mobilenet_v2", "fd_mobilenet_v2_block10", "kid_mobilenet_v2"} <= cold.keys()
    capsys.readouterr()
    warm = evaluate(config(tmp_path, "warm", **chosen))
    other = evaluate(config(tmp_path, "other", **chosen, model=edsr))
    assert passes.count("reference") == 23
    assert capsys.readouterr().out.count(f"{reference}: measured before by this network, found in {tmp_path}") == 2
    assert warm == cold
    assert written("warm") == written("cold")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert evaluate(config(tmp_path, "alone", **chosen, model=edsr)) == other
    assert written("alone") == written("other")
    assert passes.count("reference") == 46
    with pytest.raises(UsageError, match=r"2 of 23 files rejected, .*; the first: broken-too\.png: unreadable"):
        evaluate(config(tmp_path, **chosen | {"max_rejected": 0.05}))
    assert passes.count("reference") == 46


def test_another_reference_is_not_taken_for_a_known_one(tmp_path, monkeypatch, capsys, passes, hr_folder, lr_folder):
    """Another layer, size, seed or file; nor one whose file is damaged, or that could not be kept."""
    reference = Path(part_of(hr_folder, 5, tmp_path))
    sets = {"real": part_of(lr_folder, 3, tmp_path), "reference": str(reference)}

    def measured(**values) -> int:
        passes.clear()
        evaluate(config(tmp_path, **sets | values))
        return passes.count("reference")

    assert (measured(), measured()) == (5, 0)
    for values in ({"features": FEATURES | {"layer": "block2"}}, {"hr_size": 32}, {"seed": 1}, {"native": True},
                   {"native": True, "scale": 2}, {"allow_enlarged": True}):  # fmt: skip
        assert (measured(**values), measured(**values)) == (5, 0), values
    image = (reference / "0001.png").read_bytes()
    (reference / "0000.png").write_bytes(image)
    assert (measured(), measured()) == (5, 0)
    (reference / "more.png").write_bytes(image)
    known = set((tmp_path / "cache").rglob("*"))
    assert measured() == 6
    (place,) = set((tmp_path / "cache").rglob("*")) - known
    whole = place.read_bytes()
    for damaged in (b"", whole[:-1], whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b"of another program" * 99):
        place.write_bytes(damaged)
        assert (measured(), measured()) == (6, 0)
        assert place.read_bytes() == whole
    capsys.readouterr()
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))  # no folder
    assert (measured(), measured()) == (6, 6)
    assert f"the next evaluation will measure {reference} again: {place}/facelab" in capsys.readouterr().err


def test_a_model_taken_away_makes_what_was_measured(tmp_path, hr_folder, edsr):
    """What MLflow loads gives the evaluation's images to the last bit, alone and in a batch of any size."""
    evaluate(config(tmp_path, model=edsr, test=str(hr_folder)))
    examples = pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()
    lr, sr = (torch.stack([decode_tensor(e[key]) for e in examples]) for key in ("lr", "sr"))
    model = _load_pyfunc(edsr)
    assert np.array_equal(model.predict(lr.numpy()), sr.numpy())
    for i in (0, 5):
        assert np.array_equal(model.predict(lr[i : i + 1].numpy()), sr[i : i + 1].numpy())


def test_a_checkpoint_of_a_training(tmp_path, hr_folder):
    """The best network so far is what the training would end with; a truncated checkpoint is refused."""
    training = build(TrainSRConfig, preset="debug", model="srcnn", hr=str(hr_folder), output=str(tmp_path / "sr"))
    run_training(training, Notes)
    newest = max((tmp_path / "sr" / "checkpoints").iterdir())
    done, so_far = (
        evaluate(config(tmp_path, name, model=str(place), test=str(hr_folder)))
        for name, place in (("done", tmp_path / "sr"), ("so_far", newest))
    )
    assert so_far["model"] == done["model"]
    assert table_of(tmp_path / "so_far") == table_of(tmp_path / "done")
    (newest / "networks.safetensors").write_bytes((newest / "networks.safetensors").read_bytes()[:500])
    with pytest.raises(UsageError, match="damaged checkpoint"):
        evaluate(config(tmp_path, model=str(newest), test=str(hr_folder)))


@given(st.integers(1, 33), st.permutations(range(24)))
@settings(max_examples=4, deadline=None)
def test_numbers_do_not_depend_on_the_cut(tmp_path_factory, hr_folder, lr_folder, batch_size, order):
    """Batches of any size, files in any order of reading: `Measure` and `Tally` by themselves."""
    tmp_path = tmp_path_factory.mktemp("cut")
    few = {"test": part_of(hr_folder, 30, tmp_path), "real": part_of(lr_folder, 24, tmp_path)}
    chosen = config(tmp_path, **few, reference=str(part_of(hr_folder, 40, tmp_path / "reference")))
    sets = image_sets(chosen)
    measure = Measure(chosen, load_subject(chosen, sets), sets)
    assert measure.thresholds.keys() == {"test"}  # 24 of 30 for the floor
    found = []
    for size, permuted in ((64, False), (batch_size, True)):
        with Tally(chosen, measure, sets, tmp_path) as tally:
            rows = []
            for images in sets.values():
                items = images.source.items
                first = [items[i] for i in order] if permuted else items[:24]
                rows += read_rows(images.unit([*first, *items[24:]]))
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                tally.add(measure({key: [row[key] for row in part] for key in part[0]}))
        found.append(tally.finish())
    (summary, protocols), (again, same) = found
    assert same == protocols
    assert summary["fd_mobilenet_v2_floor_n"] == 24
    # The jackknife's ten parts are dealt in the order of reading, which a job keeps.
    order_decides = {"fd_mobilenet_v2_low", "fd_mobilenet_v2_high"}
    assert order_decides <= summary.keys()
    for name, value in numbers(summary).items():
        if name not in order_decides:
            assert again[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_finished_images_of_another_tool(tmp_path, hr_folder, lr_folder, capsys):
    """One command on a folder of PNGs: the numbers are those of the model that made them; what is missing, corrupt or of
    another size is set aside and told."""
    faces = load_faces(str(hr_folder), 64)
    made = dict(zip(faces.ids, enlarged(resize(faces.images, 16)), strict=True))
    real = load_faces(str(lr_folder), 16)
    made_real = dict(zip(real.ids, enlarged(real.images), strict=True))
    folder = write_images(
        tmp_path / "tool",
        {f"test/{Path(i).stem}_out.png": x for i, x in made.items()}
        | {f"real/{Path(i).stem}_out.png": x for i, x in made_real.items()},
    )
    sets = {"test": str(hr_folder), "real": str(lr_folder), "reference": str(hr_folder)}
    ours = evaluate(config(tmp_path, "ours", **sets))
    arguments = ["--preset", "debug", "--model", str(folder), "--finished-suffix", "_out"]
    arguments += [part for role, uri in sets.items() for part in (f"--{role}", uri)]
    out = tmp_path / "theirs"
    assert EVALUATE.main([*arguments, "--output", str(out)]) == 0
    theirs = json.loads((out / "summary.json").read_text())
    assert numbers(theirs) == pytest.approx(numbers(ours), rel=1e-12, abs=1e-12)
    assert theirs["model"].startswith("tool@")
    assert theirs["protocol_psnr_y"] == ours["protocol_psnr_y"]

    names = sorted((folder / "test").iterdir())
    names[0].unlink()
    names[1].write_bytes(names[1].read_bytes()[:300])
    Image.new("RGB", (32, 32)).save(names[2])
    assert EVALUATE.main([*arguments, "--output", str(out)]) == 0
    less = json.loads((out / "summary.json").read_text())
    assert (less["n"], less["n_rejected"]) == (57, 3)
    reasons = pq.read_table(out / "rejected.parquet").to_pylist()
    assert [re.match("no finished image|finished image .*truncated|finished image of 32x32 px, but 64x64 are due", r["reason"])
            is not None for r in reasons] == [True] * 3  # fmt: skip
    assert less["protocol_psnr_y"] != ours["protocol_psnr_y"]  # other images: not for one column
    for path in names[3:12]:
        path.unlink()
    capsys.readouterr()
    assert EVALUATE.main([*arguments, "--output", str(out)]) == 2
    # Told before anything is measured.
    assert "10 of 60 finished images of" in capsys.readouterr().err


def test_finished_images_that_cannot_be_told_apart(tmp_path, hr_folder, lr_folder):
    faces = load_faces(str(hr_folder), 64).images
    real = {"real": str(lr_folder), "reference": str(hr_folder)}
    flat = write_images(tmp_path / "flat", {f"{i:04d}.png": faces[i] for i in range(60)})
    with pytest.raises(UsageError, match="in its subfolders test and real"):
        evaluate(config(tmp_path, model=str(flat), test=str(hr_folder), **real))
    twins = write_images(tmp_path / "twins", {"0001.png": faces[0], "0001.bmp": faces[1]})
    with pytest.raises(UsageError, match=r"twins: 0001\.bmp and 0001\.png differ in their ending alone"):
        evaluate(config(tmp_path, model=str(flat), test=str(twins)))
    with pytest.raises(UsageError, match=r"twins: some images differ in their ending alone"):
        evaluate(config(tmp_path, model=str(twins), test=str(flat)))
    with pytest.raises(UsageError, match=r"no trained model there, and 60 of 60 finished images .* such as 0000_x"):
        evaluate(config(tmp_path, model=str(flat), test=str(flat), finished_suffix="_x"))
    with pytest.raises(UsageError, match="no trained model there"):
        evaluate(config(tmp_path, model=str(tmp_path / "nothing"), test=str(flat)))
    # Real faces have no truth, but a size that is due: 512 px would be another metric.
    big = write_images(tmp_path / "big", {f"{i + 1000}.png": resize(faces[i : i + 1], 128)[0] for i in range(60)})
    with pytest.raises(UsageError, match="finished image of 128x128 px, but 64x64 are due"):
        evaluate(config(tmp_path, model=str(big), **real))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_very_small_sets(tmp_path, hr_folder, count):
    faces = load_faces(str(hr_folder), 64).images
    few = tmp_path / "few"
    few.mkdir()
    write_images(few, {f"{i}.png": faces[i] for i in range(count)})
    real = {"real": str(few), "reference": str(hr_folder)}
    if count == 0:
        (few / "broken.png").write_bytes(b"no image")
        with pytest.raises(UsageError, match=r"few: none of 1 files is usable; the first: broken\.png: unreadable"):
            evaluate(config(tmp_path, test=str(few), max_rejected=1))
        return
    found = evaluate(config(tmp_path, test=str(few)))
    assert found["n"] == count
    assert "psnr_y_low" not in found  # too few for an interval
    if count == 1:
        with pytest.raises(UsageError, match="1 and 60 usable images; a Fréchet distance needs 2 on each side"):
            evaluate(config(tmp_path, **real))
    else:
        judged = evaluate(config(tmp_path, **real))
        assert "2 images are no more than the 16 dimensions" in judged["fd_mobilenet_v2_warning"]
        assert "fd_mobilenet_v2_low" not in judged


def test_native_sizes_are_grouped_not_stretched(tmp_path, hr_folder):
    """Every image is compared at its own size, cut to a multiple of the scale."""
    faces = load_faces(str(hr_folder), 64).images
    sizes = [(64, 64), (50, 63), (64, 48), (64, 64), (50, 63)]
    images = {f"{i}.png": faces[i, :, :h, :w] for i, (h, w) in enumerate(sizes)}
    folder = write_images(tmp_path / "mixed", images)
    found = evaluate(config(tmp_path, test=str(folder), native=True))
    table = table_of(tmp_path / "out")
    for i, (h, w) in enumerate(sizes):
        h, w = h - h % 4, w - w % 4
        truth = faces[i : i + 1, :, :h, :w]
        made = enlarged(resize(truth, h // 4, w // 4))
        assert table["psnr_rgb"][i] == pytest.approx(float(psnr(made, truth)), abs=1e-9)
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())["psnr_rgb"]
    assert (protocol["size"], found["n"]) == ("native", 5)
    # Another tool's images of these, and real faces of mixed sizes.
    made = {f"{role}/{i}.png": resize(faces[i, :, : h - h % 4, : w - w % 4][None], h - h % 4, w - w % 4)[0]
            for i, (h, w) in enumerate(sizes) for role in ("test", "real")}  # fmt: skip
    small = write_images(tmp_path / "small", {f"{i}.png": resize(faces[i : i + 1], h // 4, w // 4)[0]
                                              for i, (h, w) in enumerate(sizes)})  # fmt: skip
    perfect = evaluate(
        config(
            tmp_path, "p", test=str(folder), real=str(small), reference=str(folder), native=True,
            model=str(write_images(tmp_path / "made", made)),
        )
    )  # fmt: skip
    assert perfect["psnr_rgb"] == np.inf
    assert perfect["psnr_rgb_infinite"] == 5
    table = build_table([Row("perfect", perfect | {"psnr_rgb": None}), Row("ours", found)], ["ssim_y", "psnr_rgb"])
    cell = table.rows[0][1][1]
    assert (cell.value, cell.best) == ("∞", True)
    assert perfect["ssim_y"] == 1
    assert perfect["fd_mobilenet_v2"] == pytest.approx(0, abs=1e-6)


def test_too_small_images_name_the_metric_that_needs_more(tmp_path, hr_folder):
    """The first of those asked for; what is cut off does not count."""
    faces = load_faces(str(hr_folder), 64).images
    folder = write_images(tmp_path / "sizes", {"large.png": faces[0], "small.png": faces[1, :, :16, :12]})

    def reasons(*metrics: str, crop: int) -> dict[str, str]:
        evaluate(config(tmp_path, test=str(folder), native=True, max_rejected=0.5, metrics=metrics, crop=crop))
        file = tmp_path / "out" / "rejected.parquet"
        return {row["id"]: row["reason"] for row in pq.read_table(file).to_pylist()} if file.exists() else {}

    assert reasons("psnr", "ssim", crop=0) == {}
    assert reasons("psnr", crop=5) == {}
    assert reasons("psnr", "ssim", crop=1) == {"small.png": "too small: 12x16 px, but ssim needs 13 a side"}
    assert reasons("psnr", "ssim", crop=6) == {"small.png": "too small: 12x16 px, but psnr needs 13 a side"}


def test_pairs_of_mixed_sizes(tmp_path, hr_folder, edsr):
    faces = load_faces(str(hr_folder), 64).images
    rows = []
    for i, side in enumerate((64, 48, 64, 32)):
        hr = faces[i, :, :side, :side]
        images = {"hr": encode_png(hr), "lr": encode_png(resize(hr[None], side // 4)[0])}
        none = {"style_mode": "none", "style_ids": [], "style_weights": [], "style_bank": "", "seed": 0}
        none |= {"model": "bicubic", "split": "train", "hr_sha256": str(i)}
        rows.append({"id": f"{i}#0", "hr_id": str(i), "variant": 0} | images | none)
    write_set(str(tmp_path / "pairs"), "pairs", rows)
    found = evaluate(config(tmp_path, test=str(tmp_path / "pairs"), batch_size=3))
    assert (found["n"], found["lr_kind"]) == (4, "pairs")
    finished = write_images(tmp_path / "finished", {f"{row['id']}.png": decode_tensor(row["hr"]) for row in rows})
    assert evaluate(config(tmp_path, "f", test=str(tmp_path / "pairs"), model=str(finished)))["ssim_rgb"] == 1
    truth = faces[1:2, :, :48, :48]
    assert table_of(tmp_path / "out")["psnr_rgb"][1] == pytest.approx(
        float(psnr(enlarged(resize(truth, 12)), truth)), abs=1e-9
    )
    store.save_model(str(tmp_path / "x2"), "sr", "edsr", build_sr("edsr", 2, size="mini"), 2, 64)
    with pytest.raises(UsageError, match="enlarges 2 times, to 32x32 px, but 64x64 are due"):
        evaluate(config(tmp_path, test=str(tmp_path / "pairs"), model=str(tmp_path / "x2")))


def test_shards_that_lost_rows_are_refused(ray_local, tmp_path, hr_folder, lr_folder):
    prepare(build(PrepareConfig, input=str(hr_folder), output=str(tmp_path / "hr"), rows_per_shard=20))
    next((tmp_path / "hr").glob("part-*.parquet")).unlink()
    for more in ({}, {"real": str(lr_folder), "reference": str(hr_folder)}):
        with pytest.raises(UsageError, match=r"part-.*not found: .*write the set again"):
            evaluate(config(tmp_path, test=str(tmp_path / "hr"), **more))


@pytest.mark.parametrize(("n_test", "n_real"), [(60, 20), (20, 60)])
def test_the_floor_is_at_the_same_number_of_images(tmp_path, hr_folder, lr_folder, n_test, n_real):
    """Sharp test faces and judged faces, as many of each: of the larger set, a draw by id."""
    test, real = part_of(hr_folder, n_test, tmp_path), part_of(lr_folder, n_real, tmp_path)
    found = evaluate(config(tmp_path, test=test, real=real, reference=str(hr_folder)))
    assert found["fd_mobilenet_v2_floor_n"] == 20
    assert 0 < found["fd_mobilenet_v2_floor"] < found["fd_mobilenet_v2"]
    assert ("fd_mobilenet_v2_at_floor" in found) == (n_real > n_test)
    if n_real > n_test:  # the distance of fewer images is larger
        assert found["fd_mobilenet_v2_at_floor_n"] == 20
        assert found["fd_mobilenet_v2_at_floor"] > found["fd_mobilenet_v2"]


def test_features_that_are_nan_are_told(tmp_path, monkeypatch, hr_folder, lr_folder):
    """A network says nothing of a black image: no face is left out for it, but the distance is nan, and says why."""
    judge = Features.__call__

    def blind(self, images):
        return {layer: found.masked_fill((images == 0).flatten(1).all(1)[:, None], np.nan)
                for layer, found in judge(self, images).items()}  # fmt: skip

    monkeypatch.setattr(Features, "__call__", blind)
    test, real = part_of(hr_folder, 6, tmp_path), part_of(lr_folder, 6, tmp_path)
    sets = {"test": test, "real": real, "reference": part_of(hr_folder, 17, tmp_path / "reference")}
    Image.new("RGB", (64, 64)).save(Path(test) / "black.png")
    no_floor = EVALUATE.run(config(tmp_path, **sets))
    assert np.isfinite([no_floor["fd_mobilenet_v2"], no_floor["kid_mobilenet_v2"]]).all()
    assert no_floor["fd_mobilenet_v2_warning"].endswith(f"; no floor, as {NOT_FINITE}")
    assert not {"fd_mobilenet_v2_floor", "kid_mobilenet_v2_floor"} & no_floor.keys()
    (Path(test) / "black.png").rename(Path(real) / "black.png")
    found = EVALUATE.run(config(tmp_path, **sets))
    assert (found["n"], found["n_real"]) == (6, 7)
    for name in ("fd_mobilenet_v2", "kid_mobilenet_v2"):
        assert np.isnan(found[name])
        assert found[f"{name}_warning"] == NOT_FINITE
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    for summary in (found, written):
        table = build_table([Row("blind", summary)], ["fd_mobilenet_v2", "kid_mobilenet_v2"])
        assert [(cell.value, cell.spread, cell.mark) for cell in table.rows[0][1]] == [("nan", "", "†")] * 2
        assert f"† FD mobilenet_v2: {NOT_FINITE}." in table.notes


@pytest.mark.parametrize(("name", "values", "best"), [
    ("fid", (None, 8.0, 6.0), 2),
    ("fid", (np.nan, None, np.nan), None),
    ("psnr_y", (None, 30.0, 20.0), 1),
    ("psnr_y", (None, np.inf, 20.0), 1),
])  # fmt: skip
def test_no_number_is_never_the_best(name, values, best):
    rows = [Row(str(i), {name: value, f"protocol_{name}": "0"}) for i, value in enumerate(values)]
    table = build_table(rows)
    cells = [cells[0] for _, cells in table.rows]
    assert [i for i, cell in enumerate(cells) if cell.best] == ([] if best is None else [best])
    assert (cells[0].value, cells[0].mark) == ("nan", "†")
    assert any("† " in note and "nan" in note for note in table.notes)


def test_a_column_holds_one_protocol(tmp_path, hr_folder):
    """Two crops, or other images, are two metrics; the message says in what they differ."""

    def row(name: str, **values) -> Row:
        summary = evaluate(config(tmp_path, name, **{"test": str(hr_folder)} | values))
        return Row(name, summary, json.loads((tmp_path / name / "protocol.json").read_text()))

    plain, again, cropped = row("plain"), row("again", scale=4), row("cropped", crop=4)
    assert build_table([plain, again]).rows[1][1][0].best
    with pytest.raises(UsageError, match=r"psnr_rgb of plain and of cropped .* crop 0 against 4: evaluate"):
        build_table([plain, again, cropped])
    with pytest.raises(UsageError, match=r"size 64 against 32"):
        build_table([plain, row("small", hr_size=32)])
    with pytest.raises(UsageError, match=r"--columns fid: none of these evaluations has it; they have psnr_rgb"):
        build_table([plain], ["fid"])


class ContrastConfig(Config):
    """How contrast is told."""

    unit: float = 1.0
    """Grey levels that count as one."""


class Contrast(ImageMetric):
    """Deviation of an image's grey levels: a metric that no file of facelab knows."""

    shown = Metric("contrast {}", 1, ".3f")
    options = ContrastConfig
    needs_truth = False
    columns = ("contrast",)

    def __init__(self, options: ContrastConfig, crop: int = 0):
        super().__init__(options, crop)
        self.unit = options.unit

    def __call__(self, images, truth=None):
        return {"contrast": images.double().std(dim=(1, 2, 3)) / self.unit}

    def record(self, column):
        return {"colour": "rgb", "settings": {"unit": self.unit}}


def test_a_new_metric_is_a_class_and_a_line(tmp_path, monkeypatch, hr_folder, lr_folder):
    """Its command line, number, interval, protocol, and column of a table, with facelab's files as they are."""
    monkeypatch.setitem(IMAGE_METRICS, "contrast", Contrast)  # the line
    # The options of a command line are known when their module is read: what it would be with that line.
    kind = runpy.run_path(evaluation_config.__file__)["EvaluateConfig"]
    faces = part_of(hr_folder, 30, tmp_path)
    arguments = ["--preset", "debug", "--model", "bicubic", "--metrics", "contrast", "psnr", "--contrast.unit", "2"]
    arguments += ["--test", faces, "--real", part_of(lr_folder, 20, tmp_path), "--reference", faces]
    found = evaluate(parse(kind, [*arguments, "--output", str(tmp_path / "out")], "evaluate"))
    each = enlarged(resize(load_faces(faces, 64).images, 16)).double().std(dim=(1, 2, 3)) / 2
    assert table_of(tmp_path / "out")["contrast"][:30] == each.tolist()
    assert found["contrast"] == pytest.approx(float(each.mean()), rel=1e-12)
    assert found["contrast_low"] < found["contrast"] < found["contrast_high"]
    assert found["contrast_real_low"] < found["contrast_real"] < found["contrast_real_high"]
    protocol = json.loads((tmp_path / "out" / "protocol.json").read_text())["contrast_real"]
    assert (protocol["settings"], protocol["lr"], protocol["crop"]) == ({"unit": 2.0}, "real", None)
    table = build_table([Row("bicubic", found)], ["contrast", "contrast_real", "psnr_y"])
    assert [known.title for known in table.metrics.values()] == ["contrast", "contrast real", "PSNR Y, dB"]
    value, low, high = (f"{found[key]:.3f}" for key in ("contrast", "contrast_low", "contrast_high"))
    assert f"{value} [{low}, {high}]" in table.markdown()


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory, hr_folder, lr_folder, edsr):
    """Two models on the same sets, tracked; (folders, run ids, tracking URI)."""
    place = tmp_path_factory.mktemp("evaluations")
    uri = f"sqlite:///{place}/mlflow.db"
    sets = {"test": str(hr_folder), "real": str(lr_folder), "reference": str(hr_folder), "tracking_uri": uri}
    ids = []
    for name, model in (("bicubic", "bicubic"), ("edsr_a&b", edsr)):
        made = EVALUATE.run(config(place, name, model=model, **sets))
        ids.append(made["mlflow_run_id"])
    return place, ids, uri


@pytest.mark.parametrize("source", ["folders", "runs", "filter"])
def test_report(tmp_path, evaluations, source):
    place, ids, uri = evaluations
    runs = {
        "folders": {"runs": (str(place / "bicubic"), str(place / "edsr_a&b" / "summary.json"))},
        "runs": {"runs": tuple(f"runs:/{i}" for i in ids)},
        "filter": {"filter": "params.crop = '0'"},
    }[source]
    wanted = build(ReportConfig, output=str(tmp_path), tracking_uri=uri, names=("bicubic", "edsr_a&b"), **runs)
    summary = REPORT.run(wanted)
    assert summary["best_psnr_y"] == "bicubic"
    values = json.loads((place / "bicubic" / "summary.json").read_text())
    text = (tmp_path / "table.md").read_text()
    psnr_y, low, high = (f"{values[key]:.2f}" for key in ("psnr_y", "psnr_y_low", "psnr_y_high"))
    assert f"**{psnr_y}** [{low}, {high}]" in text
    assert "| *floor* |" in text
    # The same images: the difference is known far better than either number.
    difference = re.search(r"\| edsr_a&b \| (-[\d.]+)\\\* \[(-[\d.]+), (-[\d.]+)\]", text)
    assert float(difference[1]) == pytest.approx(
        json.loads((place / "edsr_a&b" / "summary.json").read_text())["psnr_rgb"] - values["psnr_rgb"], abs=0.006
    )
    tex = (tmp_path / "table.tex").read_text()
    assert f"\\textbf{{{psnr_y}}}" in tex
    assert "edsr\\_a\\&b" in tex
    html = (tmp_path / "report.html").read_text()
    assert f"<b>{psnr_y}</b>" in html
    assert html.count("data:image/png;base64") == 4 + 3  # input, two models, truth; input, two models
    assert not re.search(r'(src|href)="(?!data:|#)', html.replace("http://www.w3.org", ""))
    assert {"grid_test.png", "grid_real.png"} <= {file.name for file in tmp_path.iterdir()}


def test_report_of_distances_alone(tmp_path, evaluations, hr_folder, lr_folder):
    """An evaluation of real faces only has no per-image numbers and no floor; a copied summary.json no pictures."""
    place, _, uri = evaluations
    sets = {"real": str(lr_folder), "reference": str(hr_folder), "tracking_uri": uri}
    found = EVALUATE.run(config(tmp_path, "real", **sets))
    assert found["fd_mobilenet_v2_warning"] == "no floor, as --test was not given"
    for runs, columns in (((tmp_path / "real",), ()), ((place / "bicubic", place / "edsr_a&b"), ("fd_mobilenet_v2",))):
        wanted = build(
            ReportConfig, runs=tuple(map(str, runs)), columns=columns, output=str(tmp_path / "r"), tracking_uri=uri
        )
        REPORT.run(wanted)
        assert "FD mobilenet_v2" in (tmp_path / "r" / "table.md").read_text()
    shutil.copy(place / "bicubic" / "summary.json", tmp_path / "mine.json")
    wanted = build(ReportConfig, runs=(str(tmp_path / "mine.json"),), output=str(tmp_path / "s"), tracking_uri=uri)
    assert REPORT.run(wanted)["models"] == "bicubic"
    assert not (tmp_path / "s" / "grid_test.png").exists()


def test_report_refuses_what_is_no_evaluation(tmp_path, evaluations):
    _, _, uri = evaluations

    def made(**values) -> None:
        REPORT.run(build(ReportConfig, output=str(tmp_path / "r"), tracking_uri=uri, **values))

    place = tmp_path / "e"
    with pytest.raises(UsageError, match=r"no summary\.json there"):
        made(runs=(str(place),))
    place.mkdir()
    number = {"psnr_rgb": 30.0, "protocol_psnr_rgb": "0123456789ab"}
    for summary, said in (
        ({"psnr_rgb": 30.0}, "have no protocol"),
        ([1, 2], "damaged"),
        (number | {"psnr_rgb": "<b>"}, "not what jobs.evaluate writes"),
        (number | {"beauty": 3.0, "protocol_beauty": "0123456789ab"}, "not what jobs.evaluate writes"),
        *(
            ({**number, f"psnr_rgb_{field}": wrong}, "not what jobs.evaluate writes")
            for field, wrong in (
                ("low", "x"),
                ("std", "<b>"),
                ("warning", 5),
                ("floor", [1]),
                ("floor_n", "<x>"),
                ("infinity", {}),
            )
        ),
        (number | {"psnr_rgb": 10**400}, "not what jobs.evaluate writes"),
        (number | {"n": "<x>"}, "not what jobs.evaluate writes"),
    ):
        (place / "summary.json").write_text(json.dumps(summary))
        with pytest.raises(UsageError, match=said):
            made(runs=(str(place),))
    (place / "summary.json").write_text(json.dumps(number))
    for name, data in (
        ("per_image.parquet", b"PAR1"), ("examples.parquet", b"no table"), ("protocol.json", b"["),
        ("protocol.json", b'{"psnr_rgb": [1, 2]}'), ("protocol.json", b'{"psnr_rgb": "text"}'),
    ):  # fmt: skip
        (place / name).write_bytes(data)
        with pytest.raises(UsageError, match=r"evaluate again|write the set again"):
            made(runs=(str(place),))
        (place / name).unlink()
    with pytest.raises(UsageError, match="the same place, or one lies in the other"):
        REPORT.run(build(ReportConfig, output=str(place), tracking_uri=uri, runs=(str(place),)))
    with pytest.raises(UsageError, match="no such run"):
        made(runs=("runs:/0123456789abcdef0123456789abcdef",))
    with pytest.raises(UsageError, match="no finished evaluation"):
        made(filter="params.crop = '7'")
    with pytest.raises(UsageError, match="--filter params"):
        made(filter="params crop")
    with pytest.raises(UsageError, match="either --runs or --filter"):
        made()


def foreign(place: Path, summary: dict[str, Any], each: dict[str, list] | None = None, examples: tuple = ()) -> str:
    """What an evaluation leaves, with whatever numbers, columns of per_image.parquet, and (role, id, lr, hr)."""
    place.mkdir(parents=True)
    names = [name for name, value in summary.items() if value is None or isinstance(value, float)]
    protocols = {f"protocol_{name}": "0123456789ab" for name in names}
    (place / "summary.json").write_text(json.dumps({"model": place.name} | summary | protocols))
    if each:
        pq.write_table(pa.table({"role": ["test"] * len(each["id"]), **each}), place / "per_image.parquet")
    if examples:
        rows = [{"role": role, "id": i, "lr": lr, "sr": lr, "hr": hr} for role, i, lr, hr in examples]
        write_table(str(place / "examples.parquet"), rows, EXAMPLE_SCHEMA)
    return str(place)


def reported(tmp_path: Path, *runs: str, **values) -> tuple[str, str, str]:
    """table.md, table.tex and report.html of some evaluations."""
    REPORT.run(build(ReportConfig, runs=runs, output=str(tmp_path / "report"), **values))
    markdown, tex, page = (
        (tmp_path / "report" / name).read_text() for name in ("table.md", "table.tex", "report.html")
    )
    return markdown, tex, page


def test_report_compares_faces_not_their_variants(tmp_path):
    """A gain on all of 30 variants is certain of ten faces, not of one."""
    for faces, star in ((1, False), (LEAST_FACES, True)):
        ids = [f"{i}#{k}" for i in range(faces) for k in range(30 // faces)]
        runs = [
            foreign(tmp_path / str(faces) / name, {"psnr_y": 20.0 + gain, "lr_kind": "pairs"},
                    {"id": ids, "psnr_y": [20.0 + gain * (1 + i % 3) for i in range(len(ids))]})
            for name, gain in (("plain", 0), ("better", 1))
        ]  # fmt: skip
        markdown, _, page = reported(tmp_path, *runs)
        assert ("\\* [+" in markdown, "* [+" in page) == (star, star)
        assert "| better | +" in markdown


def test_report_counts_infinite_values_that_it_leaves_out(tmp_path):
    """Of equal images there is no difference; a plot shows the others, or nothing."""
    ids, base = [str(i) for i in range(20)], [20.0 + i % 5 for i in range(20)]
    summary = {"psnr_y": None, "psnr_y_infinite": 2, "psnr_rgb": None, "psnr_rgb_infinite": 20}
    all_equal = [np.inf] * 20
    runs = [
        foreign(tmp_path / "bicubic", {"psnr_y": 22.0, "psnr_rgb": 22.0}, {"id": ids, "psnr_y": base, "psnr_rgb": base}),
        foreign(tmp_path / "edsr", summary,
                {"id": ids, "psnr_y": [np.inf, *base[1:-1], np.inf], "psnr_rgb": all_equal}),
    ]  # fmt: skip
    markdown, _, page = reported(tmp_path, *runs)
    for text in (markdown, page):
        assert "PSNR Y, dB: 2 images of edsr are left out of the differences, where a value is infinite." in text
        assert "PSNR RGB, dB: 20 images of edsr are left out" in text
    assert "**∞**" in markdown
    assert "| edsr | +0.00 [+0.00, +0.00] |" in markdown
    markdown, _, page = reported(tmp_path, runs[1], columns=("psnr_rgb",))
    assert "each image" not in page


def test_report_shows_an_image_beside_itself_alone(tmp_path):
    """One name in two sets of faces is two images; one image in two encodings is one."""
    x = [torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (10, 20, 30, 40)]
    a, b, c, d = map(encode_png, x)
    buffer = io.BytesIO()
    Image.fromarray(x[0].permute(1, 2, 0).numpy()).save(buffer, "PNG", compress_level=0)
    again = buffer.getvalue()
    assert again != a
    one = (("test", "1", a, c), ("test", "2", b, c), ("real", "1", a, None))
    two = (("test", "1", again, c), ("test", "2", b, d), ("real", "1", b, None))
    runs = [foreign(tmp_path / name, {"psnr_y": 20.0}, None, shown) for name, shown in (("one", one), ("two", two))]
    reported(tmp_path, runs[0])
    assert (tmp_path / "report" / "grid_real.png").exists()
    _, _, page = reported(tmp_path, *runs)
    assert page.count("data:image/png;base64") == 4  # input, one, two, truth of test image 1
    assert "No pictures, as no image is common to all of one, two." in page
    assert not (tmp_path / "report" / "grid_real.png").exists()
    grid = decode_tensor((tmp_path / "report" / "grid_test.png").read_bytes())
    assert grid.shape[-1] == 150 + 96  # one face
    _, _, page = reported(tmp_path, runs[0])
    assert page.count("data:image/png;base64") == 3 + 2
    assert "No pictures" not in page


def test_a_plot_keeps_its_width():
    """Where the labels of a logarithmic axis are no mathematics, as a name is none."""
    figure, axes = plt.subplots(1, 2, figsize=(7, 3))
    for axis in axes:
        axis.plot([1e-3, 1], [1e-3, 1])
        axis.set(yscale="log", title="$\\foo$")
    shown = svg(figure)
    assert "mathdefault" not in shown
    assert min(axis.get_position().width for axis in axes) > 0.3


HOSTILE = "a$\\foo$b|<img src=x onerror=alert(1)> `_x_` [l](u) &lt; ~^{}\r\n\\end{tabular}\u2028\x1b[31m"


def test_report_of_hostile_text(tmp_path):
    """Names, keys, warnings and protocols of foreign evaluations are text in HTML, Markdown, LaTeX and plots."""
    key = f"psnr_{HOSTILE}"
    runs = [
        foreign(tmp_path / str(i), {"model": f"{HOSTILE}{i}@1", key: 20.0 + i, f"{key}_warning": HOSTILE},
                {"id": ["1", "2"], key: [20.0 + i, np.inf]})
        for i in range(2)
    ]  # fmt: skip
    protocol = {key: {"metric": key, HOSTILE: HOSTILE}}
    (tmp_path / "0" / "protocol.json").write_text(json.dumps(protocol))
    markdown, tex, page = reported(tmp_path, *runs)

    assert "<img src=x" not in page
    name = "a$\\foo$b|<img src=x onerror=alert(1)> `_x_` [l](u) &lt; ~^{} \\end{tabular} [31m"
    assert f"<td>{html.escape(name)}0<td>" in page

    escaped = (
        "a\\$\\\\foo\\$b\\|&lt;img src=x onerror=alert(1)> \\`\\_x\\_\\` [l\\](u) &amp;lt; \\~^{} \\\\end{tabular} [31m"
    )
    lines = markdown.splitlines()
    assert [line.count("|") - line.count("\\|") for line in lines if line.startswith("|")] == [3] * 7
    assert lines[2].startswith(f"| {escaped}0 | ")
    assert f"| minus {escaped}0 |" in markdown
    assert "<" not in markdown
    assert not any(char in markdown + tex for char in "\r\u2028\x1b")

    escaped = (
        "a\\$\\textbackslash{}foo\\$b\\textbar{}\\textless{}img src=x onerror=alert(1)\\textgreater{} `\\_x\\_` [l](u) \\&lt; "
        "\\textasciitilde{}\\textasciicircum{}\\{\\} \\textbackslash{}end\\{tabular\\} [31m"
    )
    rows, after = tex.split("\n\\end{tabular}\n")
    assert f"\n{escaped}0 & 20.00$^\\dagger$ \\\\" in rows
    assert all(line.startswith("% ") for line in after.splitlines())

    _, tex, _ = reported(tmp_path, *runs, names=("[1pt]", "two\nlines"))
    assert "\n{}[1pt] & " in tex
    assert "\ntwo lines & " in tex


def demo_results(**values) -> DemoResults:
    given = {name: {} for name in ("faces", "table", "summary", "runs", "seconds")}
    return DemoResults(
        **given
        | {"test": "", "classical": torch.zeros(0, 3, 16, 16, dtype=torch.uint8), "tracking_uri": "", "sr_runs": {}}
        | values
    )


def test_a_demo_suggests_commands_that_a_shell_understands(tmp_path):
    out, tracker = "/tmp/it's a $(place)", 'sqlite:////tmp/it\'s a "place"/mlflow.db'
    faces = {name: f"{out}/faces/{name}" for name in ("hr", "lr")}
    page = _commands(demo_results(config=build(DemoConfig, output=out), faces=faces, tracking_uri=tracker))
    words = [
        word
        for command in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL)
        for word in shlex.split(html.unescape(command))
    ]
    assert {f"MLFLOW_TRACKING_URI={tracker}", tracker, *faces.values(), f"{out}/pairs/stylevae", f"{out}/sweep"} <= set(
        words
    )


@pytest.mark.parametrize("raises", [False, True])
def test_a_demo_shows_the_curves_that_there_are(tmp_path, monkeypatch, raises):
    """Its styleVAE was logged at another address. A store says so, or has no numbers."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = mlflow.MlflowClient(uri)
    run = client.create_run("0").info.run_id
    for step in (1, 2):
        client.log_metric(run, "val/psnr_rgb", 20.0 + step, step=step)
    found = mlflow.MlflowClient.get_metric_history

    def history(self, run_id, key):
        if run_id == run:
            return found(self, run_id, key)
        raise mlflow.MlflowException("no such run", error_code=mlflow.protos.databricks_pb2.RESOURCE_DOES_NOT_EXIST)

    if raises:
        monkeypatch.setattr(mlflow.MlflowClient, "get_metric_history", history)
    results = demo_results(
        config=build(DemoConfig), runs={"stylevae": "0" * 32, "sr/b": run}, tracking_uri=uri, sr_runs={"B": "sr/b"}
    )
    page = _curves(results)
    assert f"There are no curves of stylevae: no such runs at {uri}." in page
    assert "<svg" in page
    assert "mathdefault" not in page  # of a logarithmic axis


CLOSED = {"gap_closed_psnr_rgb": 0.617, "gap_closed_ssim_y": 0.5}
ENDS = {f"{name}_{end}": value + more for name, value in CLOSED.items() for end, more in (("low", -0.1), ("high", 0.1))}


@pytest.mark.parametrize(
    ("faces", "numbers", "said"),
    [
        ({"test": ""}, CLOSED | ENDS, "closes <b>62 % [52 %, 72 %] of the gap</b> in PSNR and <b>50 % [40 %, 60 %]"),
        ({"test": ""}, CLOSED, "closes <b>62 % of the gap</b> in PSNR and <b>50 % of the gap</b> in SSIM"),
        ({"test": ""}, {"gap_closed_ssim_y": 0.5, "gap_closed_ssim_y_low": 0.4, "gap_closed_ssim_y_high": 0.6}, "closes <b>50 % [40 %, 60 %] of the gap</b> in SSIM"),
        ({"test": ""}, {}, "there is no gap to close"),
        ({}, {"s_minus_b_fd_mobilenet_v2": -1.5}, "by <b>-1.5</b> in the Fréchet"),
        ({}, {"s_minus_b_psnr_rgb": 0.2, "s_minus_b_psnr_rgb_low": 0.1, "s_minus_b_psnr_rgb_high": 0.3}, "by <b>+0.20 [+0.10, +0.30] dB</b>"),
    ],
)  # fmt: skip
def test_a_demo_begins_with_what_it_found(faces, numbers, said):
    distances = {
        f"degradation_distance_{kind}": value for kind, value in (("learnt", 0.1), ("bicubic", 0.3), ("floor", 0.02))
    }
    table = {"S": {"fd_mobilenet_v2": 5.0, "protocol_fd_mobilenet_v2": ""}}
    text = _headline(demo_results(config=build(DemoConfig), faces=faces, summary=distances | numbers, table=table))
    assert said in text
    assert "<b>3.0 times closer to</b> real LR" in text
    assert ("no interval" in text) == (numbers == CLOSED)


def test_a_demo_draws_the_gap_where_there_is_one(tmp_path, monkeypatch):
    """At the steps that B, S and Ceiling have in common."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client, runs, drawn = mlflow.MlflowClient(uri), {}, {}
    curves = {"B": [20, 20, 20], "Classical": [20], "S": [21, 21, 19.5, 30], "Ceiling": [19, 22, 22]}
    for row, curve in curves.items():
        runs[row] = client.create_run("0").info.run_id
        for step, value in enumerate(curve):
            client.log_metric(runs[row], "watch/psnr_rgb", value, step=step)
    plot = Axes.plot
    monkeypatch.setattr(
        Axes, "plot", lambda self, x, y, *a, **k: drawn.setdefault(k["label"], (x, y)) and plot(self, x, y, *a, **k)
    )
    page = _gap_curves(
        demo_results(config=build(DemoConfig), runs=runs, tracking_uri=uri, sr_runs={row: row for row in curves})
    )
    assert page.count("<svg") == 1
    assert drawn["PSNR RGB, dB"] == ([1, 2], [50, -25])
    assert drawn["SSIM Y"] == ([], [])
