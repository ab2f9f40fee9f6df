"""Anybody's faces: every image file below a folder."""

from collections.abc import Iterator
from dataclasses import dataclass

from facelab.data.items import Item
from facelab.data.source import scan_images


@dataclass(frozen=True)
class Folder:
    """Every image file below the input."""

    def find(self, uri: str) -> Iterator[Item]:
        """In the order in which they are listed.

        Raises:
            UsageError: none there.
        """
        return scan_images(uri)
