"""An image file -> a row of face shards; which faces a job takes, and how many it may do without."""

import errno
import hashlib
import os
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from facelab import storage
from facelab.config import JobConfig, SizedConfig
from facelab.data import shards
from facelab.errors import StoreError, UsageError
from facelab.images import LARGE_SIDE, MAX_BYTES, BadImage, encode_png, is_plain, read_image, training_image

MIN_SIDE = 12
"""Below it nothing of a face is left (px)."""
_TOO_SMALL = "too small"
_OF_ONE_FILE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG}
"""Errors of a disk that say nothing of the other files."""


class LimitsConfig(JobConfig):
    """A job that reads faces."""

    OPERATIONAL = JobConfig.OPERATIONAL | {"max_rejected"}

    max_rejected: float = Field(default=0.1, ge=0, le=1)
    """Fail when more than this share of a set cannot be used."""
    allow_enlarged: bool = False
    """Also take faces that are too small, enlarged, and count them. Without it, a sharp face has hr_size px at least,
    and a low-resolution one three quarters of hr_size / scale."""

    def least_side(self, size: int, *, sharp: bool) -> int:
        """Shorter side of a face that is taken for an image of `size` px."""
        least = size if sharp else -(-3 * size // 4)  # 12 px for 16: a detector's boxes are no more exact than that
        return min(least, MIN_SIDE) if self.allow_enlarged else least


class FacesConfig(SizedConfig, LimitsConfig):
    """A job on faces that are there already, which it brings to one size."""


def training_face(data: bytes, size: int, least: int) -> tuple[torch.Tensor, bool]:
    """Encoded bytes -> the training image (3, size, size) uint8, and whether it had to be enlarged.

    Raises:
        BadImage: unusable, or its shorter side has fewer px than `least`.
    """
    image = read_image(data, max(LARGE_SIDE, 2 * size))
    require_side(image.width, image.height, least)
    return training_image(image, size), min(image.size) < size


def require_side(width: int, height: int, least: int) -> None:
    """Raises BadImage where the shorter side has fewer px than `least`."""
    if min(width, height) < least:
        raise BadImage(f"{_TOO_SMALL}: {width}x{height} px, shorter side under {least}")


def require_usable(uri: str, rejected: int, total: int, first: str, max_rejected: float, small: str = "") -> None:
    """
    Args:
        first: one of the rejected and why.
        small: what helps where it was too small; default: what a FacesConfig has.

    Raises:
        UsageError: none of `total` files or rows is usable, or more than the share `max_rejected` is not.
    """
    advice = f": {small or 'give --allow-enlarged, or a smaller --hr-size'}" if f": {_TOO_SMALL}: " in first else ""
    if rejected == total:
        raise UsageError(f"{uri}: none of {total} files is usable; the first: {first}{advice}")
    if rejected > max_rejected * total:
        raise UsageError(
            f"{uri}: {rejected} of {total} files rejected, more than --max-rejected {max_rejected:g}; "
            f"the first: {first}{advice}"
        )


def face_row(
    identifier: str,
    data: bytes,
    source: str,
    split: str = "",
    box: tuple[int, int, int, int] | None = None,
    image: Image.Image | None = None,
) -> dict[str, Any]:
    """A row of FACE_SCHEMA from an image file's bytes.

    Plain 8-bit sRGB files are kept byte for byte; anything else becomes PNG, so that readers meet nothing odd.

    Args:
        split: where a recipe knows better than the rule.
        box: left, top, right, bottom of the face, px: what is kept, as far as it lies in the image.
        image: what `data` decodes to, where that is known.

    Raises:
        BadImage: with the reason for the rejected table.
    """
    image = image or read_image(data)
    if box is not None:
        image = _cropped(image, box)
    if box is not None or not is_plain(data):
        data = encode_png(np.asarray(image))
    digest = hashlib.sha256(data).hexdigest()
    return dict(
        id=identifier,
        image=data,
        height=image.height,
        width=image.width,
        source=source,
        split=split or shards.split_of(identifier),
        sha256=digest,
    )


def _cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    left, top, right, bottom = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
    if left >= right or top >= bottom:
        raise BadImage(f"no face: the box {box} lies outside the image of {image.width}x{image.height} px")
    return image.crop((left, top, right, bottom))


def read_file(uri: str) -> bytes:
    """The bytes of one image file.

    Raises:
        BadImage: the reason why it cannot be used.
        StoreError: no file can be read. On S3, that is also what a denied one means: keys, a token, a clock.
    """
    if os.path.exists(uri) and (size := os.path.getsize(uri)) > MAX_BYTES:
        raise BadImage(f"too large: a file of {size / 2**20:.0f} MiB")
    try:
        return storage.read_bytes(uri)
    except UsageError as error:
        cause = error.__cause__
        here = not uri.startswith("s3://") and isinstance(cause, OSError) and cause.errno in _OF_ONE_FILE
        if here or not isinstance(error, StoreError):
            why = os.strerror(getattr(cause, "errno", None) or errno.ENOENT)
            raise BadImage(f"unreadable: {why}") from error
        raise
