"""Runs side by side: what differs, which is best, means over seeds, pairs and pictures; a thousand runs for the price of
ten; whatever MLflow holds is text."""

import json
import os
import sqlite3
from contextlib import contextmanager
from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from facelab.config import build, parse
from facelab.data.tables import write_table
from facelab.errors import UsageError
from facelab.evaluation.run import EXAMPLE_SCHEMA
from facelab.images import encode_png
from facelab.metrics.intervals import over_seeds
from facelab.reports.compare import COMPARE, CompareConfig
from facelab.reports.comparison import compare_runs
from facelab.reports.made import MOST_PICTURED
from facelab.tracking.records import Recorded, searched
from facelab.training.job import TRAIN_SR
from facelab.training.sr import TrainSRConfig
from mlflow.entities import Metric, Param
from scipy import stats
from sqlalchemy import event
from sqlalchemy.engine import Engine

HOSTILE = "<img src=x onerror=alert(1)> [red]x[/red]\x1b[31m & \u2028'\""


def client() -> mlflow.MlflowClient:
    uri = os.environ["MLFLOW_TRACKING_URI"]
    return mlflow.MlflowClient(uri, registry_uri=uri)


def tracked(
    name: str,
    *,
    job: str = "train_sr",
    params=None,
    metrics=None,
    tags=None,
    status="FINISHED",
    folder: Path | None = None,
) -> str:
    """Id of a run as a job leaves it; its files are those of a folder."""
    known = client()
    found = known.get_experiment_by_name("facelab")
    place = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///") + "-artifacts"
    experiment = found.experiment_id if found else known.create_experiment("facelab", artifact_location=place)
    run_id = known.create_run(experiment, run_name=name, tags={"job": job, **(tags or {})}).info.run_id
    logged = [Metric(key, value, 0, 0) for key, value in (metrics or {}).items()]
    known.log_batch(run_id, metrics=logged, params=[Param(key, str(value)) for key, value in (params or {}).items()])
    if folder:
        known.log_artifacts(run_id, str(folder))
    if status != "RUNNING":
        known.set_terminated(run_id, status)
    return run_id


def evaluated(name: str, folder: Path, gain: float, *, protocol: str = "0123456789ab", **values) -> str:
    """A run of jobs.evaluate on twelve test faces, `gain` dB above 20, that keeps two of them."""
    folder.mkdir(parents=True)
    ids = [str(i) for i in range(12)]
    each = [20 + gain + i % 3 / 10 for i in range(12)]
    summary = {"model": f"{name}@1", "psnr_y": float(np.mean(each)), "psnr_y_low": 19.5, "protocol_psnr_y": protocol}
    summary |= {"psnr_y_high": 26.5, "n": 12}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "protocol.json").write_text(json.dumps({"psnr_y": {"metric": "psnr_y", "crop": int(protocol[:2])}}))
    pq.write_table(pa.table({"role": ["test"] * 12, "id": ids, "psnr_y": each}), folder / "per_image.parquet")
    lr, sr, hr = (encode_png(torch.full((3, 4, 4), value, dtype=torch.uint8)) for value in (10, 20 + int(gain), 30))
    rows = [{"role": "test", "id": i, "lr": lr, "sr": sr, "hr": hr} for i in ids[:2]]
    write_table(str(folder / "examples.parquet"), rows, EXAMPLE_SCHEMA)
    metrics = {key: value for key, value in summary.items() if isinstance(value, float | int)}
    tags = {key: value for key, value in summary.items() if isinstance(value, str)}
    return tracked(name, job="evaluate", metrics=metrics, tags=tags, folder=folder, **values)


def compared(output: Path, *runs: str, **values) -> tuple[dict, str]:
    """compare.json and compare.html."""
    COMPARE.run(build(CompareConfig, runs=runs, output=str(output), **values))
    return json.loads((output / "compare.json").read_text()), (output / "compare.html").read_text()


def a_run(
    name: str, *, params=None, metrics=None, tags=None, inputs=None, status="FINISHED", job="train_sr"
) -> Recorded:
    given = {key: str(value) for key, value in (params or {}).items()}
    return Recorded(name, name, "1", status, given, metrics or {}, {"job": job} | (tags or {}), inputs or {}, 60.0, "")


