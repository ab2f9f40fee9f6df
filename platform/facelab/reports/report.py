"""Evaluations of several models -> one table, paired differences, picture grids and plots."""

import html
import io
import json
import math
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pydantic import model_validator

from facelab import storage
from facelab.config import RUN, JobConfig, uri_or
from facelab.data import shards
from facelab.data.tables import require_plain
from facelab.errors import StoreError, UsageError, one_line
from facelab.evaluation.rows import face_of
from facelab.images import decode_tensor
from facelab.job import Job
from facelab.metrics.catalogue import metric
from facelab.metrics.intervals import Interval, paired_difference
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.reports.page import PictureRow, page, picture_grid, picture_rows, svg
from facelab.reports.table import Row, Table, arrow, build_table, escape_markdown, floor_of
from facelab.tracking.runs import JobRun, find_runs, run_artifacts


class ReportConfig(JobConfig):
    """Put evaluations side by side: table (Markdown, LaTeX, HTML), differences, pictures, plots."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {}, "demo": {}, "paper": {}}

    WRITES = (*JobConfig.WRITES, "table.md", "table.tex", "report.html", "grid_test.png", "grid_real.png")

    runs: tuple[Annotated[str, uri_or(RUN)], ...] = ()
    """Outputs of jobs.evaluate: folders or copies of their summary.json, or MLflow runs as runs:/ID; in the order of
    the rows. A summary.json by itself gives no pictures and no differences."""
    filter: str | None = None
    """MLflow search instead of a list, as in its UI: all finished evaluations of --experiment that match, such as
    "tags.preset = 'mini'"; oldest first."""
    names: tuple[str, ...] = ()
    """Row names, one for each run; default: the models' names."""
    columns: tuple[str, ...] = ()
    """Metrics of the table, such as psnr_y ssim_y fid; default: all."""
    baseline: str | None = None
    """Row that the others are compared with, image by image; default: the first."""

    @model_validator(mode="after")
    def _some_runs(self):
        if bool(self.runs) == (self.filter is not None):
            raise ValueError("give either --runs or --filter")
        if self.names and self.runs and len(self.names) != len(self.runs):
            raise ValueError(f"{len(self.names)} names for {len(self.runs)} runs")
        return self


Pictures = dict[tuple, dict[str, torch.Tensor]]
"""An image's id and the pixels that went in -> its lr, sr and, where there is truth, hr: (3, h, w) uint8 each. In two
sets of faces, an id may stand for two people."""


@dataclass(frozen=True)
class Result:
    """What jobs.evaluate wrote of one model."""

    row: Row
    per_image: dict[str, dict[str, float]]
    """Metric -> id -> value, of the test faces for which it is defined."""
    pictures: dict[str, Pictures]
    """Role -> what the evaluation kept of it."""

    @property
    def name(self) -> str:
        return self.row.name

    def finite(self, name: str) -> list[float]:
        """The values of a metric that a plot can show."""
        return [value for value in self.per_image.get(name, {}).values() if math.isfinite(value)]


