"""A search over the options of a training: a table of trials, judged on held-out training faces, and what it chose
measured once on test faces."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from rich.console import Console
from rich.table import Table

from facelab import storage
from facelab.cluster import (
    cluster_environment,
    driver_resources,
    on_cluster,
    places_for,
    ray_session,
    require_room,
    room,
)
from facelab.data.owner import Owner
from facelab.errors import UsageError
from facelab.experiments.board import Board
from facelab.experiments.proposals import propose
from facelab.experiments.space import Point, grid, parse_space, random_points
from facelab.experiments.steps import run_step
from facelab.experiments.sweep_config import SweepConfig
from facelab.experiments.trial_steps import TrialSteps
from facelab.experiments.trials import State, Trial, TrialTable
from facelab.experiments.tuning import Rules, run_trials
from facelab.experiments.verdict import Effect, Ranked, Values, effects, ranking
from facelab.job import Job
from facelab.metrics.intervals import Interval, over_seeds
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.tracking.runs import Ending, JobRun
from facelab.tracking.views import View

_DIGITS = ".4g"
_ASKED, _DRAWN = 10, 10_000
"""Proposals, and then random points, among which one is new."""


def sweep(config: SweepConfig, run: JobRun) -> dict[str, Any]:
    """Run what is missing of a sweep, then test what it chose and register the best network; returns the summary.

    Raises:
        UsageError: unusable inputs, also of every trial alone, or trials that can never start.
        RuntimeError: no trial came to its end.
    """
    steps = TrialSteps(config, run.uri, run.id, gpu=False)
    steps.check_inputs()
    with Owner(config.output) as owner:
        if not storage.exists(place := storage.join(config.output, "sweep.json")):  # else it is the same: check_output
            storage.write_text(place, json.dumps(config.described(), indent=2))
        planned = Planned(steps, TrialTable(storage.join(config.output, "table")))
        planned.fill()
        try:
            # The dashboard carries the State API, without which Ray Train never frees the workers of a stopped trial.
            with ray_session(dashboard=config.workers > 0):
                if planned.is_left:
                    _run(config, steps, planned)
                owner.check()
                return _concluded(config, steps, planned, run)
        finally:  # of an interruption, too
            run.end_below(_endings(steps, planned.table))


class Planned:
    """Which trials the table has, and is to have."""

    def __init__(self, steps: TrialSteps, table: TrialTable):
        self._steps, self._config, self.table = steps, steps.config, table
        self.space = parse_space(self._config.space, self._config.training, steps.defaults())

    def fill(self) -> None:
        """Put into the table what is known beforehand.

        Raises:
            UsageError: a point that no training takes.
        """
        for point, seed in self._beforehand():
            self._steps.training(point, seed)
            self.table.add(point, seed)

    def _beforehand(self) -> Iterator[tuple[Point, int]]:
        """All points have their first seed before any has its second."""
        c = self._config
        if c.search == "grid":
            points = grid(self.space, c.points)
        elif c.search == "random":
            points = list(random_points(self.space, c.seed, c.points))
        else:  # what was asked for before, and the seeds that it has not had yet
            points = list({trial.key: trial.point for trial in self.table.trials}.values())
        yield from ((point, c.seed + s) for s in range(c.seeds) for point in points)

    def more(self) -> Trial | None:
        """The next trial of a search that learns: a new point comes with all its seeds."""
        c, known = self._config, {trial.key for trial in self.table.trials}
        if c.search != "tpe" or len(known) >= self._points:
            return None
        # A small space has points that were asked for before: then another, at random where TPE insists.
        asked = (propose(self.space, c.seed + i, self.table.trials, c.selection[1]) for i in range(_ASKED))
        rest = random_points(self.space, c.seed, _DRAWN)
        point = next(point for point in chain(asked, rest) if Trial(0, point, 0).key not in known)
        first, *_ = [self.table.add(point, c.seed + s) for s in range(c.seeds)]
        return first

    @property
    def is_left(self) -> bool:
        """Whether there is anything to run."""
        return bool(self.table.of(State.WAITING)) or len(self.table.trials) < self.expected

    @property
    def expected(self) -> int:
        """Trials in the end."""
        c = self._config
        return max(len(self.table.trials), self._points * c.seeds if c.search == "tpe" else 0)

    @property
    def _points(self) -> int:
        """Of a search that learns: as many as are wanted, or as there are."""
        return round(min(self._config.points, math.prod(each.size for each in self.space)))


def _run(config: SweepConfig, steps: TrialSteps, planned: Planned) -> None:
    """Run what waits, in the Ray that is connected."""
    (metric, mode), table = config.selection, planned.table
    training = steps.training({}, config.seed)
    gpus = _gpus(config)
    rules = Rules(
        metric=metric,
        mode=mode,
        early=config.early,
        grace_steps=config.grace_steps,
        reduction=config.reduction,
        longest=training.max_steps or 10**9,
        reserved=reserved(config, gpus),
        concurrency=concurrency(config, gpus, planned.expected),
        max_failures=training.compute.max_failures,
        until=None if config.hours is None else time.monotonic() + 3600 * config.hours,
        budget_steps=config.budget_steps,
        reuses_processes=config.workers == 0,
    )
    at_once = rules.concurrency or max(places_for(dict(rules.reserved)), 1)
    board = Board(table, metric, mode, planned.expected, at_once)
    environment = cluster_environment()
    placed = replace(steps, gpu=gpus > 0)

    def train(trial: dict[str, Any]) -> dict[str, Any] | None:
        os.environ.update(environment)
        return placed.run(Trial(trial["number"], trial["point"], trial["seed"]))

    folder = storage.join(config.output, "tune")
    with board.shown():
        run_trials(table, rules, train, steps.output, planned.more, board.changed, folder)


def _gpus(config: SweepConfig) -> float:
    """GPUs of a worker, or of a trial without."""
    enough = room().get("GPU", 0) >= max(config.workers, 1)
    return float(enough) if config.gpus_per_worker is None else config.gpus_per_worker


def reserved(config: SweepConfig, gpus: float) -> dict[str, float]:
    """What Tune holds for a trial."""
    if config.workers:
        return driver_resources()
    return {"CPU": config.cpus_per_worker, "GPU": gpus}


def concurrency(config: SweepConfig, gpus: float, trials: int) -> int | None:
    """How many trials run at once; None leaves it to Tune, which sees what trials without workers reserve.

    Ray places the workers of a trial all together or not at all, and the trial itself holds nothing that they need: no
    two trials can wait for each other. More than there is room for would wait for a place, as long as it takes.

    Raises:
        UsageError: this machine has no room for one.
    """
    workers = max(config.workers, 1)
    bundle = {"CPU": config.cpus_per_worker, "GPU": gpus}
    sizes = f"--workers {config.workers}, --cpus-per-worker {config.cpus_per_worker:g}, --gpus-per-worker {gpus:g}"
    require_room(f"a trial ({sizes}) needs", {k: workers * v for k, v in bundle.items()}, "one of them")
    if not config.workers or (config.concurrency and on_cluster()):
        return config.concurrency
    fit = max(places_for(bundle) // workers, 1)
    if on_cluster() and fit < trials:
        print(f"{fit} of {trials} trials at a time, as the cluster is now: see --concurrency", flush=True)
    return min(fit, config.concurrency or fit)


def _concluded(config: SweepConfig, steps: TrialSteps, planned: Planned, run: JobRun) -> dict[str, Any]:
    """The summary: what became of the trials, what is best, and that on test faces."""
    (metric, mode), table = config.selection, planned.table
    states = table.counts()
    counts = {"n_trials": len(table.trials)} | {f"n_{state.value}": states.get(state.value, 0) for state in State}
    if planned.is_left:
        left = planned.expected - len(table.trials) + len(table.of(State.WAITING))
        print(f"{left} trials are left: the same command with more --hours or --budget-steps goes on", flush=True)
        return counts
    best_of = {trial.name: trial.best(mode) for trial in table.of(State.DONE)}
    values: Values = {name: value for name, value in best_of.items() if value is not None}
    points = ranking(table.trials, values, mode)
    if not points:
        lost = table.trials[0]
        error = UsageError if len(table.of(State.REFUSED)) == len(table.trials) else RuntimeError
        raise error(f"no trial came to its end; the first is {lost.state}: {lost.reason}")
    best = points[0]
    tests = _tested(config, steps, [t for p in (points if config.tested == "all" else [best]) for t in p.trials])
    judged = {f"test_{name}": each for name, each in _by_metric(tests).items()} if config.tested == "all" else {}
    found: dict[str, list[Effect]] = {}
    if config.search == "grid":  # of others, points have no partners
        found = {name: effects(table.trials, each) for name, each in (judged or {metric: values}).items()}
    rows = [asdict(trial) | {"name": trial.name, "test": tests.get(trial.name, {})} for trial in table.trials]
    text = json.dumps(rows, indent=2)
    storage.write_text(storage.join(config.output, "trials.json"), text)
    run.text(text, "trials.json")
    _show(points, tests, found, metric)
    if len(best.trials) < config.seeds:
        print(f"no point finished all of its {config.seeds} seeds: the best has {len(best.trials)}")
    chosen = sorted(best.trials, key=lambda trial: values[trial.name], reverse=mode == "max")[0]
    name = config.register_as or f"facelab-{config.network}"
    model = run.register_model(storage.join(steps.output(chosen), "model"), name, _run_id(steps, chosen), config.alias)
    _link(config, [each.option for each in planned.space], run)
    summary: dict[str, Any] = {"best_variant": best.variant, "best_trial": chosen.name, "best_seeds": len(best.trials)}
    summary |= _flat(f"best_{metric}", best.value)
    for name, each in _by_metric({trial.name: tests[trial.name] for trial in best.trials if tests}).items():
        summary |= _flat(f"best_test_{name}", over_seeds(list(each.values())))
    for name, switches in found.items():
        for each in switches:
            summary |= _flat(f"effect_{each.option}_{name}", each.difference)
    return counts | summary | ({"registered_model": model} if model else {})


def _link(config: SweepConfig, options: list[str], run: JobRun) -> None:
    """Say where the trials stand side by side."""
    metric, mode = config.selection
    trials = f"tags.sweep = '{run.id}' and tags.job = '{config.job}'"
    name = f"sweep {PurePosixPath(config.output).name} {run.id[:8]}"
    run.shown_as(View(name, trials, [f"best/{metric}"], [*options, "seed"], ascending=mode == "min"))
    print(f'python -m jobs.compare --filter "{trials}"', flush=True)


def _tested(config: SweepConfig, steps: TrialSteps, trials: list[Trial]) -> dict[str, dict[str, float]]:
    """Name of a trial -> numbers on test faces, of which no trial has seen any, and by which none was chosen."""
    found = {}
    for trial in trials if config.test else ():
        summary = [run_step(step, steps.run_id).summary for step in steps.tests(trial)][-1]
        numbers = {name: Number.of(name, summary).value for name in metric_names(summary)}
        found[trial.name] = {name: value for name, value in numbers.items() if abs(value) < float("inf")}
    return found


def _by_metric(tests: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Metric -> trial -> value, where tests have trial -> metric -> value."""
    names = dict.fromkeys(name for numbers in tests.values() for name in numbers)
    return {name: {trial: each[name] for trial, each in tests.items() if name in each} for name in names}