@contextmanager
def counted():
    """A list of the SQL statements that this process makes in the block."""
    statements: list[str] = []

    def note(_connection, _cursor, statement, *_):
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def many_runs(count: int) -> None:
    """Trainings that differ in a weight and their seed, written past MLflow, whose client would take minutes."""
    first = tracked("first")
    file = os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")
    database = sqlite3.connect(file)
    columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
    template = dict(
        zip(columns, database.execute("SELECT * FROM runs WHERE run_uuid = ?", (first,)).fetchone(), strict=True)
    )
    ids = [f"{i:032x}" for i in range(1, count + 1)]
    rows = [template | {"run_uuid": run_id, "name": f"trial-{i}"} for i, run_id in enumerate(ids)]
    marks = ", ".join(f":{column}" for column in columns)
    database.executemany(f"INSERT INTO runs ({', '.join(columns)}) VALUES ({marks})", rows)
    for i, run_id in enumerate(ids):
        params = {"seed": i % 2, "weights.beta": i // 2, "model": "edsr"} | {f"option{k}": k for k in range(40)}
        database.executemany("INSERT INTO params VALUES (?, ?, ?)", [(k, str(v), run_id) for k, v in params.items()])
        database.executemany(
            "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
            [("job", "train_sr", run_id), ("sweep", "s", run_id)],
        )
        database.executemany(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, 0, 0, 0, ?)",
            [("best/psnr_y", 20 + i / 1000, run_id), ("train/loss", 1.0, run_id)],
        )
    database.commit()
    database.close()


def test_runs_stand_in_the_command_before_its_options(tmp_path):
    """default < YAML < command line, as for every option: the ones of the file are replaced, not joined."""
    file = tmp_path / "c.yaml"
    file.write_text("runs: [a, 12]\nmetrics: [m]\n")
    config = parse(CompareConfig, ["a", "runs:/b", "--metrics", "m", "n", "--seed", "1"], "job")
    assert (config.runs, config.metrics) == (("a", "b"), ("m", "n"))
    assert config.output == str(Path("outputs/compare").absolute())
    assert parse(CompareConfig, ["--config", str(file)], "job").runs == ("a", "12")
    config = parse(CompareConfig, ["c", "d", "--config", str(file)], "job")
    assert (config.runs, config.metrics) == (("c", "d"), ("m",))
    for argv in ([], ["a", "--filter", "x"]):
        with pytest.raises(UsageError, match="either runs, before the options, or --filter"):
            parse(CompareConfig, argv, "job")


def test_mean_over_seeds_has_students_interval():
    values = [26.1, 26.4, 25.9, 26.3]
    found = over_seeds(values)
    expected = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert (found.mean, found.n) == (pytest.approx(np.mean(values)), 4)
    assert over_seeds([26.1]).low is over_seeds([26.1]).high is None


def test_only_what_differs_is_shown():
    shown = compare_runs([
        a_run("a", params={"model": "edsr", "rate": 1, "edsr.size": "mini"}, inputs={"hr": "1"}, tags={"code_hash": "x"}),
        a_run("b", params={"model": "srcnn", "rate": 1}, inputs={"hr": "2"}, tags={"code_hash": "x"}),
    ])  # fmt: skip
    assert shown.differing == {"input hr": ["1", "2"], "model": ["edsr", "srcnn"], "edsr.size": ["mini", "–"]}
    assert shown.equal == {"job": "train_sr", "commit": "", "code_hash": "x", "rate": "1"}


def test_the_best_is_that_of_a_metrics_direction():
    """Also where two share it; a metric without a known direction has none."""
    rows = [("a", 20.0, 0.3, 9.0), ("b", 30.0, 0.1, 1.0), ("c", 30.0, 0.2, 5.0)]
    runs = [a_run(n, metrics={"best/psnr_y": p, "best/fd": f, "speed": s, "train/loss": f}) for n, p, f, s in rows]
    columns = {column.name: column for column in compare_runs(runs).columns}
    assert {name: column.best for name, column in columns.items()} == {"best/psnr_y": {1, 2}, "best/fd": {1}}
    (speed,) = compare_runs(runs, ["speed"]).columns
    assert speed.best == set()
    assert compare_runs(runs, ["best/fd", "speed"]).best_first() == [1, 2, 0]
    with pytest.raises(UsageError, match=r"--metrics best/psnry: no run has it: did you mean 'best/psnr_y'"):
        compare_runs(runs, ["best/psnry"])


def test_a_training_without_a_best_is_judged_by_its_newest_validation():
    runs = [a_run("a", metrics={"best/psnr_y": 20.0, "val/psnr_y": 19.0}), a_run("b", metrics={"val/psnr_y": 18.0})]
    assert [column.name for column in compare_runs(runs).columns] == ["best/psnr_y", "val/psnr_y"]
    assert [column.name for column in compare_runs(runs[:1]).columns] == ["best/psnr_y"]


