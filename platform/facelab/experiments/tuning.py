"""Trials of a table on Ray Tune: each alone in its process, so many at a time, some stopped early."""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.search import Searcher

from facelab import storage
from facelab.errors import one_line
from facelab.experiments.steps import finished
from facelab.experiments.trials import State, Trial, TrialTable

_SETTINGS = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # which would take Ctrl-C for the end of the sweep, and return
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files of each trial that nobody reads: MLflow has its numbers
    "RAY_AIR_NEW_OUTPUT": "0",  # boxes and tables of Tune's own, beside those of board.py
}


@dataclass(frozen=True)
class Rules:
    """Under which the trials of a table run."""

    metric: str
    mode: str
    """"min" or "max"."""
    early: Literal["asha", "median", "none"]
    grace_steps: int
    reduction: int
    longest: int
    """Steps of a trial that is not stopped, at most."""
    reserved: Mapping[str, float]
    """What Tune holds for a trial: resource -> amount."""
    concurrency: int | None
    """Trials at the same time; None: as many as find room for what is reserved."""
    max_failures: int
    """Restarts of a trial whose process is lost, or that met what may pass."""
    until: float | None = None
    """time.monotonic at which all trials are interrupted."""
    budget_steps: int | None = None
    """Steps of all trials together, after which they are."""
    reuses_processes: bool = False
    """A trial takes over the process of one that ended, where torch is loaded. Not with Ray Train workers: Ray frees
    those of a trial that was stopped only once the process that asked for them is gone."""

    def is_over(self, table: TrialTable) -> bool:
        """Whether the limits are reached."""
        late = self.until is not None and time.monotonic() >= self.until
        return late or (self.budget_steps is not None and table.steps() >= self.budget_steps)


