"""compare.html: one self-contained page of what runs are beside one another."""

import html
from collections.abc import Sequence

from facelab.metrics.intervals import Interval
from facelab.reports.comparison import Column, Comparison, listed
from facelab.reports.differences import Differences, differences_html
from facelab.reports.made import Made
from facelab.reports.page import figures, html_table, page, picture_rows
from facelab.reports.results import shared_pictures
from facelab.reports.terminal import duration

_SIDE_BY_SIDE = 12
"""Runs that find room as the columns of a table."""


def comparison_page(compared: Comparison, made: Made, baseline: str, pairs: Differences, notes: Sequence[str]) -> str:
    """The whole file; all that MLflow says is text in it.

    Args:
        baseline: label of the evaluation that the others are compared with; empty where there is none.
    """
    body = [f"<h1>{len(compared.runs)} runs</h1>", "<h2>Numbers</h2>", _numbers(compared)]
    body += [f"<p class=note>{html.escape(note)}</p>" for note in notes]
    body += ["<h2>What differs</h2>", _differing(compared)]
    if compared.groups:
        body += ["<h2>Over seeds</h2>", _over_seeds(compared)]
    if pairs:
        body += [f"<h2>Differences to {html.escape(baseline)}, on the same images</h2>", differences_html(pairs)]
    for role, title in (("test", "Test faces, with truth"), ("real", "Real low-resolution faces, without")):
        kept = {result.name: found for result in made.evaluated if (found := result.pictures.get(role))}
        if rows := shared_pictures(kept):
            body += [f"<h2>{title}</h2>", picture_rows(rows, cell=112)]
        elif kept:
            told = f"No pictures, as no image is common to all of {listed(list(kept))}."
            body += [f"<h2>{title}</h2>", f"<p class=note>{html.escape(told)}</p>"]
    if made.samples:
        body += ["<h2>Last samples</h2>", figures(made.samples)]
    same = "".join(f"<li>{html.escape(name)} {html.escape(value)}" for name, value in compared.equal.items())
    body += [
        "<h2>What is equal</h2>",
        f"<details><summary>{len(compared.equal)} options</summary><ul>{same}</ul></details>",
    ]
    return page("facelab compare", body)


def _numbers(compared: Comparison) -> str:
    rows = []
    for place, (run, label) in enumerate(zip(compared.runs, compared.labels, strict=True)):
        facts = [
            f"{html.escape(label)}<small>{html.escape(run.id)}</small>",
            run.job,
            run.status,
            duration(run.seconds),
        ]
        rows.append([facts[0], *map(html.escape, facts[1:]), *(_number(c, place) for c in compared.columns)])
    return html_table(["run", "job", "status", "time", *(html.escape(c.title) for c in compared.columns)], rows)


def _number(column: Column, place: int) -> str:
    number = column.numbers[place]
    if number is None:
        return "–"
    text = column.text(number.value) + ("" if column.alike[place] else "‡")
    shown = f"<b>{text}</b>" if place in column.best else text
    spread = column.spread(number.low, number.high)
    return f"{shown}<small>{spread}</small>" if spread else shown


def _differing(compared: Comparison) -> str:
    if not compared.differing:
        return "<p>Nothing but what came out.</p>"
    options = [html.escape(name) for name in compared.differing]
    labels = [html.escape(label) for label in compared.labels]
    values = [[html.escape(value) for value in row] for row in compared.differing.values()]
    if len(labels) <= _SIDE_BY_SIDE:
        return html_table(["", *labels], [[name, *row] for name, row in zip(options, values, strict=True)])
    return html_table(["", *options], [[label, *row] for label, *row in zip(labels, *values, strict=True)])


def _over_seeds(compared: Comparison) -> str:
    rows = []
    for group in compared.groups:
        means = [_mean(column, group.intervals.get(column.name)) for column in compared.repeated]
        rows.append([html.escape(group.label), str(len(group.seeds)), *means])
    head = ["", "seeds", *(html.escape(column.title) for column in compared.repeated)]
    return html_table(head, rows) + "<p class=note>Mean and Student's 95 % interval over finished runs.</p>"


def _mean(column: Column, interval: Interval | None) -> str:
    if interval is None:
        return "–"
    spread = column.spread(interval.low, interval.high)
    return column.text(interval.mean) + (f"<small>{spread}</small>" if spread else "")
