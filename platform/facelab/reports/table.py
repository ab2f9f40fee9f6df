"""The paper-style table: a row for each model, best in bold, intervals; Markdown, LaTeX, HTML.

Numbers of different protocols never stand in one column.
"""

import html
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from facelab.errors import UsageError, one_line
from facelab.metrics.catalogue import metric
from facelab.metrics.number import Metric, Number
from facelab.metrics.protocol import differences, fingerprint_of, metric_names


@dataclass(frozen=True)
class Row:
    """The evaluation of one model."""

    name: str
    summary: dict[str, Any]
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    """protocol.json, to say in what two protocols differ."""

    def number(self, name: str) -> Number | None:
        """None where the evaluation has no such number, or not how it was computed."""
        return None if fingerprint_of(name, self.summary) is None else Number.of(name, self.summary)


@dataclass(frozen=True)
class Cell:
    """A number as a table shows it."""

    value: str
    spread: str
    """[low, high] or ± deviation; empty where there is none."""
    best: bool = False
    mark: str = ""
    """Of a footnote."""


@dataclass(frozen=True)
class Table:
    """Cells that may be compared."""

    metrics: dict[str, Metric]
    rows: list[tuple[str, list[Cell | None]]]
    """Name, and a cell for each metric; None where the model has no such number."""
    floor: list[Cell | None]
    """Real against real faces, below which no distance can be expected to fall; all None where nothing has one."""
    notes: list[str]

    def markdown(self) -> str:
        cell = _shown(("**", "**"), str)
        head = ["", *(f"{escape_markdown(m.title)} {arrow(m)}" for m in self.metrics.values())]
        lines = [head, ["---"] + ["---:"] * len(self.metrics)]
        lines += [[escape_markdown(name), *map(cell, cells)] for name, cells in self.rows]
        if any(self.floor):
            lines.append(["*floor*", *map(cell, self.floor)])
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return body + "".join(f"\n\n{escape_markdown(note)}" for note in self.notes) + "\n"

    def latex(self) -> str:
        """Needs the package booktabs."""
        columns = "l" + "r" * len(self.metrics)
        arrows = {1: "$\\uparrow$", -1: "$\\downarrow$"}
        heads = [f"{_tex(m.title)} {arrows[m.better]}" for m in self.metrics.values()]
        cell = _shown(("\\textbf{", "}"), lambda spread: f"{{\\scriptsize {_tex(spread)}}}")
        lines = [" & ".join(["", *heads]) + " \\\\", "\\midrule"]
        for name, cells in self.rows:
            label = re.sub(r"^(?=[\[*])", "{}", _tex(name))  # else the \\ before it would take these as its own
            lines.append(" & ".join([label, *map(cell, cells)]) + " \\\\")
        if any(self.floor):
            lines += ["\\midrule", " & ".join(["\\textit{floor}", *map(cell, self.floor)]) + " \\\\"]
        notes = "".join(f"\n% {one_line(note)}" for note in self.notes)
        body = "\n".join(lines).replace("–", "--").replace("†", "$^\\dagger$").replace("∞", "$\\infty$")
        return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{body}\n\\bottomrule\n\\end{{tabular}}{notes}\n"

    def html(self) -> str:
        cell = _shown(("<b>", "</b>"), lambda spread: f"<small>{html.escape(spread)}</small>")

        def line(name: str, cells: list[Cell | None], kind: str = "") -> str:
            return f"<tr{kind}><td>{html.escape(name)}{''.join(f'<td>{cell(c)}' for c in cells)}</tr>"

        head = "".join(f"<th>{html.escape(m.title)} {arrow(m)}" for m in self.metrics.values())
        lines = [line(name, cells) for name, cells in self.rows]
        if any(self.floor):
            lines.append(line("floor", self.floor, " class=floor"))
        notes = "".join(f"<p class=note>{html.escape(note)}</p>" for note in self.notes)
        return f"<div class=wide><table><tr><th>{head}</tr>{''.join(lines)}</table></div>{notes}"


def build_table(rows: Sequence[Row], columns: Sequence[str] = ()) -> Table:
    """The table of some evaluations; `columns` chooses and orders its metrics, default all.

    Raises:
        UsageError: no such number, or numbers of different protocols in one column.
    """
    known = list(dict.fromkeys(name for row in rows for name in metric_names(row.summary)))
    if unknown := [name for name in columns if name not in known]:
        raise UsageError(f"--columns {unknown[0]}: none of these evaluations has it; they have {', '.join(known)}")
    chosen = list(columns or known)
    for name in chosen:
        _require_one_protocol(name, rows)
    metrics = {name: metric(name) for name in chosen}
    cells = {name: _column(name, rows, metrics[name]) for name in chosen}
    floor = [None if (value := floor_of(name, rows)) is None else Cell(value, "") for name in chosen]
    body = [(row.name, [cells[name][i] for name in chosen]) for i, row in enumerate(rows)]
    return Table(metrics, body, floor, _notes(rows, chosen, metrics))


