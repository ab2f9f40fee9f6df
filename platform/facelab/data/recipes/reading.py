"""What recipes share: annotation files line by line, the files they name, and square boxes around faces."""

import io
import math
from collections.abc import Iterator, Sequence

from facelab import storage
from facelab.data.archives import is_unsafe
from facelab.data.items import Item
from facelab.errors import UsageError

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, px; it may reach beyond the image."""

MARGIN = 0.25
"""A face's square is longer than the box around forehead, chin and cheeks by this share of it, so that the hair's edge
is in it. On LFW's and CelebA's aligned images it gives about the squares that are customary there: 3.8 times the
distance of the eyes."""


def square(left: float, top: float, width: float, height: float, margin: float = MARGIN) -> Box | None:
    """The square in which a face is taken that has this box, about its middle; None where the box has no area."""
    if width <= 0 or height <= 0:
        return None
    side = max(round((1 + margin) * max(width, height)), 1)
    x, y = round(left + (width - side) / 2), round(top + (height - side) / 2)
    return x, y, x + side, y + side


def lines(uri: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text without the blanks around it) of every line of a text file, as it is read.

    Raises:
        UsageError: not found.
    """
    with storage.open_input(uri) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="backslashreplace")
        for number, line in enumerate(text, 1):
            yield number, line.strip()


def malformed(uri: str, number: int, expected: str) -> UsageError:
    """A line that is not what the published file has there."""
    return UsageError(f"{uri}, line {number}: expected {expected}: is this the published file, and whole?")


def numbers(uri: str, number: int, fields: Sequence[str], count: int, expected: str) -> list[float]:
    """`count` finite numbers.

    Args:
        number: of the line that has them.
        expected: what the line should be, for the message.

    Raises:
        UsageError: it is not that.
    """
    try:
        values = [float(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise malformed(uri, number, expected)
    return values


def table(
    uri: str, count: int, expected: str, *, header: int = 0, comma: bool = False
) -> Iterator[tuple[str, list[float]]]:
    """(name, `count` numbers) of every line after `header` lines, divided by blanks or commas.

    Raises:
        UsageError: another line, or a name that leads out of the dataset's folder.
    """
    for number, text in lines(uri):
        if number <= header or not text:
            continue
        name, *fields = text.split("," if comma else None)
        name = name.strip("\"' ")
        if is_unsafe(name):
            raise malformed(uri, number, expected)
        yield name, numbers(uri, number, fields, count, expected)


def first_of(uri: str, *names: str) -> str | None:
    """The first of these files or folders below `uri` that is there."""
    return next((place for name in names if storage.exists(place := storage.join(uri, name))), None)


def required(uri: str, *names: str, advice: str) -> str:
    """The same.

    Raises:
        UsageError: none is there; it says what to do about it.
    """
    place = first_of(uri, *names)
    if place is None:
        raise UsageError(f"{uri}: no {' or '.join(names)} here: {advice}")
    return place


def some(items: Iterator[Item], uri: str, advice: str) -> Iterator[Item]:
    """All items.

    Raises:
        UsageError: there was none.
    """
    item = None
    for item in items:
        yield item
    if item is None:
        raise UsageError(f"{uri}: no images: {advice}")
