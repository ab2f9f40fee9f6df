"""A sweep as a table of trials with states, a small file each: what any crash leaves is the table, and it is gone on
with."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from facelab import storage
from facelab.experiments.space import Point, shown


class State(StrEnum):
    """Of a trial."""

    WAITING = "waiting"
    """To be begun, or gone on with."""
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """Early, as others do better."""
    DIVERGED = "diverged"
    REFUSED = "refused"
    """Its options, or its data, cannot be used."""
    FAILED = "failed"
    """For a reason that may be gone the next time."""


_LONGEST_NAME = 48

ENDED = (State.DONE, State.STOPPED, State.DIVERGED, State.REFUSED)
"""Whose trials are not run again."""


@dataclass
class Trial:
    """A training of one point with one seed."""

    number: int
    """In the order in which they were thought of."""
    point: Point
    seed: int
    state: State = State.WAITING
    reason: str = ""
    """Why it was stopped, or what it failed of."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, value of the metric) of each validation."""
    seconds: float = 0.0
    """That it ran."""
    value: float | None = None
    """Of the weights that a finished training kept."""
    last_step: int | None = None
    """At which it ends if it is not stopped; None before its first validation."""

    @property
    def key(self) -> tuple[tuple[str, str], ...]:
        """The point, for telling it from others."""
        return tuple((option, repr(self.point[option])) for option in sorted(self.point))

    @property
    def variant(self) -> str:
        """The point, for people."""
        return shown(self.point) or "preset"

    @property
    def name(self) -> str:
        """Of its folder and its run: with the point, where that is short."""
        point = re.sub("[^A-Za-z0-9_.-]+", "-", self.variant)
        return f"{self.number:03d}-{f'{point}-' if len(point) <= _LONGEST_NAME else ''}seed{self.seed}"

    @property
    def steps(self) -> int:
        """That have been validated."""
        return self.curve[-1][0] if self.curve else 0

    def best(self, mode: str) -> float | None:
        """The value of a finished trial, of another the best so far."""
        if self.value is not None or not self.curve:
            return self.value
        return (min if mode == "min" else max)(value for _, value in self.curve)

    def told(self, step: int, value: float) -> None:
        """A validation; what a training repeats after a crash takes the place of what it said before."""
        self.curve = [(at, was) for at, was in self.curve if at < step] + [(step, value)]

    def same_work(self, other: "Trial") -> bool:
        return (self.seed, self.key) == (other.seed, other.key)


class TrialTable:
    """The trials of a sweep, in the order of their numbers. Only the sweep's driver writes."""

    def __init__(self, folder: str):
        """
        Args:
            folder: where their files lie, those of an earlier run of the sweep among them. A trial that ran when that
                ended, or failed, waits again.
        """
        self._folder = folder
        files = storage.list_files(folder, (".json",))
        self.trials = [_read(json.loads(storage.read_bytes(uri))) for _, uri in files]
        for trial in self.trials:
            if trial.state not in ENDED:
                trial.state, trial.reason = State.WAITING, ""

    def add(self, point: Point, seed: int) -> Trial:
        """The trial of a point and a seed, which may be there already."""
        new = Trial(len(self.trials), point, seed)
        for trial in self.trials:
            if trial.same_work(new):
                return trial
        self.trials.append(new)
        self.keep(new)
        return new

    def keep(self, trial: Trial) -> None:
        """Write down what has become of it."""
        text = json.dumps(asdict(trial) | {"name": trial.name}, indent=1)
        storage.write_text(storage.join(self._folder, f"{trial.number:04d}.json"), text)

    def named(self, name: str) -> Trial:
        return next(trial for trial in self.trials if trial.name == name)

    def of(self, *states: State) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    def steps(self) -> int:
        """Of all trials together."""
        return sum(trial.steps for trial in self.trials)

    def counts(self) -> dict[str, int]:
        """State -> trials, of the states that there are."""
        return {state.value: len(found) for state in State if (found := self.of(state))}


def _read(values: Mapping[str, Any]) -> Trial:
    known = {name: value for name, value in values.items() if name != "name"}
    curve = [(int(step), float(value)) for step, value in known["curve"]]
    return Trial(**known | {"state": State(known["state"]), "curve": curve})
