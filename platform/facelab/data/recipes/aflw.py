"""AFLW, Annotated Facial Landmarks in the Wild (Köstinger et al. 2011): faces in photographs of Flickr, in all poses.

Where from: the Graz University of Technology, on request, for research. Nothing is downloaded here. Layout (the
database may also lie above data/, the images beside it):

    data/aflw.sqlite
    data/flickr/0/image00002.jpg …, 2/, 3/

    python -m jobs.prepare --recipe aflw --input aflw --output shards/aflw

Counts by the publication, not measured here: 25,993 faces in 21,997 images: the paper's 25k. Some faces have no
rectangle.

Taken: every face of the database, called "flickr/0/image00002.jpg#FACE_ID". Crop: a square about its rectangle
(FaceRect), a quarter longer than the longer side; of a face without one, about what holds its landmarks
(FeatureCoords). A face with neither cannot be found in its image, and is left out. Split: who the people are is
unknown, so by image: all faces of a photograph are on one side, a tenth of the photographs in val. One person may be in
two photographs.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import quote

from facelab import storage
from facelab.data.archives import is_unsafe
from facelab.data.items import Item
from facelab.data.recipes.reading import required, some, square
from facelab.data.shards import split_of
from facelab.errors import UsageError

_FACES = """
SELECT image.filepath, face.face_id,
       coalesce(rect.x, marks.x), coalesce(rect.y, marks.y), coalesce(rect.w, marks.w), coalesce(rect.h, marks.h)
FROM Faces AS face
JOIN FaceImages AS image ON image.file_id = face.file_id AND image.db_id = face.db_id
LEFT JOIN (SELECT face_id, x, y, w, h, min(annot_type_id) FROM FaceRect WHERE w > 0 AND h > 0 GROUP BY face_id) AS rect
    ON rect.face_id = face.face_id
LEFT JOIN (SELECT face_id, min(x) AS x, min(y) AS y, max(x) - min(x) AS w, max(y) - min(y) AS h
           FROM FeatureCoords GROUP BY face_id) AS marks ON marks.face_id = face.face_id
WHERE coalesce(rect.w, marks.w) > 0 AND coalesce(rect.h, marks.h) > 0
ORDER BY image.filepath, face.face_id
"""
"""A face's rectangle, of several the one whose kind of annotation has the smallest number."""


@dataclass(frozen=True)
class Aflw:
    """Every face of the database."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: no database or no images here, or another database.
        """
        advice = "give AFLW's folder, with data/aflw.sqlite and data/flickr"
        database = required(uri, "data/aflw.sqlite", "aflw.sqlite", advice=advice)
        images = required(uri, "data/flickr", "flickr", advice=advice)
        with storage.local_copy(database) as file:
            yield from some(_faces(f"file:{quote(str(file))}?mode=ro&immutable=1", database, images), uri, advice)


def _faces(sqlite: str, database: str, images: str) -> Iterator[Item]:
    try:
        with closing(sqlite3.connect(sqlite, uri=True)) as connection:
            for path, face, *rectangle in connection.execute(_FACES):
                name = f"flickr/{path}"
                if is_unsafe(path):
                    raise UsageError(f"{database}: {path}: expected the path of an image such as 0/image00002.jpg")
                box = square(*map(float, rectangle))
                yield Item(f"{name}#{face}", storage.join(images, path), split=split_of(f"aflw/{path}"), box=box)
    except (sqlite3.Error, TypeError, ValueError) as error:
        raise UsageError(f"{database}: not AFLW's database, or a damaged one ({error}): copy it again") from error
