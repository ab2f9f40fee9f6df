"""How close LR is to real LR: against independent numbers, against the floor, whatever the shards, and in a report."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_faces, write_set
from facelab.config import build
from facelab.data.shards import PAIR_SCHEMA, split_of
from facelab.data.tensors import load_faces, load_pairs
from facelab.errors import UsageError
from facelab.evaluation.degradation import EVALUATE_LR, EvaluateLRConfig, evaluate_lr
from facelab.images import decode, encode_png
from facelab.metrics import degradation_distances, frechet_distance
from facelab.metrics.features import FeatureConfig, Features
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.reports.report import REPORT, ReportConfig
from facelab.samples.nuisance import degrade
from facelab.tracking.client import client_of

from models.resize import resize

SPECTRAL = "degradation_distance"
FD = "fd_mobilenet_v2"


def write_pairs(
    place: Path, faces: Path, *, camera: bool, per_shard: int = 0, more: bytes = b"", count: int = 60
) -> str:
    """Pairs of these faces, by bicubic or as real ones come about; `more`: the LR of a second variant of each."""
    sharp, rows = load_faces(str(faces), 64), []
    known = list(zip(sharp.ids, sharp.digests, sharp.images, strict=True))[:count]
    for i, (name, digest, hr) in enumerate(known):
        pixels = (
            degrade(hr.permute(1, 2, 0).numpy(), 4, np.random.default_rng(i)) if camera else resize(hr[None], 16)[0]
        )
        for k, lr in enumerate([encode_png(pixels), *([more] if more else [])]):
            own = {"id": f"{name}#{k}", "hr_id": name, "hr_sha256": digest, "split": split_of(name)}
            rows.append(dict.fromkeys(PAIR_SCHEMA.names) | own | {"hr": encode_png(hr), "lr": lr})
    write_set(str(place), "pairs", rows, {"model": "camera" if camera else "bicubic"}, per_shard)
    return str(place)


def config(place: Path, **values) -> EvaluateLRConfig:
    return build(EvaluateLRConfig, preset="debug", output=str(place), **values)


def test_the_true_degradation_is_closer_to_real_lr_than_bicubic(tmp_path, hr_folder, lr_folder):
    """The numbers are those of the plain functions on all faces; the inputs are told to MLflow."""
    place = write_pairs(tmp_path / "pairs", hr_folder, camera=True)
    other = write_faces(tmp_path / "other", 40, first=5000, low=True)
    given = config(tmp_path / "out", pairs=place, real=str(lr_folder), other=str(other))
    summary = EVALUATE_LR.run(given)
    assert (summary["model"], summary["n"], summary["n_real"], summary["n_other"]) == ("camera", 60, 60, 40)

    pairs, real, others = load_pairs(place), load_faces(str(lr_folder), 16).images, load_faces(str(other), 16).images
    features = Features(FeatureConfig(network="mobilenet_v2", layer="block1"))
    for suffix, images in (("", pairs.lr), ("_bicubic", resize(pairs.hr, 16)), ("_floor", others)):
        expected = degradation_distances(images, real)
        expected[FD] = frechet_distance(lambda x: features(x)["block1"], real, images)
        assert {name: summary[f"{name}{suffix}"] for name in expected} == pytest.approx(expected, rel=1e-6)
        for name in expected:
            assert summary[f"{name}{suffix}_low"] < summary[f"{name}{suffix}"] < summary[f"{name}{suffix}_high"]
    assert summary[SPECTRAL] < summary[f"{SPECTRAL}_bicubic"]
    for name in (SPECTRAL, FD):
        number = Number.of(name, summary)
        assert (number.floor, number.floor_n) == (summary[f"{name}_floor"], 40)
        assert number.at_floor_n == 40
        assert number.at_floor != number.value
    names = [*degradation_distances(real, real), FD]
    assert metric_names(summary) == [*names, *(f"{name}_bicubic" for name in names)]

    without = json.loads((tmp_path / "out" / "jackknife.json").read_text())
    assert {name: len(values) for name, values in without.items()} == dict.fromkeys(metric_names(summary), 10)
    assert decode((tmp_path / "out" / "grid.png").read_bytes()).shape == (4 * 98 - 2, 12 * 98 - 2, 3)
    example = pq.read_table(tmp_path / "out" / "examples.parquet").to_pylist()[0]
    row = pairs.ids.index(example["id"])
    for name, image in (("hr", pairs.hr[row]), ("sr", pairs.lr[row]), ("lr", resize(pairs.hr[row][None], 16)[0])):
        assert example[name] == encode_png(image)

    run = client_of(os.environ["MLFLOW_TRACKING_URI"]).get_run(summary["mlflow_run_id"])
    told = {
        tag.value: json.loads(each.dataset.profile)["num_rows"]
        for each in run.inputs.dataset_inputs
        for tag in each.tags
    }
    assert told == {"pairs": 60, "real": 60, "other": 40}
    assert run.data.metrics[FD] == summary[FD]


@pytest.mark.slow
def test_a_report_puts_degradations_side_by_side(tmp_path, hr_folder, lr_folder):
    """Of bicubic pairs, the numbers are those that the others have as their baseline."""
    outputs = []
    for name, camera in (("camera", True), ("bicubic", False)):
        place = write_pairs(tmp_path / name, hr_folder, camera=camera)
        outputs.append(str(tmp_path / "out" / name))
        summary = EVALUATE_LR.run(config(Path(outputs[-1]), pairs=place, real=str(lr_folder)))
        assert summary[f"{FD}_warning"] == "no floor, as --other was not given"
    for name in (SPECTRAL, FD):
        assert summary[name] == summary[f"{name}_bicubic"]
    columns = (SPECTRAL, FD, f"{SPECTRAL}_bicubic")
    found = REPORT.run(build(ReportConfig, runs=outputs, columns=columns, output=str(tmp_path / "report")))
    assert found["models"] == "camera, bicubic"
    assert (found[f"best_{SPECTRAL}"], found[f"best_{FD}"]) == ("camera", "camera")
    table = (tmp_path / "report" / "table.md").read_text()
    assert "| spectral distance ↓ | FD mobilenet_v2 ↓ | spectral distance bicubic ↓ |" in table
    assert (tmp_path / "report" / "grid_test.png").exists()

    more = write_faces(tmp_path / "more", 20, first=7000, low=True)
    EVALUATE_LR.run(config(tmp_path / "out" / "more", pairs=place, real=str(more)))
    unlike = build(ReportConfig, runs=[outputs[0], str(tmp_path / "out" / "more")], output=str(tmp_path / "no"))
    with pytest.raises(UsageError, match=r"reference .* against"):
        REPORT.run(unlike)


def test_numbers_depend_on_the_faces_alone(tmp_path, hr_folder, lr_folder):
    """Not on their shards, nor on further variants of them; of more than --limit, the ids and the seed decide which."""
    noise = encode_png(
        torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    )
    whole = write_pairs(tmp_path / "whole", hr_folder, camera=True)
    cut = write_pairs(tmp_path / "cut", hr_folder, camera=True, per_shard=7, more=noise)

    def measured(place: str, **options) -> dict:
        return evaluate_lr(config(tmp_path / "out", pairs=place, real=str(lr_folder), **options))

    some = measured(whole, limit=20)
    assert measured(cut, limit=20) == some
    assert some["n"] == some["n_real"] == 20
    assert measured(whole, limit=20, seed=1)["data_hash"] != some["data_hash"]
    all_of_them, again = measured(whole), measured(cut, seed=1)
    assert all_of_them["n"] == again["n"] == 60
    for name in metric_names(again):  # another order, and other groups for the interval
        assert again[name] == pytest.approx(all_of_them[name], rel=1e-9)
        assert again[f"protocol_{name}"] == all_of_them[f"protocol_{name}"]


def test_unusable_real_faces_are_set_aside_and_counted(tmp_path, hr_folder):
    place = write_pairs(tmp_path / "pairs", hr_folder, camera=True)
    real = write_faces(tmp_path / "real", 18, low=True)
    (real / "bad.png").write_bytes(b"no image")
    write_faces(real / "small", 1, size=32, low=True)  # 8 px, of which 16 would be made
    given = {"pairs": place, "real": str(real)}
    summary = evaluate_lr(config(tmp_path / "out", **given))
    assert (summary["n_real"], summary["n_rejected_real"], summary["n_enlarged_real"]) == (18, 2, 0)
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert {row["id"]: row["reason"].split(":")[0] for row in rejected} == {
        "bad.png": "unreadable",
        "small/0000.png": "too small",
    }
    enlarged = evaluate_lr(config(tmp_path / "out", allow_enlarged=True, max_rejected=1, **given))
    assert enlarged["n_rejected_real"] == 2  # 8 px are less than a face has
    with pytest.raises(UsageError, match=r"2 of 20 files rejected, more than --max-rejected 0\.05"):
        evaluate_lr(config(tmp_path / "out", max_rejected=0.05, **given))


@pytest.mark.parametrize("count", [1, 5, 10])
def test_few_faces(tmp_path, hr_folder, lr_folder, count):
    given = config(
        tmp_path / "out",
        pairs=write_pairs(tmp_path / "pairs", hr_folder, camera=True, count=count),
        real=str(lr_folder),
    )
    if count == 1:
        with pytest.raises(UsageError, match="needs 2 faces at least, not 1"):
            evaluate_lr(given)
        return
    summary = evaluate_lr(given)
    assert {f"{name}_low" in summary for name in metric_names(summary)} == {count == 10}
    assert summary[f"{FD}_warning"].startswith(f"{count} images are no more than the 16 dimensions")


def test_what_cannot_be_judged_is_refused_in_a_line(tmp_path, hr_folder, lr_folder):
    with pytest.raises(UsageError, match="no pair shards: make them with"):
        evaluate_lr(config(tmp_path / "out", pairs=str(hr_folder), real=str(lr_folder)))
    with pytest.raises(UsageError, match="limit"):
        config(tmp_path / "out", pairs="p", real="r", limit=1)
