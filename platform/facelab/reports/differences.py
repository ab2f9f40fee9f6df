"""Evaluations minus one of them, image by image: means with paired intervals, as Markdown and HTML."""

import html
import math

from facelab.evaluation.rows import face_of
from facelab.metrics.catalogue import metric
from facelab.metrics.intervals import Interval, paired_difference
from facelab.reports.page import html_table
from facelab.reports.results import Result
from facelab.reports.table import escape_markdown, unlike

Differences = dict[str, dict[str, Interval]]
"""Row -> metric -> difference to the baseline."""


def paired_differences(results: list[Result], baseline: Result, columns: list[str], seed: int) -> Differences:
    """Of these metrics, where they were computed as the baseline's; `seed` is the bootstrap's."""
    found: Differences = {}
    kind = str(baseline.row.summary.get("lr_kind"))
    for result in results:
        if result is not baseline:
            intervals = {
                c: paired_difference(
                    result.per_image.get(c, {}), baseline.per_image[c], seed, lambda i: face_of(kind, i)
                )
                for c in columns
                if unlike(c, baseline.row, result.row) is None
            }
            found[result.name] = {c: interval for c, interval in intervals.items() if interval is not None}
    return {name: intervals for name, intervals in found.items() if intervals}


def left_out(results: list[Result], baseline: Result, columns: list[str]) -> list[str]:
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


def difference(interval: Interval, name: str) -> str:
    """+0.31 [0.22, 0.40]; with a star where the interval leaves out 0."""
    digits = metric(name).digits
    text = f"{interval.mean:+{digits}}"
    if interval.low is None or interval.high is None:
        return text
    star = "*" if interval.low > 0 or interval.high < 0 else ""
    return f"{text}{star} [{interval.low:+{digits}}, {interval.high:+{digits}}]"


def columns_of(pairs: Differences) -> list[str]:
    return list(dict.fromkeys(name for intervals in pairs.values() for name in intervals))


STAR = "Paired bootstrap over the faces that both have, 95 %; *: the interval leaves out 0."


def differences_markdown(pairs: Differences, baseline: str) -> str:
    columns = columns_of(pairs)
    heads = [escape_markdown(text) for text in ("minus " + baseline, *(metric(c).title for c in columns))]
    lines = [heads, ["---"] + ["---:"] * len(columns)]
    for name, found in pairs.items():
        shown = [difference(found[c], c).replace("*", "\\*") if c in found else "–" for c in columns]
        lines.append([escape_markdown(name), *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{STAR}\n".replace("*:", "\\*:")


def differences_html(pairs: Differences) -> str:
    columns = columns_of(pairs)
    rows = [
        [html.escape(name), *(difference(found[c], c) if c in found else "–" for c in columns)]
        for name, found in pairs.items()
    ]
    return html_table(["", *(html.escape(metric(c).title) for c in columns)], rows) + f"<p class=note>{STAR}</p>"
