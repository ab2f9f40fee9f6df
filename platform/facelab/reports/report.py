"""Evaluations of several models -> one table, paired differences, picture grids and plots."""

import html
import re
import tempfile
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pydantic import model_validator

from facelab import storage
from facelab.config import RUN, JobConfig, uri_or
from facelab.errors import UsageError, one_line
from facelab.job import Job
from facelab.metrics.catalogue import metric
from facelab.reports.differences import differences_html, differences_markdown, left_out, paired_differences
from facelab.reports.page import page, picture_grid, picture_rows, svg
from facelab.reports.results import Result, read_json, result_of, shared_pictures
from facelab.reports.table import Table, arrow, build_table, escape_markdown, floor_of
from facelab.tracking.records import searched
from facelab.tracking.runs import JobRun, run_artifacts


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
    pairs = paired_differences(results, baseline, compared, config.seed)

    files: dict[str, bytes] = {"table.md": table.markdown().encode(), "table.tex": table.latex().encode()}
    body = [f"<h1>{html.escape(PurePosixPath(config.output).name)}</h1>", "<h2>Numbers</h2>", table.html()]
    if pairs:
        files["table.md"] += ("\n" + differences_markdown(pairs, baseline.name)).encode()
        body += [f"<h2>Differences to {html.escape(baseline.name)}, on the same images</h2>", differences_html(pairs)]
    for note in left_out(results, baseline, compared):
        files["table.md"] += f"\n{escape_markdown(note)}\n".encode()
        body.append(f"<p class=note>{html.escape(note)}</p>")
    for role, title in (("test", "Test faces, with truth"), ("real", "Real low-resolution faces, without")):
        storage.delete(storage.join(config.output, f"grid_{role}.png"))  # of an earlier report
        kept = {result.name: found for result in results if (found := result.pictures.get(role))}
        if rows := shared_pictures(kept):
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
        only = "attributes.status = 'FINISHED' and tags.job = 'evaluate'"
        uris = tuple(f"{RUN}{run.id}" for run in searched(tracking_uri, config.experiment, config.filter, only))
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
    summaries = [read_json(place, uri) for place, uri in zip(places, uris, strict=True)]
    # Beside a copy of a summary.json under another name may lie anything.
    folders = [place.removesuffix("/summary.json") if place.endswith("/summary.json") else None for place in places]
    names = [one_line(name) for name in config.names] or _names(summaries, uris)
    if len(set(names)) < len(names):
        raise UsageError(f"--names: rows need different names, not {', '.join(names)}")
    return [result_of(*given) for given in zip(names, folders, uris, summaries, strict=True)]


def _names(summaries: Sequence[dict[str, Any]], uris: Sequence[str]) -> list[str]:
    models = [one_line(str(summary.get("model", "?")).split("@")[0]) for summary in summaries]
    places = [one_line(PurePosixPath(uri.removesuffix("/summary.json")).name) for uri in uris]
    return [m if models.count(m) == 1 else f"{m} ({p})" for m, p in zip(models, places, strict=True)]


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
