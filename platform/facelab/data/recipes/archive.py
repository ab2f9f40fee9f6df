"""Anybody's faces in zip or tar files: every image of one archive, or of all below a folder, whole.

    python -m jobs.prepare --recipe zip --input faces.zip --output shards/faces

An image is called as it is in its archive, after the archive's name where a folder was given: `faces.zip/a/0001.jpg`.
docs/datasets.md says what is refused.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from facelab.data.archives import TAR_SUFFIXES, Member, find_archives, index_tar, index_zip
from facelab.data.items import Item
from facelab.data.recipes.reading import some

_ADVICE = "the archives hold no .jpg, .jpeg, .png, .webp or .bmp; archives within them are not opened"


def items_of(uri: str, suffixes: tuple[str, ...], index: Callable[[str], Iterable[Member]]) -> Iterator[Item]:
    """The items of one archive, or of all below a folder, by what `index` says of each.

    Raises:
        UsageError: no archive, or no image in any.
    """
    found = (
        Item(prefix + member.name, place, member.size, member.place, member.split)
        for prefix, place in find_archives(uri, suffixes)
        for member in index(place)
    )
    return some(found, uri, _ADVICE)


@dataclass(frozen=True)
class Zip:
    """Every image in a zip file, or in all below a folder."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: no archive, one that cannot be read, or no image in any.
        """
        return items_of(uri, (".zip",), index_zip)


@dataclass(frozen=True)
class Tar:
    """Every image in a tar file that is not compressed, or in all below a folder."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: no archive, one that is compressed or cannot be read, or no image in any.
        """
        return items_of(uri, TAR_SUFFIXES, index_tar)
