"""WIDER FACE (Yang et al. 2016): faces of every size in photographs of events; the small ones are what is wanted.

Where from: its authors' page, for research. Nothing is downloaded here. Layout:

    WIDER_train/images/0--Parade/0_Parade_marchingband_1_849.jpg …
    WIDER_val/images/…
    wider_face_split/wider_face_train_bbx_gt.txt, wider_face_val_bbx_gt.txt

    python -m jobs.prepare --recipe wider_face --input WIDER --output shards/wider

Counts by the publication, not measured here: 12,880 images with 159,424 faces in train, 3,226 with 39,708 in val. The
paper's 32k images are all 32,203, of which 16,097 have no published boxes.

Taken: faces that are valid, of the levels of blur and occlusion wanted, whose square has `min_side` to `max_side` px.
Larger ones are reduced, and lose the blur, noise and JPEG blocks that they are wanted for: for images of 16 px, one of
48 is reduced to a third, and 32 is a stricter choice. All levels of blur are taken (small faces are nearly all
"heavy"), but not faces of which most is hidden. Crop: a square about the box, a quarter longer than its longer side.

Split: by image, all faces of one on one side, a tenth of the images in val. By image, not by kind of event: photographs
of one kind have nothing in common but the word that they were searched by, and six of 61 kinds left out would be
another kind of test. Where --wider-face.parts names val, too, its faces are "test": the official test part has no
published boxes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveInt

from facelab import storage
from facelab.data.archives import is_unsafe
from facelab.data.items import Item
from facelab.data.recipes.reading import lines, malformed, numbers, required, some, square
from facelab.data.shards import split_of
from facelab.images import IMAGE_SUFFIXES

_FACE = "x y w h blur expression illumination invalid occlusion pose, ten numbers"


@dataclass(frozen=True)
class WiderFace:
    """The small faces of the crowds."""

    parts: tuple[Literal["train", "val"], ...] = ("train",)
    """Which of the parts that have boxes; faces of val are "test"."""
    min_side: PositiveInt = 12
    """Of a face's square, px: below it nothing of a face is left."""
    max_side: PositiveInt = 48
    """Of a face's square, px: larger ones are reduced so far that they look sharp."""
    blur: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    """Levels taken: 0 clear, 1 normal blur, 2 heavy blur."""
    occlusion: tuple[Literal[0, 1, 2], ...] = (0, 1)
    """Levels taken: 0 none, 1 partial, 2 heavy."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: a part is not there, a malformed line, or no face is of the size and levels wanted.
        """
        advice = "no face is of the size and levels wanted: give other --wider-face options"
        yield from some((item for part in self.parts for item in self._part(uri, part)), uri, advice)

    def _part(self, uri: str, part: str) -> Iterator[Item]:
        advice = "give WIDER FACE's folder, with WIDER_train/images and wider_face_split"
        images = required(uri, f"WIDER_{part}/images", advice=advice)
        boxes = required(uri, f"wider_face_split/wider_face_{part}_bbx_gt.txt", advice=advice)
        for scene, faces in _scenes(boxes):
            split = "test" if part == "val" else split_of(f"wider_face/{scene}")
            for number, (x, y, width, height, blur, _, _, invalid, occlusion, _) in enumerate(faces):
                box = square(x, y, width, height)
                wanted = not invalid and blur in self.blur and occlusion in self.occlusion
                if box and wanted and self.min_side <= box[2] - box[0] <= self.max_side:
                    name = f"WIDER_{part}/{scene}#{number}"
                    yield Item(name, storage.join(images, scene), split=split, box=box)


def _scenes(uri: str) -> Iterator[tuple[str, list[list[float]]]]:
    """(path of an image, its faces) by a file of boxes; one without faces has a line of zeros."""
    rows = lines(uri)
    for number, scene in rows:
        if not scene:
            continue
        if is_unsafe(scene) or not scene.lower().endswith(IMAGE_SUFFIXES):
            raise malformed(uri, number, "the path of an image such as 0--Parade/0_Parade_marchingband_1_849.jpg")
        number, count = next(rows, (number + 1, ""))
        if not count.isdecimal():
            raise malformed(uri, number, f"the number of faces of {scene}")
        faces = []
        for _ in range(max(int(count), 1)):
            number, face = next(rows, (number + 1, ""))
            faces.append(numbers(uri, number, face.split(), 10, _FACE))
        yield scene, faces
