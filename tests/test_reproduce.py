"""The paper's tables: what is behind them, each thing once; what is printed; what is kept when they are interrupted."""

import json
import time
from pathlib import Path
from typing import ClassVar

import pytest
from facelab import storage
from facelab.config import JobConfig, Uri, build, parse
from facelab.errors import UsageError
from facelab.experiments import paper
from facelab.experiments.graph import needs, run_graph
from facelab.experiments.paper import FID, PSNR
from facelab.experiments.reproduce import REPRODUCE, markdown, measured, planned
from facelab.experiments.reproduce_config import NAMES, ReproduceConfig
from facelab.experiments.steps import Done, Step
from facelab.experiments.tables import Cell
from facelab.job import Job


def config(tmp_path, **options) -> ReproduceConfig:
    return build(ReproduceConfig, output=str(tmp_path / "r"), **options)


def test_every_printed_number_has_a_cell(tmp_path):
    cells, _ = planned(config(tmp_path), "sqlite:///x")
    printed = {name: sorted(cell.printed for cell in cells[name] if cell.printed) for name in NAMES}
    assert printed["table1"] == sorted(value for row in paper.TABLE_1.values() for value in row)
    assert printed["table2"] == sorted(paper.TABLE_2.values())
    assert printed["table3"] == sorted(paper.TABLE_3.values())
    assert printed["table4"] == sorted([*paper.TABLE_4.values()] * 2)  # at 16 → 64 and at 32 → 128 px
    assert paper.TABLE_1["SRCNN"][2] == paper.TABLE_2["SRCNN-B"]  # as Table 2 repeats Table 1's
    assert paper.TABLE_1["EDSR"][2] == paper.TABLE_2["EDSR-B"]


def test_what_tables_share_is_made_once_and_stands_before_what_needs_it(tmp_path):
    _, steps = planned(config(tmp_path, what="all"), "sqlite:///x")
    folders = [step.folder for step in steps]
    assert len(folders) == len(set(folders))
    assert folders.count("seed0/stylevae") == folders.count("seed0/sr/edsr-b") == 1
    needed = needs(steps)
    for place, folder in enumerate(folders):
        assert needed[folder] <= set(folders[:place]), folder
    assert needed["seed0/sr/edsr-s"] == {"seed0/pairs/stylevae"}
    assert needed["seed0/evaluation/edsr-s"] >= {"seed0/sr/edsr-s", "seed0/pairs/test", "faces"}
    _, of_one = planned(config(tmp_path, what="table2"), "sqlite:///x")
    assert {step.folder for step in of_one} < set(folders)
    _, twice = planned(config(tmp_path, what="all", seeds=2), "sqlite:///x")
    drawn = [step for step in steps if step.folder.endswith("faces")]
    reports = [step for step in steps if step.folder.startswith("seed0/fig")]
    assert len(twice) == 2 * len(steps) - len(drawn) - len(reports)