def report(config: ReportConfig, run: JobRun) -> dict[str, Any]:
    """Write table.md, table.tex, report.html, plots and picture grids to --output; returns the summary.

    Raises:
        UsageError: not evaluations, or not computed alike.
    """
    with tempfile.TemporaryDirectory(prefix="facelab-") as scratch:
        results = _load(config, run.uri, scratch)
    table = build_table([result.row for result in results], config.columns)
    names = [result.name for result in results]
    if config.baseline and config.baseline not in names:
        raise UsageError(f"--baseline {config.baseline}: not a row; they are {', '.join(names)}")
    baseline = results[names.index(config.baseline) if config.baseline else 0]
    compared = [name for name in table.metrics if name in baseline.per_image]
    pairs = _differences(results, baseline, compared, config.seed)

    files: dict[str, bytes] = {"table.md": table.markdown().encode(), "table.tex": table.latex().encode()}
    body = [f"<h1>{html.escape(PurePosixPath(config.output).name)}</h1>", "<h2>Numbers</h2>", table.html()]
    if pairs:
        files["table.md"] += ("\n" + _differences_markdown(pairs, baseline.name)).encode()
        body += [f"<h2>Differences to {html.escape(baseline.name)}, on the same images</h2>", _differences_html(pairs)]
    for note in _left_out(results, baseline, compared):
        files["table.md"] += f"\n{escape_markdown(note)}\n".encode()
        body.append(f"<p class=note>{html.escape(note)}</p>")
    for role, title in (("test", "Test faces, with truth"), ("real", "Real low-resolution faces, without")):
        storage.delete(storage.join(config.output, f"grid_{role}.png"))  # of an earlier report
        kept = {result.name: found for result in results if (found := result.pictures.get(role))}
        if rows := _picture_rows(kept):
            files[f"grid_{role}.png"] = picture_grid(rows, cell=96)
            body += [f"<h2>{title}</h2>", picture_rows(rows, cell=112)]
        elif kept:
            told = f"No pictures, as no image is common to all of {', '.join(kept)}."
            body += [f"<h2>{title}</h2>", f"<p class=note>{html.escape(told)}</p>"]
    body += ["<h2>Plots</h2>", svg(_plot_intervals(table, results))]
    if spread := [name for name in table.metrics if any(result.finite(name) for result in results)]:
        body.append(svg(_plot_images(results, spread)))
    body += ["<h2>How each number was computed</h2>", _protocols(results, table)]
    files["report.html"] = page("facelab report", body).encode()
    for name, data in files.items():
        storage.write_bytes(storage.join(config.output, name), data)
        with storage.local_copy(storage.join(config.output, name)) as file:
            run.artifact(file)
    print(files["table.md"].decode())
    keys = [re.sub(r"[^\w.:/ -]", "_", f"best_{name}") for name in table.metrics]  # what MLflow takes for a tag
    best = {key: _best(table, i) for i, key in enumerate(keys) if len(results) > 1}
    return {"n_models": len(results), "models": ", ".join(names), **best}


def _best(table: Table, column: int) -> str:
    return ", ".join(name for name, cells in table.rows if (cell := cells[column]) is not None and cell.best)


def _load(config: ReportConfig, tracking_uri: str, scratch: str) -> list[Result]:
    uris = config.runs
    if config.filter is not None:
        uris = tuple(f"{RUN}{i}" for i in find_runs(tracking_uri, config.experiment, config.filter, job="evaluate"))
        if not uris:
            raise UsageError(f"--filter {config.filter}: no finished evaluation in experiment {config.experiment}")
        if config.names and len(config.names) != len(uris):
            raise UsageError(f"--names: {len(config.names)} names for the {len(uris)} runs that --filter found")
    places = [
        storage.join(run_artifacts(tracking_uri, uri, scratch), "summary.json")
        if uri.startswith(RUN)
        else (uri if uri.endswith(".json") else storage.join(uri, "summary.json"))
        for uri in uris
    ]
    summaries = [_json(place, uri) for place, uri in zip(places, uris, strict=True)]
    # Beside a copy of a summary.json under another name may lie anything.
    folders = [place.removesuffix("/summary.json") if place.endswith("/summary.json") else None for place in places]
    names = [one_line(name) for name in config.names] or _names(summaries, uris)
    if len(set(names)) < len(names):
        raise UsageError(f"--names: rows need different names, not {', '.join(names)}")
    return [_result(*given) for given in zip(names, folders, uris, summaries, strict=True)]


def _names(summaries: Sequence[dict[str, Any]], uris: Sequence[str]) -> list[str]:
    models = [one_line(str(summary.get("model", "?")).split("@")[0]) for summary in summaries]
    places = [one_line(PurePosixPath(uri.removesuffix("/summary.json")).name) for uri in uris]
    return [m if models.count(m) == 1 else f"{m} ({p})" for m, p in zip(models, places, strict=True)]


def _json(place: str, uri: str) -> dict[str, Any]:
    try:
        found = json.loads(storage.read_bytes(place))
        if not isinstance(found, dict):
            raise ValueError("an object is expected")
        return found
    except StoreError:
        raise
    except UsageError as error:
        name = place.rsplit("/", 1)[1]
        raise UsageError(f"{uri}: no {name} there: give the --output of jobs.evaluate, or runs:/ID") from error
    except ValueError as error:
        raise UsageError(f"{place}: damaged ({error}): evaluate again") from error