def test_numbers_from_other_images_do_not_compete():
    rows = [("a", 20.0, "1"), ("b", 21.0, "1"), ("c", 30.0, "2")]
    shown = compare_runs([a_run(name, metrics={"best/psnr_y": p}, inputs={"hr": hr}) for name, p, hr in rows])
    assert (shown.columns[0].best, shown.columns[0].alike) == ({1}, [True, True, False])
    assert "‡ best/psnr_y of c: measured on other images" in shown.notes()[0]


def test_seeds_of_one_setting_are_one_line():
    """Only finished runs, each seed once, the later; the label is what tells the groups apart."""

    def of(name, beta, seed, value, **more):
        params = {"seed": seed, "beta": beta, "scale": 4}
        return a_run(name, params=params, metrics={"best/psnr_y": value}, **more)

    runs = [
        of("a", 1, 0, 10.0), of("b", 1, 0, 20.0), of("c", 1, 1, 22.0), of("d", 1, 2, 90.0, status="KILLED"),
        of("e", 2, 0, 30.0), of("f", 2, 1, 31.0), of("g", 3, 0, 40.0), of("h", 1, 3, 90.0, inputs={"hr": "other"}),
    ]  # fmt: skip
    first, second = compare_runs(runs).groups
    assert (first.label, first.seeds, first.intervals) == ("beta 1", ["0", "1"], {"best/psnr_y": over_seeds([20, 22])})
    assert (second.label, second.intervals["best/psnr_y"].mean) == ("beta 2", 30.5)


def test_evaluations_are_paired_and_pictured(tmp_path, capsys):
    """Against the baseline; the star is for what has the highest PSNR."""
    base = evaluated("base", tmp_path / "base", 0)
    good = evaluated("good", tmp_path / "good", 3)
    told, page = compared(tmp_path / "c", good, f"runs:/{base}", baseline=base)
    difference = told["differences"]["good"]["psnr_y"]
    assert difference == {"mean": pytest.approx(3), "low": pytest.approx(3), "high": pytest.approx(3), "n": 12}
    assert (told["baseline"], told["best"]["psnr_y"], told["notes"]) == ("base", [good], [])
    assert "<b>23.10</b><small>[19.50, 26.50]</small>" in page
    assert page.count("data:image/png;base64") == 4  # input, good, base, truth
    assert "+3.00* [+3.00, +3.00]" in page
    printed = capsys.readouterr().out
    assert "23.10 ★" in printed
    assert "+3.00* [+3.00, +3.00]" in printed
    assert max(map(len, printed.splitlines())) <= 120


def test_evaluations_of_other_protocols_are_not_compared(tmp_path):
    """It is said in what they differ; the others are compared."""
    runs = [
        evaluated(name, tmp_path / name, gain, protocol=protocol)
        for name, gain, protocol in (("base", 0, "00aa"), ("good", 3, "00aa"), ("cropped", 9, "02aa"))
    ]
    told, _ = compared(tmp_path / "c", *runs)
    assert told["differences"].keys() == {"good"}
    assert told["best"]["psnr_y"] == [runs[1]]
    assert [run["not_alike"] for run in told["runs"]] == [[], [], ["psnr_y"]]
    notes = " ".join(told["notes"])
    assert "No difference of cropped and base in psnr_y, as they were not computed alike: crop 0 against 2." in notes


def test_runs_without_files_are_compared_by_their_numbers(tmp_path):
    """A failed evaluation, one whose files are damaged, and a training without a picture are told of."""
    runs = [evaluated("good", tmp_path / "good", 3), evaluated("base", tmp_path / "base", 0)]
    runs.append(tracked("failed", job="evaluate", status="FAILED"))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "summary.json").write_text("{")
    runs.append(tracked("damaged", job="evaluate", folder=damaged))
    broken = tmp_path / "broken"
    (broken / "samples").mkdir(parents=True)
    (broken / "samples" / "epoch-0001.png").write_bytes(b"no picture")
    runs += [tracked("broken", folder=broken), tracked("bare", status="RUNNING")]
    told, page = compared(tmp_path / "c", *runs)
    notes = "\n".join(told["notes"])
    assert "failed (FAILED): without pictures and differences: MLflow has no summary.json of it" in notes
    assert "damaged (FINISHED): without pictures and differences: " in notes
    assert "broken (FINISHED): without pictures and differences: unreadable" in notes
    assert "MLflow has no pictures of bare." in notes
    assert told["differences"].keys() == {"base"}
    assert [run["status"] for run in told["runs"]][-1] == "RUNNING"
    assert page.count("data:image/png;base64") == 4


