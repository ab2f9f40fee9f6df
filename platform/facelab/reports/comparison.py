"""Runs side by side, as data: in what they differ, their numbers and which is best, and means over seeds."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from facelab.config import nearest
from facelab.errors import UsageError, one_line
from facelab.metrics.catalogue import metric
from facelab.metrics.intervals import Interval, over_seeds
from facelab.metrics.number import Metric, Number
from facelab.metrics.protocol import fingerprint_of, metric_names
from facelab.reports.table import arrow
from facelab.tracking.records import Recorded

_VERSIONS = ("commit", "code_hash")
"""What says which code ran."""
_MOST_NAMES = 5
"""In a sentence."""


@dataclass(frozen=True)
class Column:
    """One metric of all the runs."""

    name: str
    known: Metric | None
    """None of what the catalogue has not: no value of it is better than another."""
    numbers: list[Number | None]
    """Of each run; None where it has none."""
    alike: list[bool]
    """Whether each was computed as most are. The others do not compete."""

    @property
    def title(self) -> str:
        """Its name in MLflow, by which --metrics asks for it, and which way is better."""
        return f"{self.name} {arrow(self.known)}" if self.known else self.name

    def score(self, place: int) -> float:
        """Of a run, more is better; -inf where there is none."""
        number = self.numbers[place]
        if self.known is None or number is None or not self.alike[place] or math.isnan(number.value):
            return -math.inf
        return number.value * self.known.better

    @property
    def best(self) -> set[int]:
        """Places of the runs with the best value; none where only one has any."""
        scores = [self.score(place) for place in range(len(self.numbers))]
        top = max(scores)
        known = sum(score > -math.inf for score in scores)
        return {place for place, score in enumerate(scores) if score == top} if known > 1 else set()

    def text(self, value: float) -> str:
        """A value as it is shown."""
        return "∞" if math.isinf(value) else format(value, self.known.digits if self.known else ".5g")

    def spread(self, low: float | None, high: float | None) -> str:
        """An interval as it is shown; empty where there is none."""
        return "" if low is None or high is None else f"[{self.text(low)}, {self.text(high)}]"


@dataclass(frozen=True)
class SeedGroup:
    """Finished runs of one setting that differ in their seed alone."""

    label: str
    seeds: list[str]
    intervals: dict[str, Interval]
    """Metric -> its mean over them."""


@dataclass(frozen=True)
class Comparison:
    """All that MLflow's records of some runs say of one beside another."""

    runs: list[Recorded]
    labels: list[str]
    """By which each is called: its name, with its id where others have that, too."""
    columns: list[Column]
    differing: dict[str, list[str]]
    """Option, input or version of the code -> its value in each run, "–" where it has none."""
    equal: dict[str, str]
    """The same where all have one value."""
    groups: list[SeedGroup]

    @property
    def lead(self) -> Column | None:
        """The first metric that has a direction."""
        return next((column for column in self.columns if column.known), None)

    @property
    def repeated(self) -> list[Column]:
        """Those with a mean over seeds."""
        return [column for column in self.columns if any(column.name in group.intervals for group in self.groups)]

    def best_first(self) -> list[int]:
        """Places of the runs by that; equal ones as they are."""
        lead = self.lead
        return sorted(range(len(self.runs)), key=lambda place: -lead.score(place) if lead else 0.0)

    def notes(self) -> list[str]:
        """What a reader must know of its numbers."""
        if not self.columns:
            return ["MLflow has no numbers of these runs."]
        odd: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for column in self.columns:
            odd[tuple(place for place, alike in enumerate(column.alike) if not alike)].append(column.name)
        return [
            f"‡ {', '.join(names)} of {listed([self.labels[place] for place in places])}: measured on other images "
            "than most here, or otherwise: no match for theirs."
            for places, names in odd.items()
            if places
        ]

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no infinity."""
        runs = [
            {
                "id": run.id, "name": run.name, "job": run.job, "status": run.status, "seconds": run.seconds,
                "differs": {option: values[i] for option, values in self.differing.items()},
                "metrics": {c.name: n and _finite(n.value) for c in self.columns if (n := c.numbers[i]) is not None},
                "not_alike": [c.name for c in self.columns if not c.alike[i]],
            }
            for i, run in enumerate(self.runs)
        ]  # fmt: skip
        best = {column.name: [self.runs[i].id for i in sorted(column.best)] for column in self.columns}
        groups = [
            {"label": g.label, "seeds": g.seeds, "metrics": {name: vars(i) for name, i in g.intervals.items()}}
            for g in self.groups
        ]
        return {"runs": runs, "best": best, "equal": self.equal, "over_seeds": groups}


def compare_runs(runs: Sequence[Recorded], metrics: Sequence[str] = ()) -> Comparison:
    """Put runs side by side, in this order.

    Args:
        metrics: chooses and orders the columns; default: what trainings call best, and what evaluations measured.

    Raises:
        UsageError: no run has one of these metrics.
    """
    names = [one_line(run.name) for run in runs]
    count = Counter(names)
    labels = [f"{n} ({run.id[:8]})" if count[n] > 1 else n for n, run in zip(names, runs, strict=True)]
    numbers = [_numbers(run) for run in runs]
    recorded = list(dict.fromkeys(name for each in numbers for name in each))
    if unknown := [name for name in metrics if name not in recorded]:
        raise UsageError(f"--metrics {unknown[0]}: no run has it{nearest(unknown[0], recorded)}")
    columns = [_column(name, runs, numbers) for name in metrics or _final(runs, numbers, recorded)]
    settings = [_facts(run) | run.params for run in runs]
    rows = {name: [each.get(name, "–") for each in settings] for name in dict.fromkeys(k for s in settings for k in s)}
    differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
    equal = {name: values[0] for name, values in rows.items() if name not in differing}
    return Comparison(list(runs), labels, columns, differing, equal, _groups(runs, columns, differing))


def _facts(run: Recorded) -> dict[str, str]:
    """What beside its parameters decides what a run gives."""
    found = {"job": run.job} | {f"input {role}": digest for role, digest in run.inputs.items()}
    return found | {"commit": run.commit, "code_hash": run.tags.get("code_hash", "")}


def _numbers(run: Recorded) -> dict[str, Number]:
    """Its metrics; what an evaluation says of one, such as its interval, is in it and no metric of its own."""
    judged = metric_names(run.tags)
    parts = {f"{name}_{field}" for name in judged for field in vars(Number(0))}
    found = {}
    for name in judged:
        own = {key: value for key, value in run.metrics.items() if key.startswith(name)}
        said = {f"{name}_{field}": run.tags.get(f"{name}_{field}") for field in ("warning", "layer")}
        found[name] = Number.of(name, {name: None} | own | said)  # MLflow is not told of infinity
    return found | {k: Number(value) for k, value in run.metrics.items() if k not in found and k not in parts}


def _known(name: str) -> Metric | None:
    """Also of best/psnr_y and val/psnr_y."""
    try:
        return metric(name.rpartition("/")[2])
    except KeyError:
        return None


def _final(runs: Sequence[Recorded], numbers: list[dict[str, Number]], recorded: list[str]) -> list[str]:
    """What the runs are judged by: of trainings best/…, and the newest val/… where one has no best yet; the numbers of
    evaluations; where there is nothing of this, all but the terms of a loss."""
    best = [name for name in recorded if name.startswith("best/") and _known(name)]
    judged = {name for run in runs for name in metric_names(run.tags)}
    found = best + [name for name in recorded if name in judged]
    if any(each and not each.keys() & set(found) for each in numbers):
        found += [name for name in recorded if name.startswith("val/") and _known(name)]
    return found or [name for name in recorded if not name.startswith("train/")]


def _column(name: str, runs: Sequence[Recorded], numbers: list[dict[str, Number]]) -> Column:
    own = [each.get(name) for each in numbers]
    ways = [_way(name, run) for run in runs]
    known = _known(name)
    having = Counter(way for way, number in zip(ways, own, strict=True) if number is not None)
    usual = having.most_common(1)[0][0]
    alike = [number is None or known is None or way == usual for way, number in zip(ways, own, strict=True)]
    return Column(name, known, own, alike)


def _way(name: str, run: Recorded) -> tuple[Any, ...]:
    """How a number came about: runs with equal ones measured the same on the same images."""
    if (fingerprint := fingerprint_of(name, run.tags)) is not None:
        return (fingerprint,)
    sizes = [run.params.get(option) for option in ("hr_size", "scale", "validation_images")]
    return (run.job, *sizes, *sorted(run.inputs.items()))


def _groups(runs: Sequence[Recorded], columns: list[Column], differing: dict[str, list[str]]) -> list[SeedGroup]:
    settings: dict[tuple[Any, ...], dict[str, int]] = defaultdict(dict)
    for place, run in enumerate(runs):
        if run.status == "FINISHED" and "seed" in run.params:
            others = sorted((name, value) for name, value in run.params.items() if name != "seed")
            settings[run.job, *others, *sorted(run.inputs.items())][run.params["seed"]] = place  # the later of two
    repeated = [seeds for seeds in settings.values() if len(seeds) > 1]
    firsts = [next(iter(seeds.values())) for seeds in repeated]
    groups = []
    for seeds in repeated:
        intervals = {}
        for column in columns:
            numbers = [n for place in seeds.values() if column.alike[place] and (n := column.numbers[place])]
            values = [number.value for number in numbers if math.isfinite(number.value)]
            if column.known and values:
                intervals[column.name] = over_seeds(values)
        groups.append(SeedGroup(_label([*seeds.values()], firsts, runs, differing), list(seeds), intervals))
    return groups


def _label(places: list[int], firsts: list[int], runs: Sequence[Recorded], differing: dict[str, list[str]]) -> str:
    """Of a group: the name that its sweep gave it, else the options that tell it from the others, of which `firsts` has
    one run each."""
    variants = {runs[place].tags.get("variant", "") for place in places}
    if len(variants) == 1 and "" not in variants:
        return one_line(variants.pop())
    telling = {k: values for k, values in differing.items() if len({values[place] for place in firsts}) > 1}
    own = {k: values[places[0]] for k, values in telling.items() if k not in ("seed", *_VERSIONS)}
    return one_line(", ".join(f"{k} {value}" for k, value in own.items() if value != "–")) or runs[places[0]].job


def listed(names: Sequence[str]) -> str:
    """Some names in a sentence, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} others" if more > 0 else "")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
