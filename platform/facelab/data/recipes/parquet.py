"""Anybody's faces in Parquet files, as Hugging Face's datasets have them: a column of images, one a row.

data/train-00000-of-00002.parquet: image (struct of bytes and path, or binary), identity …

python -m jobs.prepare --recipe parquet --input data --parquet.group-column identity --output faces
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from facelab.data.archives import index_parquet
from facelab.data.items import Item
from facelab.data.recipes.archive import items_of


@dataclass(frozen=True)
class Parquet:
    """Every row of a file, or of all below a folder."""

    column: str = "image"
    """Of the images: binary, or a struct with `bytes`."""
    id_column: str = ""
    """What an image is called; without it, the number of its row in the file."""
    group_column: str = ""
    """Rows that agree in it, such as a person's, are all in one split. Without it, each row is alone."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: no such file, one that cannot be read or lacks a column, or no row in any.
        """
        return items_of(uri, (".parquet",), partial(index_parquet, **vars(self)))