def test_the_variants_of_the_ablations(tmp_path):
    steps = {step.folder: step.config for step in planned(config(tmp_path, what="all"), "sqlite:///x")[1]}
    variants = {
        (steps[f"seed0/table3/{name}"].stylevae.use_adain, steps[f"seed0/table3/{name}"].weights.lambda_mi)
        for name in ("neither", "mi", "adain", "adain-mi")
    }
    assert variants == {(False, 0.0), (False, 0.1), (True, 0.0), (True, 0.1)}
    for size in (64, 128):
        for name, switches in (
            ("neither", (False, False)),
            ("la", (False, True)),
            ("ga", (True, False)),
            ("ga-la", (True, True)),
        ):
            trained = steps[f"seed0/table4/{name}-{size}"]
            assert (trained.attentive.use_global, trained.attentive.use_local) == switches
            assert (trained.hr_size, trained.lr_size, trained.pairs) == (size, size // 4, None)
    assert {c.max_steps for c in steps.values() if getattr(c, "kind", "") == "sr"} == {300}
    assert {c.max_steps for c in steps.values() if getattr(c, "kind", "") == "degrader"} == {600}


def test_the_preset_paper_has_the_papers_recipes_and_fid(tmp_path):
    steps = {s.folder: s.config for s in planned(config(tmp_path, what="all", preset="paper"), "sqlite:///x")[1]}
    assert (steps["seed0/stylevae"].epochs, steps["seed0/sr/attentive-s"].epochs) == (10, 50)
    assert steps["seed0/stylevae"].max_steps is None
    assert steps["seed0/evaluation/edsr-b"].features.names("pool3")[0] == "fid"


def test_own_faces_are_prepared_once_for_both_sizes(tmp_path):
    own = {name: str(tmp_path / name) for name in ("hr", "lr", "test", "real")}
    _, steps = planned(config(tmp_path, what="table4", **own), "sqlite:///x")
    assert [step.folder for step in steps if step.job.name == "prepare"] == [
        f"prepared/{name}" for name in ("hr", "lr", "test_hr", "real")
    ]


def done(**summary) -> Done:
    return Done(summary, 1.0)


def test_a_number_of_several_seeds_has_an_interval_over_them_and_of_one_seed_that_of_its_faces():
    cells = [Cell("EDSR", PSNR, 20.44, f"seed{seed}/e", network="EDSR") for seed in range(3)]
    summaries = {
        f"seed{seed}/e": done(
            psnr_rgb=value, psnr_rgb_low=value - 0.1, psnr_rgb_high=value + 0.1, protocol_psnr_rgb="p"
        )
        for seed, value in enumerate((20.0, 21.0, 22.0))
    }
    three, one = measured(cells, summaries), measured(cells[:1], summaries)
    assert (three.value.mean, three.value.low, three.value.high) == pytest.approx((21.0, 18.516, 23.484), abs=1e-3)
    assert three.each == (20.0, 21.0, 22.0)
    assert (one.value.low, one.value.high) == (19.9, 20.1)


def test_the_frechet_distance_is_whichever_the_evaluation_has(tmp_path):
    cells = {
        "table3": [
            Cell("bicubic", FID, 31.2, "a", "_bicubic"), Cell("AdaIN", FID, 24.63, "a", network="AdaIN"),
        ]
    }  # fmt: skip
    summary = done(
        protocol_psnr_rgb="p", protocol_fd_vgg16="p", protocol_fd_vgg16_bicubic="p", psnr_rgb=1.0, fd_vgg16=3.0,
        fd_vgg16_low=2.5, fd_vgg16_high=3.5, fd_vgg16_bicubic=9.0,
    )  # fmt: skip
    results = [measured([cell], {"a": summary}) for cell in cells["table3"]]
    assert [(each.metric, each.value.mean) for each in results] == [("fd_vgg16_bicubic", 9.0), ("fd_vgg16", 3.0)]
    lines = markdown(config(tmp_path, what="table3"), "table3", results).splitlines()
    assert "| FID, paper | fd_vgg16, here |" in lines[2]
    assert lines[4] == "| bicubic | 31.20 | 9 |"
    assert lines[5] == "| AdaIN_mini | 24.63 | 3 [2.5, 3.5] |"
    assert "only its order compares" in lines[7]
    assert "AdaIN_mini" not in markdown(config(tmp_path, what="table3", preset="paper"), "table3", results)


def test_the_table_stands_alone_on_the_command_line(tmp_path):
    parsed = parse(ReproduceConfig, ["table3", "--preset", "debug", "--output", str(tmp_path)], "reproduce")
    assert (parsed.what, parsed.preset, parsed.dry_run) == ("table3", "debug", False)
    assert parse(ReproduceConfig, ["--estimate", "table1"], "reproduce").dry_run  # it touches nothing
    with pytest.raises(UsageError, match="table5"):
        parse(ReproduceConfig, ["table5"], "reproduce")


class ToyConfig(JobConfig):
    PRESETS: ClassVar = {"paper": {}}
    value: int = 0
    sources: tuple[Uri, ...] = ()


def toy_work(config, run):
    if config.value < 0:
        raise UsageError(f"value {config.value} is below 0")
    taken = [json.loads(storage.read_bytes(storage.join(uri, "summary.json")))["sum"] for uri in config.sources]
    return {"sum": config.value + sum(taken)}


TOY = Job("toy", ToyConfig, toy_work, str)


def toys(folder: Path, values: dict[str, int]) -> list[Step]:
    """a, b -> c -> d; e stands alone."""
    sources = {"c": ("a", "b"), "d": ("c",)}
    return [
        Step(name, TOY, build(ToyConfig, output=str(folder / name), value=value, sources=[str(folder / s) for s in sources.get(name, ())]))
        for name, value in values.items()
    ]  # fmt: skip


VALUES = {"a": 1, "b": 2, "c": 10, "d": 100, "e": 7}
SUMS = VALUES | {"c": 13, "d": 113}


def test_steps_run_one_by_one(tmp_path):
    found = run_graph(toys(tmp_path, VALUES), "0" * 32, 1)
    assert {folder: each.summary["sum"] for folder, each in found.items()} == SUMS


def test_what_was_finished_beside_a_step_that_failed_is_kept_and_the_rest_follows(ray_local, tmp_path):
    with pytest.raises(UsageError, match="value -2 is below 0"):
        run_graph(toys(tmp_path, VALUES | {"b": -2}), "0" * 32, 3)
    assert not (tmp_path / "c").exists()
    before = (tmp_path / "a" / "summary.json").stat().st_mtime_ns
    found = run_graph(toys(tmp_path, VALUES), "0" * 32, 3)
    assert {folder: each.summary["sum"] for folder, each in found.items()} == SUMS
    assert (tmp_path / "a" / "summary.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_table_is_made_and_made_again_from_what_is_there(ray_local, tmp_path, capfd):
    options = {"preset": "debug", "what": "table3"}
    first = REPRODUCE.run(config(tmp_path, **options))
    place = tmp_path / "r"
    assert first["table3_adain_and_mi_fid"] > 0
    rows = {row["row"]: row for row in json.loads((place / "table3.json").read_text())}
    assert rows.keys() == {"bicubic", "neither_debug", "MI_debug", "AdaIN_debug", "AdaIN + MI_debug"}
    assert rows["AdaIN + MI_debug"]["value"] == first["table3_adain_and_mi_fid"]
    assert rows["AdaIN + MI_debug"]["paper"] == 18.77
    capfd.readouterr()

    (place / "seed0" / "table3" / "mi-lr" / "summary.json").unlink()
    again = REPRODUCE.run(config(tmp_path, **options))
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("── ")]
    assert [line for line in said if "(done before)" not in line] == ["── evaluate_lr: seed0/table3/mi-lr"]
    assert {k: v for k, v in again.items() if k.startswith("table3")} == {
        k: v for k, v in first.items() if k.startswith("table3")
    }
    assert again["mlflow_run_id"] == first["mlflow_run_id"]


class MeetingConfig(JobConfig):
    PRESETS: ClassVar = {"paper": {}}
    other: str


def meet(config, run):
    """Ends once the other has begun."""
    Path(config.output, "here").touch()
    while not Path(config.other, "here").exists():
        time.sleep(0.05)
    return {}


def test_steps_that_do_not_need_each_other_run_at_the_same_time(ray_local, tmp_path):
    job = Job("meet", MeetingConfig, meet, str)
    pairs = {"a": "b", "b": "a"}
    steps = [
        Step(n, job, build(MeetingConfig, output=str(tmp_path / n), other=str(tmp_path / o))) for n, o in pairs.items()
    ]
    assert run_graph(steps, "0" * 32, 2).keys() == {"a", "b"}


@pytest.mark.slow
def test_an_estimate_times_every_training_and_touches_nothing(tmp_path, capsys):
    assert REPRODUCE.main(["table4", "--estimate", "--preset", "debug", "--output", str(tmp_path / "r")]) == 0
    said = capsys.readouterr().out
    assert said.count(" 4 steps of ") == 8
    assert "all trainings; " in said
    assert not (tmp_path / "r").exists()
