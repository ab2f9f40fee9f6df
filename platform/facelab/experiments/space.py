"""A search space over any options of a training: what a user writes, checked against the training's own config."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import numpy as np

from facelab.config import JobConfig, nearest, option_types
from facelab.errors import UsageError

Point = Mapping[str, Any]
"""Dotted option -> value."""

_RANGE = re.compile(r"(?P<low>[^.:]+(?:\.\d[^.:]*)?)\.\.(?P<high>[^:]+?)(?P<log>:log)?")
_FACTOR = re.compile(r"~(?P<factor>[\d.e+]+)")
_DEFAULT = "default"


@dataclass(frozen=True)
class Choice:
    """An option that takes one of some values."""

    option: str
    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """Values that there are."""
        return len(self.values)

    def draw(self, rng: np.random.Generator) -> Any:
        return self.values[int(rng.integers(len(self.values)))]

    def grid(self, points: int) -> tuple[Any, ...]:
        """Every value, however many points are wanted."""
        return self.values


@dataclass(frozen=True)
class Range:
    """A number between two, drawn uniformly, or uniformly in its logarithm."""

    option: str
    low: float
    high: float
    log: bool
    whole: bool
    """Of an option that takes integers."""

    @property
    def size(self) -> float:
        """Values that there are."""
        return self.high - self.low + 1 if self.whole else math.inf

    def draw(self, rng: np.random.Generator) -> float | int:
        if self.whole and not self.log:
            return int(rng.integers(round(self.low), round(self.high) + 1))
        return self._at(rng.uniform())

    def grid(self, points: int) -> tuple[float | int, ...]:
        """So many values at equal distances, of both ends; of integers, fewer where they coincide."""
        return tuple(dict.fromkeys(self._at(i / max(points - 1, 1)) for i in range(points)))

    def _at(self, share: float) -> float | int:
        """At a share of the way from low to high."""
        if self.log:
            value = math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        else:
            value = self.low + share * (self.high - self.low)
        return round(value) if self.whole else float(f"{value:.6g}")  # as it is shown, so can it be typed again


Dimension = Choice | Range


def parse_space(texts: Sequence[str], config_type: type[JobConfig], preset: Mapping[str, Any]) -> list[Dimension]:
    """`weights.beta=0.01..1:log`, `learning_rate=~10`, `stylevae.use_adain=true,false` -> dimensions.

    Args:
        texts: OPTION=LOW..HIGH, with :log for a logarithmic scale; OPTION=~F for the preset's value divided and
            multiplied by up to F; or OPTION=VALUE,VALUE,…, where `default` is the preset's value.
        preset: dotted option -> the value that the trials have if nothing else is said.

    Raises:
        UsageError: no such option, or values that are not of its type.
    """
    known = option_types(config_type)
    dimensions: list[Dimension] = []
    for text in texts:
        option, equals, values = text.partition("=")
        option = option.strip().removeprefix("--").replace("-", "_")
        if not equals or not values.strip():
            raise UsageError(f"--space {text}: write OPTION=LOW..HIGH, OPTION=~FACTOR or OPTION=VALUE,VALUE,…")
        if option not in known or option in config_type.OPERATIONAL | {"seed"}:
            searchable = known.keys() - config_type.OPERATIONAL - {"seed"}
            raise UsageError(f"--space {text}: no option of a training to search{nearest(option, searchable)}")
        if option in (each.option for each in dimensions):
            raise UsageError(f"--space {text}: {option} is there twice")
        dimensions.append(_dimension(text, option, values.strip(), known[option], preset))
    return dimensions


def _dimension(text: str, option: str, values: str, kind: Any, preset: Mapping[str, Any]) -> Dimension:
    whole = _is(kind, int) and not _is(kind, float)
    if factor := _FACTOR.fullmatch(values):
        centre, by = preset[option], _typed(text, factor["factor"], float)
        if isinstance(centre, bool) or not isinstance(centre, int | float) or centre <= 0 or by <= 1:
            raise UsageError(f"--space {text}: the preset's {option} is {centre}: ~F wants one above 0, and F above 1")
        return Range(option, float(f"{centre / by:.6g}"), float(f"{centre * by:.6g}"), log=True, whole=whole)
    if found := _RANGE.fullmatch(values):
        low, high = (_typed(text, end, kind) for end in (found["low"], found["high"]))
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
        if not numbers or not low < high:
            raise UsageError(f"--space {text}: a range goes from a number to a larger one")
        if found["log"] and low <= 0:
            raise UsageError(f"--space {text}: a logarithmic range begins above 0")
        return Range(option, float(low), float(high), bool(found["log"]), whole)
    each = [preset[option] if value == _DEFAULT else _typed(text, value, kind) for value in values.split(",")]
    if len(set(map(repr, each))) < len(each):
        raise UsageError(f"--space {text}: a value is there twice")
    return Choice(option, tuple(each))


def _is(kind: Any, wanted: type) -> bool:
    """Whether an annotation such as float | None takes values of a type."""
    return kind is wanted or any(_is(each, wanted) for each in get_args(kind))


def _typed(text: str, value: str, kind: Any) -> Any:
    """A value as its option has it; ranges beyond the type are the config's to refuse, when a trial is built."""
    value = value.strip()
    if value == "none" and _is(kind, type(None)):
        return None
    if value in ("true", "false") and _is(kind, bool):
        return value == "true"
    for number in (int, float):
        if _is(kind, number):
            try:
                return number(value)
            except ValueError:
                continue
    if _is(kind, str) or get_origin(kind) is Literal or any(get_origin(each) is Literal for each in get_args(kind)):
        return value
    raise UsageError(f"--space {text}: {value!r} is no value of this option")


def grid(space: Sequence[Dimension], points: int) -> list[Point]:
    """Every combination, of each range `points` values; the last dimension changes fastest."""
    values = [each.grid(points) for each in space]
    return [{d.option: value for d, value in zip(space, row, strict=True)} for row in itertools.product(*values)]


def random_points(space: Sequence[Dimension], seed: int, points: int) -> Iterator[Point]:
    """Each a function of the seed and its number: more points leave the first ones as they are."""
    for number in range(points):
        rng = np.random.default_rng((seed, number))
        yield {each.option: each.draw(rng) for each in space}


def shown(point: Point) -> str:
    """For people: use_adain=true beta=0.1."""
    return " ".join(f"{option.rpartition('.')[2]}={_text(value)}" for option, value in point.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)
