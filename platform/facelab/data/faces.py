"""An image file -> a row of face shards."""

import hashlib
from typing import Any

from facelab import storage
from facelab.data import shards
from facelab.errors import UsageError
from facelab.images import BadImage, decode, encode_png, is_plain

MIN_SIDE = 12
"""Shorter sides are rejected: nothing of a face is left (px)."""


def face_row(identifier: str, data: bytes, source: str, min_side: int = MIN_SIDE) -> dict[str, Any]:
    """A row of FACE_SCHEMA from an image file's bytes.

    Plain 8-bit RGB files are kept byte for byte; anything else becomes PNG, so that readers meet nothing odd.

    Raises:
        BadImage: with the reason for the rejected table.
    """
    image = decode(data)
    height, width = image.shape[:2]
    if min(height, width) < min_side:
        raise BadImage(f"too small: {width}x{height} px, shorter side under {min_side}")
    if not is_plain(data):
        data = encode_png(image)
    digest = hashlib.sha256(data).hexdigest()
    return dict(
        id=identifier,
        image=data,
        height=height,
        width=width,
        source=source,
        split=shards.split_of(identifier),
        sha256=digest,
    )


def read_face(name: str, uri: str, source: str, min_side: int = MIN_SIDE) -> dict[str, Any]:
    """The face row of one image file.

    Raises:
        BadImage: the reason why it cannot be used.
    """
    try:
        data = storage.read_bytes(uri)
    except UsageError as error:
        if isinstance(error.__cause__, (PermissionError, FileNotFoundError)):  # this file; other errors mean the store
            raise BadImage(f"unreadable: {type(error.__cause__).__name__}") from error
        raise
    return face_row(name, data, source, min_side)
