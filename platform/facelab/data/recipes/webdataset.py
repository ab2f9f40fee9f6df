"""Anybody's faces in WebDataset shards: tar files in which neighbours with one name up to its first dot are a sample.

shard-000000.tar: a/0001.jpg, a/0001.json, a/0002.jpg, a/0002.json …

python -m jobs.prepare --recipe webdataset --input shards --webdataset.group identity --output faces
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from facelab.data.archives import TAR_SUFFIXES, index_webdataset
from facelab.data.items import Item
from facelab.data.recipes.archive import items_of


@dataclass(frozen=True)
class WebDataset:
    """Every image in a shard, or in all below a folder."""

    group: str = ""
    """Samples that agree in it are all in one split: "cls", the text of .cls, or a key of .json, such as identity.
    Without it, each sample is alone."""

    def find(self, uri: str) -> Iterator[Item]:
        """
        Raises:
            UsageError: as for tar, or a sample does not say its group.
        """
        return items_of(uri, TAR_SUFFIXES, partial(index_webdataset, group=self.group))
