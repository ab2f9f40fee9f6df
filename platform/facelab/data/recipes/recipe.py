"""What every recipe is: a dataset's layout on disk -> its images."""

from collections.abc import Iterator
from typing import Any, ClassVar, Protocol

from facelab.data.items import Item


class Recipe(Protocol):
    """A frozen dataclass without required fields: each field, with the docstring below it, is an option of jobs.prepare
    (`--wider-face.min-side`)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def find(self, uri: str) -> Iterator[Item]:
        """The images below a URI, in an order that depends on the input alone, little by little.

        Raises:
            UsageError: the input has not the layout, or no image; the message says what is missing, and where.
        """
        ...
