"""Anybody's faces: every image file below a folder."""

from facelab.data.source import Source, find_images
from facelab.seeding import seed_for


def find(uri: str) -> Source:
    """Every image, shuffled by hash: neighbours in a folder are often alike, in size and in being broken.

    Raises:
        UsageError: none there.
    """
    found = find_images(uri)
    items = sorted(found.items, key=lambda item: seed_for("prepare", item.name))
    return Source(found.uri, found.kind, tuple(items), found.rows)