def _flat(name: str, value: Interval) -> dict[str, float]:
    """Its keys in a summary."""
    return Number(value.mean, low=value.low, high=value.high).flat(name)


def _run_id(steps: TrialSteps, trial: Trial) -> str:
    """Of its training's MLflow run."""
    return json.loads(storage.read_bytes(storage.join(steps.output(trial), "summary.json")))["mlflow_run_id"]


def _endings(steps: TrialSteps, table: TrialTable) -> dict[str, Ending]:
    """For MLflow, of trials that could not say it themselves."""
    failed = (State.FAILED, State.REFUSED, State.DIVERGED)
    return {
        trial.name: Ending(
            steps.output(trial),
            "FINISHED" if trial.state is State.DONE else "FAILED" if trial.state in failed else "KILLED",
            {"state": trial.state.value, "reason": trial.reason},
        )
        for trial in table.trials
    }


_COLUMNS = ("psnr", "ssim", "fd", "degradation_distance")
"""Families of test metrics that fit beside each other."""


def _show(
    points: list[Ranked], tests: dict[str, dict[str, float]], found: dict[str, list[Effect]], metric: str
) -> None:
    """The points, the best first, and what the switches do."""
    by_metric = {name: each for name, each in _by_metric(tests).items() if _is_column(name)}
    table = Table("point", "seeds", metric, *(f"test {name}" for name in by_metric), box=None, header_style="bold")
    for point in points:
        own = [[each[t.name] for t in point.trials if t.name in each] for each in by_metric.values()]
        cells = [over_seeds(values).shown(_DIGITS) if values else "" for values in own]
        table.add_row(point.variant, str(len(point.trials)), point.value.shown(_DIGITS), *cells)
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for name, switches in found.items():
        for each in switches if _is_column(name.removeprefix("test_")) else ():
            console.print(f"{each.option} {each.before} → {each.after}: {name} {each.difference.shown(f'+{_DIGITS}')}")


def _is_column(name: str) -> bool:
    return name.startswith(_COLUMNS) and not name.endswith("_bicubic")


def sweep_plan(config: SweepConfig) -> str:
    steps = TrialSteps(config, "", "", gpu=False)
    planned = Planned(steps, TrialTable(storage.join(config.output, "table")))
    points = [f"{trial.name}: {trial.state}" for trial in planned.table.trials]
    told = "; it has\n#   " + "\n#   ".join(points[:40]) if points else ""
    space = ", ".join(config.space)
    return f"{config.search} search of {space} with {config.seeds} seeds, preset {config.trial_preset}{told}"


SWEEP = Job("sweep", SweepConfig, sweep, sweep_plan)