def _result(name: str, folder: str | None, uri: str, summary: dict[str, Any]) -> Result:
    if not metric_names(summary):
        raise UsageError(f"{uri}: its numbers have no protocol: give the --output of jobs.evaluate")
    try:
        for number in metric_names(summary):
            metric(number), Number.of(number, summary)
        if not all(isinstance(summary.get(count, 0), int) for count in ("n", "n_real")):
            raise TypeError("n and n_real count images")
        if folder is None:
            return Result(Row(name, summary), {}, {})
        return Result(Row(name, summary, _protocols_of(folder, uri)), per_image(folder), _pictures(folder))
    except (KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        said = f"{type(error).__name__}: {error}"[:200]
        raise UsageError(f"{uri}: not what jobs.evaluate writes ({said}): evaluate again") from error


def _protocols_of(folder: str, uri: str) -> dict[str, dict[str, Any]]:
    place = storage.join(folder, "protocol.json")
    found = _json(place, uri) if storage.exists(place) else {}
    if not all(isinstance(protocol, dict) for protocol in found.values()):
        raise TypeError("protocol.json: an object for each number is expected")
    return found


def per_image(folder: str) -> dict[str, dict[str, float]]:
    """Metric -> id -> value, of the test faces of an evaluation for which it is defined; none where it kept none."""
    place = storage.join(folder, "per_image.parquet")
    if not storage.exists(place):
        return {}
    data = storage.read_bytes(place)
    require_plain(place, pq.read_schema(io.BytesIO(data)))
    table = pq.read_table(io.BytesIO(data), filters=[("role", "=", "test")]).to_pydict()
    return {
        column: {i: v for i, v in zip(table["id"], table[column], strict=True) if v is not None and not math.isnan(v)}
        for column in table.keys() - {"role", "id"}
    }


def _pictures(folder: str) -> dict[str, Pictures]:
    place = storage.join(folder, "examples.parquet")
    found: dict[str, Pictures] = defaultdict(dict)
    for example in shards.read_shard(place, ["role", "id", "lr", "sr", "hr"]) if storage.exists(place) else []:
        images = {key: decode_tensor(example[key]) for key in ("lr", "sr")}
        if example["hr"] is not None:
            images["hr"] = decode_tensor(example["hr"])
        given = ((x.shape, x.numpy().tobytes()) for key, x in images.items() if key != "sr")
        found[example["role"]][example["id"], *given] = images
    return found


Differences = dict[str, dict[str, Interval]]
"""Row -> metric -> difference to the baseline."""


def _differences(results: list[Result], baseline: Result, columns: list[str], seed: int) -> Differences:
    found: Differences = {}
    kind = str(baseline.row.summary.get("lr_kind"))
    for result in results:
        if result is not baseline:
            intervals = {
                c: paired_difference(
                    result.per_image.get(c, {}), baseline.per_image[c], seed, lambda i: face_of(kind, i)
                )
                for c in columns
            }
            found[result.name] = {c: interval for c, interval in intervals.items() if interval is not None}
    return {name: intervals for name, intervals in found.items() if intervals}


def _left_out(results: list[Result], baseline: Result, columns: list[str]) -> list[str]:
    """Of which images the differences say nothing."""
    notes = []
    for column in columns:
        own, counts = baseline.per_image[column], []
        for result in results:
            other = result.per_image.get(column, {})
            count = sum(math.isinf(own[i]) or math.isinf(other[i]) for i in own.keys() & other.keys())
            if count and result is not baseline:
                counts.append(f"{count} images of {result.name}")
        if counts:
            listed = f"{metric(column).title}: {', '.join(counts)}"
            notes.append(f"{listed} are left out of the differences, where a value is infinite.")
    return notes


def _difference(interval: Interval, name: str) -> str:
    """+0.31 [0.22, 0.40]; with a star where the interval leaves out 0."""
    digits = metric(name).digits
    text = f"{interval.mean:+{digits}}"
    if interval.low is None or interval.high is None:
        return text
    star = "*" if interval.low > 0 or interval.high < 0 else ""
    return f"{text}{star} [{interval.low:+{digits}}, {interval.high:+{digits}}]"


def _columns(pairs: Differences) -> list[str]:
    return list(dict.fromkeys(name for intervals in pairs.values() for name in intervals))


_STAR = "Paired bootstrap over the faces that both have, 95 %; *: the interval leaves out 0."


def _differences_markdown(pairs: Differences, baseline: str) -> str:
    columns = _columns(pairs)
    heads = [escape_markdown(text) for text in ("minus " + baseline, *(metric(c).title for c in columns))]
    lines = [heads, ["---"] + ["---:"] * len(columns)]
    for name, found in pairs.items():
        shown = [_difference(found[c], c).replace("*", "\\*") if c in found else "–" for c in columns]
        lines.append([escape_markdown(name), *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{_STAR}\n".replace("*:", "\\*:")


def _differences_html(pairs: Differences) -> str:
    columns = _columns(pairs)
    head = "".join(f"<th>{html.escape(metric(c).title)}" for c in columns)
    lines = []
    for name, found in pairs.items():
        cells = "".join(f"<td>{_difference(found[c], c) if c in found else '–'}" for c in columns)
        lines.append(f"<tr><td>{html.escape(name)}{cells}</tr>")
    return f"<div class=wide><table><tr><th>{head}</tr>{''.join(lines)}</table></div><p class=note>{_STAR}</p>"


def _picture_rows(kept: dict[str, Pictures]) -> list[PictureRow]:
    """Input, each method, and truth where there is one, of the images that every evaluation kept."""
    first = next(iter(kept.values()), {})
    shared = [image for image in first if all(image in found for found in kept.values())]
    rows: list[PictureRow] = [("input", [first[image]["lr"] for image in shared])]
    rows += [(name, [found[image]["sr"] for image in shared]) for name, found in kept.items()]
    rows.append(("truth", [first[image]["hr"] for image in shared if "hr" in first[image]]))
    return [(label, images) for label, images in rows if len(images)]


def _plot_intervals(table: Table, results: list[Result]) -> Figure:
    """A dot and its interval for each model, a panel for each metric."""
    count = len(table.metrics)
    across = min(count, 4)
    down = -(-count // across)
    figure, axes = plt.subplots(
        down, across, figsize=(3.6 * across, down * (0.9 + 0.32 * len(results))), squeeze=False, sharey=True
    )
    for axis, (name, known) in zip(axes.flat, table.metrics.items(), strict=False):
        for y, result in enumerate(results):
            number = result.row.number(name)
            if number is None or not np.isfinite(number.value):
                continue
            low, high = number.low, number.high
            if number.std is not None:
                low, high = number.value - number.std, number.value + number.std
            if low is not None and high is not None:
                axis.plot([low, high], [y, y], color="tab:blue", lw=2, alpha=0.5)
            axis.plot(number.value, y, "o", color="tab:blue")
        if (floor := floor_of(name, [result.row for result in results])) is not None:
            axis.axvline(float(floor), color="grey", ls=":", lw=1)
        axis.set_title(f"{known.title} {arrow(known)}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    axes[0, 0].set_yticks(range(len(results)), [result.name for result in results])
    axes[0, 0].set_ylim(len(results) - 0.5, -0.5)
    return figure


def _plot_images(results: list[Result], shown: list[str]) -> Figure:
    """How each of these metrics is spread over the images for which it is finite."""
    figure, axes = plt.subplots(1, len(shown), figsize=(3.6 * len(shown), 2.6), squeeze=False)
    for axis, name in zip(axes[0], shown, strict=True):
        having = [result for result in results if result.finite(name)]
        values = [result.finite(name) for result in having]
        axis.boxplot(values, orientation="horizontal", showfliers=False, tick_labels=[result.name for result in having])
        axis.invert_yaxis()
        axis.set_title(f"{metric(name).title}, each image", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _protocols(results: list[Result], table: Table) -> str:
    """Each column's protocol, which is that of all its rows."""
    items = []
    for name in table.metrics:
        found: dict[str, Any] = next((r.row.protocols[name] for r in results if name in r.row.protocols), {})
        said = {k: v for k, v in found.items() if v not in (None, {}, name)}
        text = "; ".join(f"{key} {str(value)[:64]}" for key, value in said.items() if key != "metric")
        items.append(f"<li><b>{html.escape(table.metrics[name].title)}</b> ({html.escape(name)}): {html.escape(text)}")
    return f"<ul>{''.join(items)}</ul>"


def report_plan(config: ReportConfig) -> str:
    what = f"{len(config.runs)} evaluations" if config.runs else f"the evaluations where {config.filter}"
    return f"compare {what}; write table.md, table.tex, report.html and picture grids to {config.output}"


REPORT = Job("report", ReportConfig, report, report_plan)
