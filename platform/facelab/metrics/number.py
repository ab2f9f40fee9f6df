"""A number of an evaluation with all that is needed to read it; how a summary, which is flat, holds it."""

from dataclasses import Field, dataclass, fields
from math import inf, nan
from typing import Any, Self, get_args


@dataclass(frozen=True)
class Metric:
    """What a reader of a table must know of a column."""

    title: str
    """With its unit."""
    better: int
    """1: higher is better; -1: lower."""
    digits: str
    """Format of its numbers."""


@dataclass(frozen=True)
class Number:
    """A metric's value; the rest is None where it does not apply.

    The fields after the value are the keys of a summary: `low` of psnr_y is its psnr_y_low.
    """

    value: float
    """inf where it is infinite: PSNR of equal images; nan where it could not be computed."""
    infinite: int | None = None
    """Images that make it so."""
    low: float | None = None
    """95 % interval."""
    high: float | None = None
    infinity: float | None = None
    """Extrapolated to infinitely many images."""
    warning: str | None = None
    """Why it must not be taken for more than it is."""
    layer: str | None = None
    """Whose features are compared."""
    dims: int | None = None
    """Channels of that layer."""
    subset_size: int | None = None
    """Images in each of the random subsets that it is the mean of."""
    std: float | None = None
    """Standard deviation over the subsets."""
    floor: float | None = None
    """What a perfect model would have."""
    floor_n: int | None = None
    """Images that the floor was computed from."""
    at_floor: float | None = None
    """The number from as many images as the floor, where `value` is from more."""
    at_floor_n: int | None = None
    undefined: int | None = None
    """Images for which it is not defined, and which are left out."""

    def flat(self, name: str) -> dict[str, Any]:
        """Its keys and values in a summary, under the name of its metric."""
        more = {field: value for field in _MORE if (value := getattr(self, field)) is not None}
        return {name: self.value} | {f"{name}_{field}": value for field, value in more.items()}

    @classmethod
    def of(cls, name: str, summary: dict[str, Any]) -> Self:
        """What `flat` wrote, also if that has been through JSON, which has null for infinity and nan.

        Raises:
            KeyError: the summary has no such number.
        """
        value = summary[name]
        more = {field.name: _typed(field, summary.get(f"{name}_{field.name}")) for field in fields(cls)[1:]}
        if value is None:
            value = inf if more["infinite"] else nan
        return cls(float(value), **more)


def _typed(field: Field, value: Any) -> Any:
    """Of a summary that anybody may have written.

    Raises:
        TypeError: not of the field's type.
    """
    kind = get_args(field.type)[0]
    if value is None or isinstance(value, str if kind is str else (int, float)):
        return value
    raise TypeError(f"{field.name} is a {kind.__name__}, not {value!r:.40}")


_MORE = tuple(field.name for field in fields(Number))[1:]