def run_trials(
    table: TrialTable,
    rules: Rules,
    train: Callable[[dict[str, Any]], dict[str, Any] | None],
    output_of: Callable[[Trial], str],
    more: Callable[[], Trial | None],
    changed: Callable[[], None],
    folder: str,
) -> None:
    """Run what waits in the table, and what `more` then adds, to its end or to that of the limits; the table has what
    became of each.

    Args:
        train: in the trial's own process, with its name, number, point and seed: trains, and reports "step",
            "last_step" and the metric at each validation. What a restart would meet again it hands back:
            {"ended": state, "reason": text}.
        output_of: where the trial's training writes.
        more: the next trial that was not thought of before; None: no more.
        changed: is called after every change in the table.
        folder: for Tune's own files, which are gone afterwards.
    """
    storage.delete(folder)  # of a driver that was killed
    os.environ |= _SETTINGS
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # that those files are not there
    filesystem, path = storage.resolve(folder)
    watch = _Watch(table, rules, output_of, changed)
    tuner = tune.Tuner(
        tune.with_resources(train, dict(rules.reserved)),
        tune_config=tune.TuneConfig(
            search_alg=_Next(table, rules, more),
            scheduler=_Judge(table, rules),
            num_samples=-1,
            max_concurrent_trials=rules.concurrency,
            reuse_actors=rules.reuses_processes,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=tune.FailureConfig(max_failures=rules.max_failures),
            callbacks=[watch],
            stop=_Limits(table, rules),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    finally:
        watch.interrupted()
        storage.delete(folder)


class _OfTheDriver:
    """Tune writes down all that it is given, and never reads it: the table is what a sweep is gone on with."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Next(_OfTheDriver, Searcher):
    """Gives Tune the trials of the table."""

    def __init__(self, table: TrialTable, rules: Rules, more: Callable[[], Trial | None]):
        super().__init__()
        self._table, self._rules, self._more = table, rules, more
        self._given: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        if self._rules.is_over(self._table):
            return Searcher.FINISHED
        waiting = (trial for trial in self._table.of(State.WAITING) if trial.name not in self._given)
        trial = next(waiting, None) or self._more()
        if trial is None:
            return Searcher.FINISHED
        self._given.add(trial.name)
        return {"name": trial.name, "number": trial.number, "point": dict(trial.point), "seed": trial.seed}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The table knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Never."""


class _Judge(_OfTheDriver, FIFOScheduler):
    """Ray's rules for stopping early, which also know what trials did before a crash, as they know a trial by its name
    in the table. A trial at its last step is left to end."""

    def __init__(self, table: TrialTable, rules: Rules):
        super().__init__()
        self._rules, self._rule = rules, _rule(rules)
        self._begun: set[str] = set()
        for trial in table.trials:
            for step, value in trial.curve:
                self._remember(_Known(trial.name), {"step": step, rules.metric: value})

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True  # the rule has its own

    def _remember(self, trial: "_Known", result: dict[str, Any]) -> None:
        """A result from before, of which nothing is to be decided any more."""
        if self._rule is not None:
            self._rule.on_trial_add(None, trial)  # pyrefly: ignore  (of a trial it reads the id alone)
            self._rule.on_trial_complete(None, trial, result)  # pyrefly: ignore

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if self._rule is None or self._rules.metric not in result or result["step"] >= result["last_step"]:
            return TrialScheduler.CONTINUE
        known = _Known(trial.config["name"])
        if known.trial_id not in self._begun:
            self._begun.add(known.trial_id)
            self._rule.on_trial_add(None, known)  # pyrefly: ignore
        return self._rule.on_trial_result(None, known, result)  # pyrefly: ignore


@dataclass(frozen=True)
class _Known:
    """What Ray's rules ask of a trial."""

    trial_id: str


def _rule(rules: Rules) -> TrialScheduler | None:
    searched = {"time_attr": "step", "metric": rules.metric, "mode": rules.mode}
    grace = min(rules.grace_steps, rules.longest)
    if rules.early == "asha":
        return ASHAScheduler(
            **searched, max_t=rules.longest, grace_period=grace, reduction_factor=rules.reduction,
            stop_last_trials=False,
        )  # fmt: skip
    if rules.early == "median":
        # Never pausing a trial, which would have to begin again from its checkpoint.
        return MedianStoppingRule(**searched, grace_period=grace, min_time_slice=float("inf"))  # pyrefly: ignore
    return None


class _Limits(_OfTheDriver, tune.Stopper):
    """Time, and steps of all trials together."""

    def __init__(self, table: TrialTable, rules: Rules):
        self._table, self._rules = table, rules

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return result.get("step", 0) < result.get("last_step", 0) and self.stop_all()

    def stop_all(self) -> bool:
        return self._rules.is_over(self._table)


class _Watch(_OfTheDriver, tune.Callback):
    """Writes down what becomes of the trials."""

    def __init__(self, table: TrialTable, rules: Rules, output_of: Callable[[Trial], str], changed: Callable[[], None]):
        self._table, self._rules, self._output_of, self._changed = table, rules, output_of, changed
        self._since: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self._known(trial)
        known.state, known.reason = State.RUNNING, ""
        self._since[known.name] = time.monotonic()
        self._keep(known)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        known, value = self._known(trial), result.get(self._rules.metric)
        if value is not None:
            known.told(int(result["step"]), float(value))
            known.last_step = int(result["last_step"])
            self._keep(known)

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """At its end, or where it was stopped."""
        known, last = self._known(trial), trial.last_result or {}
        summary = finished(self._output_of(known))
        if summary is not None:
            known.state, known.value = State.DONE, summary.get(f"best_{self._rules.metric}")
        elif "ended" in last:
            known.state, known.reason = State(last["ended"]), one_line(last["reason"])
        elif self._rules.is_over(self._table):
            known.state, known.reason = State.WAITING, "the sweep's limit is reached"
        else:
            known.state, known.reason = State.STOPPED, self._rank(known)
        self._keep(known)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        known = self._known(trial)
        told = Path(trial.error_file).read_text() if trial.error_file else ""
        known.state, known.reason = State.FAILED, one_line(told)[-300:] or "its process was lost"
        self._keep(known)

    def interrupted(self) -> None:
        """What runs no more, as the sweep does not: it waits."""
        for trial in self._table.of(State.RUNNING):
            trial.state, trial.reason = State.WAITING, "interrupted"
            self._keep(trial)

    def _rank(self, trial: Trial) -> str:
        """Why it was stopped."""
        step, value = trial.curve[-1]
        best = min if self._rules.mode == "min" else max
        # Of one that was gone on with, the table may lack what it said last before a crash.
        so_far = [[v for s, v in each.curve if s <= step] for each in self._table.trials if each.steps >= step]
        others = [best(values) for values in so_far if values]
        own = best(v for _, v in trial.curve)
        rank = 1 + sum(best(other, own) == other and other != own for other in others)
        name = {"asha": f"ASHA keeps one in {self._rules.reduction}", "median": "worse than the median"}
        standing = f"rank {rank} of {len(others)} at step {step} ({self._rules.metric} {value:.4g})"
        return f"{standing}: {name[self._rules.early]}"

    def _known(self, trial: Any) -> Trial:
        return self._table.named(trial.config["name"])

    def _keep(self, trial: Trial) -> None:
        now = time.monotonic()
        if (since := self._since.get(trial.name)) is not None:
            trial.seconds += now - since
            self._since[trial.name] = now
        if trial.state is not State.RUNNING:
            self._since.pop(trial.name, None)
        self._table.keep(trial)
        self._changed()
