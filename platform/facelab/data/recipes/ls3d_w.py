"""LS3D-W (Bulat and Tzimiropoulos 2017): some 230,000 faces with 68 landmarks, put together from other datasets.

Where from: its authors' page, on request, for research. Nothing is downloaded here. Layout, each image with its
landmarks in a file of the same name beside it:

    300W-Testset-3D/*.png
    300VW-3D/{Trainset,CatA,CatB,CatC}/VIDEO/0001.jpg …
    AFLW2000-3D-Reannotated/*.jpg
    Menpo-3D/*.jpg

    python -m jobs.prepare --recipe ls3d_w --input LS3D-W --output shards/ls3d_w

Counts by the publication, not measured here: 600, 218,595 frames of 114 videos, 2,000 and 8,955. Every 30th frame of
a video are some 7,300, so that the default gives about 18,800 faces. The paper takes "a subset" and does not say which.

The landmarks are published as .t7, a serialisation of Torch 7, which is not read here: convert them (docs/datasets.md
has the lines). Read are .mat (pt3d_68, pts_3d or pt3d), .pts and .npy; nothing that could hold code.

Taken: the parts named, and of videos every `frames`-th frame, since neighbours hardly differ; not `new_dataset`, which
are copies from the other parts. Crop: the box of the landmarks, made a quarter higher at its top for the forehead,
which has none; about it a square a quarter longer than the longer side. Split: by image, of videos by video; a tenth to
val. AFLW2000-3D and parts of Menpo-3D are photographs of AFLW: who prepares both and validates, may meet one twice.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import scipy.io
from pydantic import PositiveInt

from facelab import storage
from facelab.data.items import Item
from facelab.data.recipes.reading import Box, some, square
from facelab.data.shards import split_of
from facelab.errors import UsageError
from facelab.images import IMAGE_SUFFIXES

_VIDEOS = "300VW-3D"
_FOREHEAD = 0.25
_LANDMARKS = (".mat", ".pts", ".npy")


@dataclass(frozen=True)
class Ls3dW:
    """Faces by their landmarks; of videos, some frames."""

    parts: tuple[str, ...] = ("300W-Testset-3D", _VIDEOS, "AFLW2000-3D-Reannotated", "Menpo-3D")
    """Folders to take; those that are not there are passed over."""
    frames: PositiveInt = 30
    """Of a video, each so many-th frame: neighbours hardly differ."""
    without_landmarks: Literal["refuse", "skip", "centre"] = "refuse"
    """What to do about an image without landmarks that can be read: end, leave it out, or take its centre square."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: no part is there, an image has no landmarks that can be read, or they are damaged.
        """
        advice = f"give LS3D-W's folder, with {', '.join(self.parts)} in it"
        yield from some((item for part in self.parts for item in self._part(uri, part)), uri, advice)

    def _part(self, uri: str, part: str) -> Iterator[Item]:
        files = dict(storage.list_files(storage.join(uri, part), (*IMAGE_SUFFIXES, *_LANDMARKS)))
        images = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES)]
        for folder, names in groupby(images, lambda name: name.rpartition("/")[0]):
            taken = list(names)[:: self.frames if part == _VIDEOS else 1]
            for name in taken:
                stem = name.rpartition(".")[0]
                landmarks = next((files[stem + kind] for kind in _LANDMARKS if stem + kind in files), None)
                if landmarks is None and self.without_landmarks == "refuse":
                    raise UsageError(
                        f"{files[name]}: no {stem}{' or '.join(_LANDMARKS)} beside it: convert LS3D-W's .t7 as "
                        "docs/datasets.md says, or give --ls3d-w.without-landmarks skip (or centre)"
                    )
                if landmarks or self.without_landmarks == "centre":
                    split = split_of(f"ls3d_w/{part}/{folder if part == _VIDEOS else name}")
                    box = face_box(read_landmarks(landmarks), landmarks) if landmarks else None
                    yield Item(f"{part}/{name}", files[name], split=split, box=box)


def face_box(points: np.ndarray, uri: str) -> Box:
    """The square of a face with these landmarks, (68, 2) or (68, 3).

    Raises:
        UsageError: they are in one place.
    """
    (left, top), (right, bottom) = points[:, :2].min(0), points[:, :2].max(0)
    forehead = _FOREHEAD * (bottom - top)
    box = square(left, top - forehead, right - left, bottom - top + forehead)
    if box is None:
        raise UsageError(f"{uri}: its landmarks are all in one place")
    return box


def read_landmarks(uri: str) -> np.ndarray:
    """(68, 2) or (68, 3) floats, px, from .mat, .pts or .npy. Nothing is unpickled.

    Raises:
        UsageError: they are not that.
    """
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".npy"):
            points = np.load(io.BytesIO(data), allow_pickle=False)
        elif uri.endswith(".mat"):
            content = scipy.io.loadmat(io.BytesIO(data))
            points = next(content[key] for key in ("pt3d_68", "pts_3d", "pt3d") if key in content)
        else:
            rows = data.decode().partition("{")[2].partition("}")[0].splitlines()
            points = [row.split() for row in rows if row.strip()]
        points = np.squeeze(np.asarray(points, np.float64))
    except Exception as error:  # loadmat raises whatever it likes on damaged files: all of it means one thing
        raise UsageError(f"{uri}: no landmarks that can be read ({type(error).__name__}: {error})") from error
    points = points.T if points.ndim == 2 and points.shape[0] in (2, 3) else points
    if points.shape not in ((68, 2), (68, 3)) or not np.isfinite(points).all():
        raise UsageError(f"{uri}: expected 68 landmarks of 2 or 3 finite numbers, found the shape {points.shape}")
    return points
