"""The paper's tables and figures, made here: what is missing for them is trained, synthesised and measured."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from facelab import storage
from facelab.cluster import ray_session
from facelab.data.owner import Owner
from facelab.experiments.estimate import estimated
from facelab.experiments.graph import needs, run_graph
from facelab.experiments.paper import Column
from facelab.experiments.reproduce_config import ReproduceConfig
from facelab.experiments.steps import Done, Step, is_done
from facelab.experiments.tables import TABLES, Cell, Chain
from facelab.job import Job
from facelab.metrics.intervals import Interval, over_seeds
from facelab.metrics.number import Number
from facelab.metrics.protocol import fingerprint_of, metric_names
from facelab.tracking.runs import JobRun


def reproduce(config: ReproduceConfig, run: JobRun) -> dict[str, Any]:
    """Do the job: writes a table as Markdown and as JSON for each name; returns the summary, which has every cell."""
    cells, steps = planned(config, run.uri)
    with Owner(config.output):
        try:
            with ray_session():
                done = run_graph(steps, run.id, config.at_once)
        finally:
            run.end_below({})  # of steps whose process was killed, now or before
    summary: dict[str, Any] = {"n_steps": len(steps)}
    for name, of_seeds in cells.items():
        results = [measured(group, done) for group in _by_place(of_seeds)]
        text = markdown(config, name, results)
        storage.write_text(storage.join(config.output, f"{name}.md"), text)
        table = json.dumps([each.as_json(config) for each in results], indent=2)
        storage.write_text(storage.join(config.output, f"{name}.json"), table)
        run.text(text, f"{name}.md")
        run.text(table, f"{name}.json")
        print(f"\n{text}", flush=True)
        for each in results:
            summary |= Number(each.value.mean, low=each.value.low, high=each.value.high).flat(_key(name, each))
    return summary


def planned(config: ReproduceConfig, tracking_uri: str) -> tuple[dict[str, list[Cell]], list[Step]]:
    """Name -> its cells, of all seeds; and the steps behind all, each once."""
    chains = [Chain(config, tracking_uri, config.seed + s) for s in range(config.seeds)]
    cells = {name: [cell for chain in chains for cell in TABLES[name](chain)] for name in config.names}
    steps = {folder: step for chain in chains for folder, step in chain.steps.items()}
    return cells, list(steps.values())


@dataclass(frozen=True)
class Result:
    """A number of a table, of all seeds."""

    cell: Cell
    """Of the first seed."""
    metric: str
    """Its name in the evaluations' summaries."""
    value: Interval
    """Over the seeds; of one seed, or where nothing is trained, over the faces that its evaluation measured."""
    each: tuple[float, ...]
    """By seed."""
    protocol: str | None

    def as_json(self, config: ReproduceConfig) -> dict[str, Any]:
        """For others to read."""
        return {
            "row": _row(config, self.cell), "column": self.cell.column.name, "paper": self.cell.printed,
            "metric": self.metric, "value": self.value.mean, "low": self.value.low, "high": self.value.high,
            "interval_over": "seeds" if len(self.each) > 1 and self.cell.network else "faces", "by_seed": self.each,
            "evaluation": self.cell.folder, "protocol": self.protocol,
        }  # fmt: skip


def _by_place(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells of all seeds that are one number of the table."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.row, cell.column.name), []).append(cell)
    return list(found.values())


def measured(cells: list[Cell], done: dict[str, Done]) -> Result:
    """One number, of the evaluations that measured it."""
    first, summaries = cells[0], [done[cell.folder].summary for cell in cells]
    name = _metric(first, summaries[0])
    numbers = [Number.of(name, summary) for summary in summaries]
    if len(numbers) > 1 and first.network:
        value = over_seeds([number.value for number in numbers])
    else:
        value = Interval(numbers[0].value, numbers[0].low, numbers[0].high, 1)
    protocol = fingerprint_of(name, summaries[0])
    return Result(first, name, value, tuple(number.value for number in numbers), protocol)


def _metric(cell: Cell, summary: dict[str, Any]) -> str:
    """A cell's metric as its evaluation names it."""
    if cell.column.metric != "fd":
        return cell.column.metric
    distances = (name for name in metric_names(summary) if name == "fid" or name.startswith("fd_"))
    return next(distances) + cell.suffix


def _row(config: ReproduceConfig, cell: Cell) -> str:
    return config.title(cell.network) if cell.network else cell.row


def _key(name: str, result: Result) -> str:
    """In the summary, and so of a metric in MLflow."""
    words = f"{name} {result.cell.row} {result.cell.column.name}".replace("→", "to").replace("+", "and")
    return "_".join(words.lower().replace("-", "_").split())


def markdown(config: ReproduceConfig, name: str, results: list[Result]) -> str:
    """The paper's numbers beside ours."""
    columns = list({each.cell.column.name: each.cell.column for each in results}.values())
    by_place = {(each.cell.row, each.cell.column.name): each for each in results}
    heads = [head for column in columns for head in (f"{column.name}, paper", f"{_here(column, results)}, here")]
    lines = [["", *heads], ["---"] + ["---:"] * len(heads)]
    for cell in {each.cell.row: each.cell for each in results}.values():
        line = [_row(config, cell)]
        for column in columns:
            each = by_place.get((cell.row, column.name))
            printed = each.cell.printed if each else None
            line += ["–" if printed is None else f"{printed:{column.digits}}", _shown(each, column) if each else "–"]
        lines.append(line)
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    over = f"{config.seeds} seeds" if config.seeds > 1 else "the faces measured; one seed"
    budget = ", ".join(f"{stage} {config.steps_of(stage) or 'by recipe'}" for stage in ("degrader", "sr"))
    note = f"Preset {config.preset}, updates of each training: {budget}. [95 % interval over {over}]."
    if any(each.metric.startswith("fd_") for each in results):
        note += " fd_… is a Fréchet distance over other features than FID's: only its order compares with the paper's."
    pictures = f"\n\nPictures: {_picture(config, name)}" if name.startswith("fig") else ""
    return f"## {name}\n\n{table}\n\n{note}{pictures}\n"


def _here(column: Column, results: list[Result]) -> str:
    return next(each.metric.removesuffix(each.cell.suffix) for each in results if each.cell.column.name == column.name)


def _picture(config: ReproduceConfig, name: str) -> str:
    return storage.join(config.output, f"seed{config.seed}/{name}/grid_real.png")


def _shown(result: Result, column: Column) -> str:
    return result.value.shown(".3g" if result.metric.startswith("fd_") else column.digits)  # of another order than FID


def reproduce_plan(config: ReproduceConfig) -> str:
    _, steps = planned(config, "")
    needed, left = needs(steps), []
    for step in steps:
        if not is_done(step) or needed[step.folder] & {each.folder for each in left}:
            left.append(step)
    listed = "\n#   ".join(f"{step.job.name}: {step.folder}" for step in left)
    text = f"{', '.join(config.names)}: of {len(steps)} steps {len(left)} are not done\n#   {listed}"
    return text + (f"\n{estimated(left)}" if config.estimate else "")


REPRODUCE = Job("reproduce", ReproduceConfig, reproduce, reproduce_plan)
