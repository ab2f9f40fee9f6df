"""VGGFace2 (Cao et al. 2018): 3.31 million photographs of 9,131 people, in all poses.

Where from: its authors' page at Oxford, which has been closed for years; those who have it, have it under its licence.
Nothing is downloaded here. Layout (bb_landmark/ may also lie in meta/):

    train/n000002/0001_01.jpg …       8,631 identities
    test/n000001/0001_01.jpg …        500 others
    bb_landmark/loose_bb_train.csv, loose_landmark_train.csv, …_test.csv

    python -m jobs.prepare --recipe vggface2 --input vggface2 --output shards/vggface2

Counts by the publication, not measured here: 3,141,890 images in train, 169,396 in test. Ten of each identity are some
86,000 and 5,000: the paper's 90k of 9k identities.

Taken: of each identity the `per_identity` images of largest |yaw|, as the landmarks show it (`sideways`). Crop: a
square about the box of loose_bb, a quarter longer than its longer side (the authors take 30 %); without that file, the
centre. Split: train by identity, a tenth to val; test is "test".
"""

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import NonNegativeInt

from facelab import storage
from facelab.data.items import Item
from facelab.data.recipes.reading import Box, first_of, required, square, table
from facelab.data.shards import split_of
from facelab.errors import UsageError
from facelab.images import IMAGE_SUFFIXES

_BOX = 'NAME_ID,X,Y,W,H such as "n000002/0001_01",161,140,224,324'
_LANDMARKS = 'NAME_ID,P1X,P1Y,…,P5Y such as "n000002/0001_01" and ten numbers'


@dataclass(frozen=True)
class VggFace2:
    """Of each identity, the faces that are turned farthest."""

    per_identity: NonNegativeInt = 10
    """Images of each identity, those of largest yaw; 0 takes all."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: neither part is there, no landmarks to choose by, or a malformed line.
        """
        parts = [part for part in ("train", "test") if storage.exists(storage.join(uri, part))]
        if not parts:
            raise UsageError(f"{uri}: neither train nor test here: give VGGFace2's folder, with train/n000002 in it")
        for part in parts:
            for name, box in self._faces(uri, part):
                identity = name.split("/")[0]
                split = "test" if part == "test" else split_of(f"vggface2/{identity}")
                yield Item(f"{part}/{name}", storage.join(uri, part, name), split=split, box=box)

    def _faces(self, uri: str, part: str) -> Iterator[tuple[str, Box | None]]:
        """(name below the part, box) of what is taken."""
        boxes = first_of(uri, *_places(f"loose_bb_{part}.csv"))
        if self.per_identity:
            advice = "it tells the pose; unpack bb_landmark here, or take all: --vggface2.per-identity 0"
            chosen = self._turned(required(uri, *_places(f"loose_landmark_{part}.csv"), advice=advice))
            found = {name: box for name, box in _boxes(boxes) if name in chosen} if boxes else {}
            yield from ((name, found.get(name)) for name in sorted(chosen))
        elif boxes:
            yield from _boxes(boxes)
        else:
            yield from ((name, None) for name, _ in storage.list_files(storage.join(uri, part), IMAGE_SUFFIXES))

    def _turned(self, uri: str) -> set[str]:
        best: dict[str, list[tuple[float, str]]] = {}
        for name, points in table(uri, 10, _LANDMARKS, header=1, comma=True):
            face = (sideways(points), _file(uri, name))
            heap = best.setdefault(name.split("/")[0], [])
            (heapq.heappush if len(heap) < self.per_identity else heapq.heappushpop)(heap, face)
        return {name for heap in best.values() for _, name in heap}


def _places(name: str) -> tuple[str, ...]:
    return f"bb_landmark/{name}", f"meta/bb_landmark/{name}", name


def _file(uri: str, name: str) -> str:
    if not re.fullmatch(r"n\d+/[\w-]+", name):
        raise UsageError(f"{uri}: {name}: expected a name such as n000002/0001_01")
    return f"{name}.jpg"


def _boxes(uri: str) -> Iterator[tuple[str, Box | None]]:
    for name, box in table(uri, 4, _BOX, header=1, comma=True):
        yield _file(uri, name), square(*box)


def sideways(points: list[float]) -> float:
    """How far a head is turned, from x, y of left eye l, right eye r and nose n (then the mouth's corners):
    |(n − (l + r) / 2) · (r − l)| / |r − l|², the nose's distance from the middle of the eyes, along the line through
    them, over their distance. 0 for a face from the front, however it is tilted; it grows with the yaw, without end."""
    lx, ly, rx, ry, nx, ny = points[:6]
    x, y = rx - lx, ry - ly
    along = abs((nx - (lx + rx) / 2) * x + (ny - (ly + ry) / 2) * y)
    return along / (x * x + y * y) if x or y else float("inf")
