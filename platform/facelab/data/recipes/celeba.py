"""CelebA (Liu et al. 2015): 202,599 photographs of 10,177 celebrities.

Where from: its authors' page at the Chinese University of Hong Kong, for research that is not commercial. Nothing is
downloaded here. Layout; the text files may also lie in Anno/ and Eval/, the images in Img/, as on that page:

    img_align_celeba/000001.jpg …     178 x 218 px, eyes upright at one place; or, or beside it
    img_celeba/000001.jpg …           in the wild: the photographs as they were found
    list_eval_partition.txt           000001.jpg 0
    identity_CelebA.txt               000001.jpg 2880
    list_bbox_celeba.txt              a count, a header, 000001.jpg x y w h      (wild)
    list_landmarks_celeba.txt         a count, a header, 000001.jpg and ten numbers      (wild)

    python -m jobs.prepare --recipe celeba --input celeba --output shards/celeba

Counts by the publication, not measured here: 162,770 train, 19,867 val, 19,962 test. The default takes 60,000 of all,
as many as the paper; by these shares, some 48,200, 5,900 and 5,900 of them.

Crop. Aligned: 148 px a side, columns 15 to 163 and rows 40 to 188, the square that generators of faces have been
trained on since Larsen et al. 2016: it holds hair's edge and chin, 3.8 times the distance of the eyes. Wild: the square
on the longer side of the published box, which holds the whole head (again about 3.8 eyes' distances); where a box has
no area, the square of 3.5 times the longer side of what holds the five landmarks.

Split: the official partition, which by the publication has no person in two parts; where identity_CelebA.txt is there,
too, a person's first image decides for all of theirs, so that this needs no belief. Without the partition: by identity,
a tenth to val; without either, by image.
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import NonNegativeInt

from facelab import storage
from facelab.data.items import Item
from facelab.data.recipes.reading import Box, first_of, required, square, table
from facelab.data.shards import split_of
from facelab.errors import UsageError
from facelab.images import IMAGE_SUFFIXES
from facelab.seeding import seed_for

_ALIGNED = (15, 40, 163, 188)
_FIVE_POINTS = 2.5
"""Margin about the five landmarks: 3.5 times what holds them is a head, as the aligned square is 3.6 times."""
_PARTS = {0: "train", 1: "val", 2: "test"}
_FOLDERS = {"aligned": "img_align_celeba", "wild": "img_celeba"}


@dataclass(frozen=True)
class CelebA:
    """Some of the celebrities, chosen by hash of the image's name."""

    layout: Literal["auto", "aligned", "wild"] = "auto"
    """Which images to take; auto: the aligned ones where both are there."""
    count: NonNegativeInt = 60_000
    """How many; 0 takes all."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: the images, or the boxes of those in the wild, are not there, or a malformed line.
        """
        layout, folder = self._images(uri)
        splits = _splits(uri)
        names: Iterable[str] = splits or [name for name, _ in storage.list_files(folder, IMAGE_SUFFIXES)]
        if self.count:
            names = heapq.nsmallest(self.count, names, key=lambda name: seed_for("celeba", name))
        names = sorted(names)
        if not names:
            raise UsageError(f"{folder}: no images here: unpack the archive of that name")
        boxes = dict.fromkeys(names, _ALIGNED) if layout == "aligned" else _boxes(uri, set(names))
        for name in names:
            yield Item(name, storage.join(folder, name), split=splits.get(name, ""), box=boxes.get(name))

    def _images(self, uri: str) -> tuple[str, str]:
        """The layout and the folder of its images."""
        for layout, folder in _FOLDERS.items():
            place = first_of(uri, folder, f"Img/{folder}") if self.layout in ("auto", layout) else None
            if place:
                return layout, place
        wanted = " or ".join(_FOLDERS.values()) if self.layout == "auto" else _FOLDERS[self.layout]
        raise UsageError(f"{uri}: no {wanted} here, nor in Img/: unpack CelebA's archive of that name")


def _places(name: str) -> tuple[str, ...]:
    return name, f"Anno/{name}", f"Eval/{name}"


def _splits(uri: str) -> dict[str, str]:
    """Name -> split, of all images that the text files know; empty without them."""
    partition = first_of(uri, *_places("list_eval_partition.txt"))
    identities = first_of(uri, *_places("identity_CelebA.txt"))
    people: dict[str, float] = {}
    if identities:
        people = {name: values[0] for name, values in table(identities, 1, "000001.jpg and the number of a person")}
    if partition is None:
        return {name: split_of(f"celeba/{person:.0f}") for name, person in people.items()}
    splits: dict[str, str] = {}
    decided: dict[float | str, str] = {}
    for name, (part,) in table(partition, 1, "000001.jpg and 0, 1 or 2"):
        if part not in _PARTS:
            raise UsageError(f"{partition}: {name} has part {part:g}: expected 0, 1 or 2")
        splits[name] = decided.setdefault(people.get(name, name), _PARTS[int(part)])
    return splits


def _boxes(uri: str, names: set[str]) -> dict[str, Box]:
    """The squares of images in the wild; none for those without box and landmarks."""
    advice = "images in the wild need CelebA's text files: put them there, or give --celeba.layout aligned"
    rectangles = required(uri, *_places("list_bbox_celeba.txt"), advice=advice)
    header = "000001.jpg x_1 y_1 width height, below a count and a header"
    found = {name: square(*box, margin=0) for name, box in table(rectangles, 4, header, header=2) if name in names}
    boxes = {name: box for name, box in found.items() if box}
    if missing := names - set(boxes):
        landmarks = required(uri, *_places("list_landmarks_celeba.txt"), advice=advice)
        header = "000001.jpg and ten numbers, below a count and a header"
        for name, points in table(landmarks, 10, header, header=2):
            if name in missing:
                (left, right), (top, bottom) = ((min(side), max(side)) for side in (points[::2], points[1::2]))
                if box := square(left, top, right - left, bottom - top, _FIVE_POINTS):
                    boxes[name] = box
    return boxes
