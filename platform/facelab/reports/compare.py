"""Runs side by side, of any job: their numbers, in what they differ, and what they made of the same images."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import tyro
from pydantic import AfterValidator, Field, model_validator

from facelab import storage
from facelab.config import RUN, JobConfig, Uri
from facelab.errors import UsageError
from facelab.job import Job
from facelab.reports.comparison import Comparison, compare_runs
from facelab.reports.comparison_page import comparison_page
from facelab.reports.differences import Differences, left_out, paired_differences
from facelab.reports.made import Made, made_by
from facelab.reports.results import Result
from facelab.reports.table import unlike
from facelab.reports.terminal import AT_A_GLANCE, show
from facelab.tracking.records import Recorded, recorded, searched
from facelab.tracking.runs import JobRun

RunId = Annotated[str, AfterValidator(lambda text: text.removeprefix(RUN).rstrip("/"))]
"""As MLflow shows it; runs:/ID is the same."""


class CompareConfig(JobConfig):
    """Put runs side by side: numbers, what differs in their options, inputs and code, means over seeds, paired
    differences of evaluations, pictures. Any number of runs costs MLflow a few questions."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {}, "demo": {}, "paper": {}}

    WRITES = (*JobConfig.WRITES, "compare.html", "compare.json")

    runs: Annotated[tuple[RunId, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN …")] = ()
    """MLflow runs, as ID or runs:/ID; before the options."""
    output: Uri = Field(default="outputs/compare", validate_default=True)
    """Folder or s3:// prefix for compare.html, compare.json, config.yaml and summary.json."""
    filter: str | None = None
    """MLflow search instead of a list, as in its UI: all runs of --experiment that match, whatever became of them,
    such as "tags.sweep = 'weights'" or "tags.mlflow.parentRunId = 'ID'"."""
    metrics: tuple[str, ...] = ()
    """Columns, by their names in MLflow; default: best/… of trainings and what evaluations measured. Of more than 20
    runs, the first with a direction sorts them."""
    baseline: RunId | None = None
    """Evaluation that the others are compared with, image by image; default: the first."""

    @model_validator(mode="after")
    def _some_runs(self):
        if bool(self.runs) == (self.filter is not None):
            raise ValueError("give either runs, before the options, or --filter")
        return self


def compare(config: CompareConfig, run: JobRun) -> dict[str, Any]:
    """Write compare.html and compare.json to --output and print the same in short; returns the summary.

    Raises:
        UsageError: no such runs, fewer than two, or a baseline or metric that they do not have.
    """
    runs = _chosen(config, run)
    compared = compare_runs(runs, config.metrics)
    if len(runs) > AT_A_GLANCE:
        compared = compare_runs([runs[place] for place in compared.best_first()], config.metrics)
    made = made_by(compared, config.baseline, run.uri)
    notes = compared.notes() + made.notes
    baseline, pairs = _baseline(config, compared, made), {}
    if baseline:
        names = [column.name for column in compared.columns if column.name in baseline.per_image]
        pairs = paired_differences(made.evaluated, baseline, names, config.seed)
        notes += _unlike(made.evaluated, baseline, names) + left_out(made.evaluated, baseline, names)
    minus = baseline.name if baseline else ""
    whole = compared.plain() | {"baseline": minus, "differences": _plain(pairs), "notes": notes}
    files = {
        "compare.json": json.dumps(whole, indent=2),
        "compare.html": comparison_page(compared, made, minus, pairs, notes),
    }
    for name, text in files.items():
        storage.write_text(storage.join(config.output, name), text)
        run.text(text, name)
    show(compared, minus, pairs, notes)
    found = {"n_runs": len(runs), "n_differing": len(compared.differing), "n_seed_groups": len(compared.groups)}
    if compared.lead and compared.lead.best:
        found |= {"best_by": compared.lead.name, "best": compared.labels[min(compared.lead.best)]}
    return found


def _chosen(config: CompareConfig, run: JobRun) -> list[Recorded]:
    if config.filter is None:
        runs = recorded(run.uri, list(dict.fromkeys(config.runs)))
    else:
        found = searched(run.uri, config.experiment, config.filter)
        runs = [each for each in found if each.job != COMPARE.name]  # this one, and earlier ones
    if len(runs) < 2:
        what = (
            f"{runs[0].id} is one run" if config.filter is None else f"--filter {config.filter}: {len(runs)} runs match"
        )
        raise UsageError(f"{what}: give two or more")
    if config.baseline:
        found = [each for each in runs if each.id == config.baseline]
        if not found or found[0].job != "evaluate":
            raise UsageError(f"--baseline {config.baseline}: is no evaluation among the runs that are compared")
    return runs


def _baseline(config: CompareConfig, compared: Comparison, made: Made) -> Result | None:
    """The first evaluation whose files there are, unless one was chosen."""
    labels = {run.id: label for run, label in zip(compared.runs, compared.labels, strict=True)}
    chosen = labels.get(config.baseline or "")
    return next((result for result in made.evaluated if chosen in (None, result.name)), None)


def _unlike(results: Sequence[Result], baseline: Result, names: Sequence[str]) -> list[str]:
    """Which differences there are not, as the numbers have different protocols."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for each in results:
        for name in names:
            if how := unlike(name, baseline.row, each.row):
                found[each.name, how].append(name)
    return [
        f"No difference of {other} and {baseline.name} in {', '.join(same)}, as they were not computed alike: {how}."
        for (other, how), same in found.items()
    ]


def _plain(pairs: Differences) -> dict[str, Any]:
    return {label: {name: vars(interval) for name, interval in found.items()} for label, found in pairs.items()}


def compare_plan(config: CompareConfig) -> str:
    """For --dry-run."""
    what = f"{len(config.runs)} runs" if config.runs else f"the runs of {config.experiment} where {config.filter}"
    return f"compare {what}; write compare.html and compare.json to {config.output}"


COMPARE = Job("compare", CompareConfig, compare, compare_plan)
