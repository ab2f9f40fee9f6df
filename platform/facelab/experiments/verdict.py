"""What a sweep's trials say: which point is best, and what each switch does, with intervals over the seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from facelab.experiments.trials import State, Trial
from facelab.metrics.intervals import Interval, over_seeds

Values = Mapping[str, float]
"""Name of a trial -> its number."""


@dataclass(frozen=True)
class Ranked:
    """A point, by the seeds that came to their end."""

    variant: str
    trials: tuple[Trial, ...]
    value: Interval
    """Mean over its seeds."""


def ranking(trials: Sequence[Trial], values: Values, mode: str) -> list[Ranked]:
    """Points with a finished trial, the best first.

    One lucky seed proves nothing: points with more finished seeds come before those with fewer. A trial that was
    stopped early had fewer steps, and its value is no match for the others'.
    """
    done = [trial for trial in trials if trial.state is State.DONE and trial.name in values]
    points = []
    for _, group in groupby(sorted(done, key=lambda trial: trial.key), key=lambda trial: trial.key):
        seeds = tuple(group)
        points.append(Ranked(seeds[0].variant, seeds, over_seeds([values[trial.name] for trial in seeds])))
    sign = 1 if mode == "min" else -1
    return sorted(points, key=lambda point: (-len(point.trials), sign * point.value.mean))


@dataclass(frozen=True)
class Effect:
    """What it does to a number to have an option at its second value and not at its first, all else equal."""

    option: str
    before: object
    after: object
    difference: Interval
    """Mean over seeds of the mean over the other options."""


def effects(trials: Sequence[Trial], values: Values) -> list[Effect]:
    """Of each option that has two values, over the finished trials that have a partner which differs in it alone.

    A seed counts once: its trials met the same faces in the same order, and are no independent witnesses.
    """
    done = {(t.key, t.seed): values[t.name] for t in trials if t.state is State.DONE and t.name in values}
    found = []
    for option in {option: None for trial in trials for option in trial.point}:
        sides = [value for _, value in sorted({repr(t.point[option]): t.point[option] for t in trials}.items())]
        if len(sides) != 2:
            continue
        by_seed: dict[int, list[float]] = {}
        for trial in trials:
            twins = [replace(trial, point={**trial.point, option: side}) for side in sides]
            pair = [done.get((twin.key, twin.seed)) for twin in twins]
            if trial.point[option] == sides[1] and pair[0] is not None and pair[1] is not None:
                by_seed.setdefault(trial.seed, []).append(pair[1] - pair[0])
        if by_seed:
            difference = over_seeds([float(np.mean(each)) for each in by_seed.values()])
            found.append(Effect(option, sides[0], sides[1], difference))
    return found
