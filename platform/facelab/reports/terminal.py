"""A comparison of runs in a terminal of 120 columns, or as plain text; the page has all of it."""

import sys
import textwrap
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from facelab.errors import one_line
from facelab.metrics.catalogue import metric
from facelab.metrics.intervals import Interval
from facelab.reports.comparison import Column, Comparison
from facelab.reports.differences import STAR, Differences, columns_of, difference

AT_A_GLANCE = 20
"""Rows of a table; of more runs, the best."""
_WIDTH = 120
_WIDEST = 40
"""Characters of a name."""
_NARROW, _SIDE_BY_SIDE = 18, 4
"""Characters of a value where each run has a column, and up to how many runs."""
_MOST_VALUES = 6
"""Of an option."""


def show(compared: Comparison, baseline: str, pairs: Differences, notes: Sequence[str]) -> None:
    """Print it."""
    # A pipe has no width, and rich would take it for 80.
    console = Console(width=min(Console().width, _WIDTH) if sys.stdout.isatty() else _WIDTH, highlight=False)
    columns, titles = compared.columns, [column.title for column in compared.columns]
    rows = [
        [label, run.id[:8], run.status, duration(run.seconds), *(_number(column, place) for column in columns)]
        for place, (run, label) in enumerate(zip(compared.runs, compared.labels, strict=True))
    ]
    _print(console, "Numbers, ★ the best", ["run", "id", "status", "time", *titles], rows, "runs")
    if len(rows) <= _SIDE_BY_SIDE:
        heads = ["", *(_short(label) for label in compared.labels)]
        differing = [[k, *(_short(value) for value in values)] for k, values in compared.differing.items()]
    else:
        heads, differing = ["", "values"], [[name, _values(values)] for name, values in compared.differing.items()]
    _print(console, "What differs", heads, differing, "options")
    _say(console, f"Equal in all {len(compared.runs)} runs: {len(compared.equal)} options, inputs and versions.")
    kept = compared.repeated
    means = [
        [group.label, str(len(group.seeds)), *(_mean(column, group.intervals.get(column.name)) for column in kept)]
        for group in compared.groups
    ]
    heads = ["", "seeds", *(column.title for column in kept)]
    _print(console, "Over seeds, mean and Student's 95 % interval", heads, means, "groups")
    names = columns_of(pairs)
    minus = [[label, *(_difference(found, name) for name in names)] for label, found in pairs.items()]
    title = f"Minus {baseline}, on the same images"
    _print(console, title, ["run", *(metric(name).title for name in names)], minus, "runs")
    for note in [STAR, *notes] if pairs else notes:
        _say(console, note)


def duration(seconds: float | None) -> str:
    """Of a run, for people; a dash of one that goes on."""
    if seconds is None:
        return "–"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"


def _number(column: Column, place: int) -> str:
    number = column.numbers[place]
    if number is None:
        return "–"
    return column.text(number.value) + ("" if column.alike[place] else "‡") + (" ★" if place in column.best else "")


def _mean(column: Column, interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return f"{column.text(interval.mean)} {column.spread(interval.low, interval.high)}".strip()


def _difference(found: dict[str, Interval], name: str) -> str:
    return difference(found[name], name) if name in found else "–"


def _values(values: Sequence[str]) -> str:
    """Of an option that differs: each once."""
    once = list(dict.fromkeys(values))
    more = len(once) - _MOST_VALUES
    shown = ", ".join(_short(value) for value in once[:_MOST_VALUES])
    return shown + (f" and {more} others" if more > 0 else "")


def _short(text: str) -> str:
    """Of a path the end tells more."""
    text = one_line(text)
    return text if len(text) <= _NARROW else f"…{text[1 - _NARROW :]}"


def _print(console: Console, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> None:
    """A table of what has room, and how much has not; nothing where there are no rows."""
    if not rows:
        return
    shown = [
        [textwrap.shorten(row[0], _WIDEST, placeholder=" …"), *map(one_line, row[1:])] for row in rows[:AT_A_GLANCE]
    ]
    table = Table(title=Text(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    left = console.width
    fitting = 0
    for place, name in enumerate(head):
        left -= max(len(name), *(len(row[place]) for row in shown)) + 3
        if left < 0 and place > 1:
            break
        fitting += 1
        words = place == 0 or len(head) == 2
        table.add_column(Text(name), justify="left" if words else "right", overflow="fold" if words else "ellipsis")
    for row in shown:
        table.add_row(*(Text(cell, style="bold" if cell.endswith("★") else "") for cell in row[:fitting]))
    console.print(table)
    if more := len(rows) - len(shown):
        _say(console, f"… and {more} more {kind}, in compare.html")
    if more := len(head) - fitting:
        _say(console, f"… and {more} more columns, in compare.html: {', '.join(head[fitting:])}")


def _say(console: Console, text: str) -> None:
    console.print(Text(one_line(text)))
