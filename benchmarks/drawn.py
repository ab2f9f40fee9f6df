"""Folders of many different faces, quickly: a few are drawn, and each is shown at many places."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from facelab.images import encode_png
from facelab.samples.faces import sample_face
from facelab.samples.nuisance import degrade


def drawn_faces(count: int, side: int) -> Iterator[np.ndarray]:
    """(side, side, 3) uint8 each, no two alike while count <= side³."""
    few = [sample_face(0, i, side) for i in range(min(count, side))]
    for i in range(count):
        place, who = divmod(i, len(few))
        yield np.roll(few[who], divmod(place, side), axis=(0, 1))


def write_drawn(folder: Path, count: int, side: int, scale: int = 1) -> str:
    """PNG files of `count` faces, a thousand to a subfolder; `scale` > 1: low-resolution ones of `side` / scale px."""
    for i, face in enumerate(drawn_faces(count, side)):
        place = folder / f"{i // 1000:04d}"
        place.mkdir(parents=True, exist_ok=True)
        shown = face if scale == 1 else degrade(face, scale, np.random.default_rng(i))
        (place / f"{i:06d}.png").write_bytes(encode_png(shown))
    return str(folder)
