"""LFW, Labeled Faces in the Wild (Huang et al. 2007): 13,233 photographs of 5,749 people, 250 x 250 px.

Where from: the University of Massachusetts, which no longer serves it; there are mirrors. Nothing is downloaded here.
Layout, below any folders, also as lfw_funneled or lfw-deepfunneled:

    lfw/Aaron_Eckhart/Aaron_Eckhart_0001.jpg …
    peopleDevTrain.txt, peopleDevTest.txt

    python -m jobs.prepare --recipe lfw --input lfw --output shards/lfw

Counts by the publication, not measured here: people of the development test 1,711 with 3,708 images, of its training
4,038 with 9,525.

Taken: every image. Crop: the middle 160 x 160 px (45 to 205). LFW's images are faces as Viola and Jones's detector
found them, enlarged by 2.2: the detector's square is the middle 114 px, from brows to chin; 160 hold hair's edge and
chin, 3.8 times the distance of the eyes, as CelebA's customary square does. Split: people of peopleDevTest.txt, where
it is there, are "test"; of all others a tenth is val, by person.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from facelab import storage
from facelab.data.items import Item
from facelab.data.recipes.reading import first_of, lines, malformed
from facelab.data.shards import split_of
from facelab.errors import UsageError

_IMAGE = re.compile(r"(?P<folder>(?:.*/)?)(?P<person>[^/]+)/(?P=person)_\d{4}\.jpg")
_MIDDLE = (45, 45, 205, 205)


@dataclass(frozen=True)
class Lfw:
    """Every image, by person."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: no images, some that are not LFW's, two of its versions, or a malformed line.
        """
        people = first_of(uri, "peopleDevTest.txt")
        test = set(_people(people)) if people else set()
        folder = None
        for name, place in storage.list_files(uri, (".jpg",)):
            found = _IMAGE.fullmatch(name)
            if found is None:
                raise UsageError(f"{place}: not of LFW, which has NAME/NAME_0001.jpg: give its folder alone")
            if folder not in (None, found["folder"]):
                raise UsageError(f"{uri}: has {folder} and {found['folder']}: the same people twice: give one of them")
            folder = found["folder"]
            split = "test" if found["person"] in test else split_of(f"lfw/{found['person']}")
            yield Item(name, place, split=split, box=_MIDDLE)
        if folder is None:
            raise UsageError(f"{uri}: no images: give LFW's folder, with NAME/NAME_0001.jpg in it")


def _people(uri: str) -> Iterator[str]:
    """Names of a list that begins with their number."""
    for number, text in lines(uri):
        if not text or (number == 1 and text.isdecimal()):
            continue
        name, *count = text.split("\t")
        if len(count) != 1 or not count[0].isdecimal():
            raise malformed(uri, number, "a person's name, a tab, and the number of their images")
        yield name