def test_what_cannot_be_compared_is_refused(tmp_path):
    one, gone, other = tracked("one"), tracked("gone"), tracked("other")
    client().delete_run(gone)
    for runs, values, said in (
        ((one, gone), {}, "no such run at .*, or a deleted one"),
        ((one, "0" * 32), {}, "no such run at"),
        ((one, "x/../y"), {}, "is no run: give the id"),
        ((one, f"runs:/{one}"), {}, "is one run: give two or more"),
        ((one, other), {"baseline": "f" * 32}, "--baseline f+: is no evaluation among"),
        ((one, other), {"baseline": one}, "is no evaluation among"),
        ((), {"filter": "tags.sweep = 'none'"}, "--filter tags.sweep = 'none': 0 runs match"),
        ((), {"filter": "tags sweep"}, "--filter tags sweep"),
        ((), {"filter": "", "experiment": "other"}, "--filter : 0 runs match"),
    ):
        with pytest.raises(UsageError, match=said):
            compared(tmp_path / "c", *runs, **values)
    told, _ = compared(tmp_path / "c", one, other)
    assert told["notes"][0] == "MLflow has no numbers of these runs."


def test_a_filter_finds_children_whatever_became_of_them(tmp_path):
    parent = tracked("sweep", job="sweep")
    below = {"mlflow.parentRunId": parent}
    ids = {
        tracked(f"trial {status}", tags=below, status=status) for status in ("FINISHED", "FAILED", "KILLED", "RUNNING")
    }
    told, _ = compared(tmp_path / "c", filter=f"tags.mlflow.parentRunId = '{parent}'")
    assert {run["id"] for run in told["runs"]} == ids
    everything, _ = compared(tmp_path / "c", filter="")
    assert {run["id"] for run in everything["runs"]} == ids | {parent}  # no comparison is compared


def test_all_that_mlflow_says_is_text(tmp_path, capsys):
    """Names, options, tags and metrics of foreign runs are no HTML, and no colours of the terminal."""
    folder = tmp_path / "a"
    runs = [
        evaluated(HOSTILE, folder / str(i), i, params={"x": HOSTILE + str(i), "y": HOSTILE, "seed": i})
        for i in range(2)
    ]
    runs += [tracked(HOSTILE, params={"x": HOSTILE, "seed": i}, tags={"variant": HOSTILE}) for i in range(2)]
    told, page = compared(tmp_path / "c", *runs)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror=alert(1)&gt; [red]x[/red]" in page
    assert len(told["over_seeds"]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "[red]x[/red]" in printed


@pytest.mark.slow
def test_a_thousand_runs_cost_mlflow_what_some_cost(tmp_path, capsys):
    """Nothing is asked for each run, but the files of some; SQLite is told at most so many ids at a time, so a few
    statements more are made. The terminal shows the best, the page all."""
    uri = os.environ["MLFLOW_TRACKING_URI"]
    many_runs(1000)
    ids = [f"{i:032x}" for i in range(1, 1001)]
    statements = []
    for runs in (ids[:MOST_PICTURED], ids):
        with counted() as made:
            told, page = compared(tmp_path / "c", *runs)
        statements.append(len(made))
    assert statements[1] <= statements[0] + 20
    assert told["runs"][0]["name"] == "trial-999"
    assert len(told["over_seeds"]) == 500
    assert page.count("<tr><td>trial-") == 2 * 1000  # numbers, and what differs
    printed = capsys.readouterr().out
    assert "… and 980 more runs, in compare.html" in printed
    assert f"Pictures and differences are those of {MOST_PICTURED} of 1000 runs." in " ".join(printed.split())
    with counted() as made:
        assert len(searched(uri, "facelab", "tags.sweep = 's'")) == 1000
    assert len(made) < 40


@pytest.mark.slow
def test_trainings_show_their_last_samples(tmp_path, hr_folder):
    """Real ones: of two epochs the second is shown."""
    ids = []
    for seed in range(2):
        options = {"max_steps": None, "epochs": 2, "batch_size": 32, "seed": seed, "model": "srcnn"}
        config = build(TrainSRConfig, preset="debug", hr=str(hr_folder), output=str(tmp_path / str(seed)), **options)
        ids.append(TRAIN_SR.run(config)["mlflow_run_id"])
    told, page = compared(tmp_path / "c", *ids)
    assert page.count("<figcaption>") == 2
    assert f"train_sr {seed}, epoch-0002" in page
    assert [run["differs"] for run in told["runs"]] == [{"seed": "0"}, {"seed": "1"}]
    assert told["over_seeds"][0]["metrics"]["best/psnr_y"]["n"] == 2
    assert told["best"]["best/psnr_y"]