def floor_of(name: str, rows: Sequence[Row]) -> str | None:
    """The floor of a distance as the table shows it, where all rows that have one agree: they need not have judged the
    same test faces."""
    floors = [number.floor for row in rows if (number := row.number(name))]
    values = {format(floor, metric(name).digits) for floor in floors if floor is not None}
    return values.pop() if len(values) == 1 else None


def unlike(name: str, a: Row, b: Row) -> str | None:
    """In what the numbers of two evaluations were not computed alike, for people; None where they were, or where one
    has no such number."""
    found = [fingerprint_of(name, row.summary) for row in (a, b)]
    if None in found or found[0] == found[1]:
        return None
    return "; ".join(differences(a.protocols.get(name, {}), b.protocols.get(name, {}))) or "other protocol"


def _require_one_protocol(name: str, rows: Sequence[Row]) -> None:
    having = [row for row in rows if fingerprint_of(name, row.summary) is not None]
    for row in having[1:]:
        if how := unlike(name, having[0], row):
            raise UsageError(
                f"{name} of {having[0].name} and of {row.name} cannot stand in one column, as they were not computed "
                f"alike: {how}: evaluate both alike, or choose other --columns"
            )


def _column(name: str, rows: Sequence[Row], known: Metric) -> list[Cell | None]:
    numbers = [row.number(name) for row in rows]
    values = [number.value * known.better for number in numbers if number and not math.isnan(number.value)]
    best = max(values, default=math.nan)
    cells: list[Cell | None] = []
    for number in numbers:
        if number is None:
            cells.append(None)
            continue
        spread = f"± {number.std:{known.digits}}" if number.std is not None else ""
        if number.low is not None and number.high is not None:
            spread = f"[{number.low:{known.digits}}, {number.high:{known.digits}}]"
        mark = "†" if _warning(number) else ""
        shown = "∞" if math.isinf(number.value) else format(number.value, known.digits)
        cells.append(Cell(shown, spread, number.value * known.better == best and len(rows) > 1, mark))
    return cells


def _notes(rows: Sequence[Row], chosen: list[str], metrics: dict[str, Metric]) -> list[str]:
    counts = {key: sorted({row.summary[key] for row in rows if key in row.summary}) for key in ("n", "n_real")}
    told = [f"{' or '.join(map(str, found))} {what}" for (_, found), what in zip(
        counts.items(), ("test faces", "real faces"), strict=True) if found]  # fmt: skip
    notes = [f"{' and '.join(told)}; [ , ]: 95 % interval, ±: standard deviation over subsets."]
    for name in chosen:
        title, digits = metrics[name].title, metrics[name].digits
        having = [(row.name, number) for row in rows if (number := row.number(name))]
        if warnings := {warning for _, number in having if (warning := _warning(number))}:
            notes.append(f"† {title}: {'; '.join(sorted(warnings))}.")
        if same := [(who, number) for who, number in having if number.at_floor is not None]:
            # Where images were set aside or the test sets differ, each has its own N.
            own = len({n for _, number in same for n in (number.floor_n, number.at_floor_n)}) > 1
            listed = ", ".join(
                f"{who} {number.at_floor:{digits}}" + (f" (N = {number.at_floor_n})" if own else "")
                for who, number in same
            )
            floors = " or ".join(map(str, sorted({n for _, number in same if (n := number.floor_n)})))
            notes.append(f"{title}: the floor is at N = {floors}, where the models have: {listed}.")
        if undefined := [(who, number.undefined) for who, number in having if number.undefined is not None]:
            notes.append(f"{title}: undefined for {', '.join(f'{count} images of {who}' for who, count in undefined)}.")
        if limits := [(who, number.infinity) for who, number in having if number.infinity is not None]:
            listed = ", ".join(f"{who} {limit:{digits}}" for who, limit in limits)
            notes.append(f"{title} extrapolated to infinitely many images: {listed}.")
    return notes


def _warning(number: Number) -> str | None:
    return number.warning or ("nan: the evaluation has no number" if math.isnan(number.value) else None)


def arrow(known: Metric) -> str:
    return "↑" if known.better > 0 else "↓"


def _shown(bold: tuple[str, str], small: Callable[[str], str]) -> Callable[[Cell | None], str]:
    def shown(cell: Cell | None) -> str:
        if cell is None:
            return "–"
        value = f"{bold[0]}{cell.value}{bold[1]}" if cell.best else cell.value
        return f"{value}{cell.mark}" + (f" {small(cell.spread)}" if cell.spread else "")

    return shown


def escape_markdown(text: str) -> str:
    """In a cell or a paragraph, plain text. An underscore matters at the edge of a word alone."""
    text = re.sub(r"&(?=#?\w+;)", "&amp;", one_line(text)).replace("<", "&lt;")
    return re.sub(r"[\\`*|~$]|\b_|_\b|\](?=[(\[])", r"\\\g<0>", text)


_TEX = {char: f"\\{char}" for char in "_%&#{}$"} | {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "<": "\\textless{}", ">": "\\textgreater{}", "|": "\\textbar{}", "±": "$\\pm$"
}  # fmt: skip


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in one_line(text))
