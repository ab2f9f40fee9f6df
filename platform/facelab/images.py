"""Encoded bytes <-> uint8 RGB, and the way every face becomes a training image."""

import io

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from models.resize import resize

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
MAX_PIXELS = 64_000_000
"""More is taken for a decompression bomb; a face crop has a thousandth of it."""


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason given in the `rejected` table."""


def decode(data: bytes) -> np.ndarray:
    """Encoded JPEG, PNG, WebP or BMP -> (H, W, 3) uint8 RGB.

    EXIF rotation is applied, 16-bit grey scaled to 8, transparency laid over white.

    Raises:
        BadImage: unreadable, truncated or a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadImage(f"decompression bomb: {image.width}x{image.height} px")
            image.load()
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except BadImage:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, met before ours
        raise BadImage(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage("unreadable: not an image format that is known here") from error
    except Exception as error:  # decoders raise whatever they like on corrupt input: all of it means one thing
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise BadImage(f"{reason}: {type(error).__name__}: {str(error)[:120]}") from error


def decode_tensor(data: bytes) -> torch.Tensor:
    """Encoded image -> (3, H, W) uint8 RGB.

    Raises:
        BadImage: see `decode`.
    """
    return torch.from_numpy(decode(data)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.float64)
        return Image.fromarray(np.rint(np.clip(wide, 0, 65535) / 257).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def is_plain(data: bytes) -> bool:
    """Whether the bytes can be kept as they are: 8-bit RGB JPEG or PNG without rotation."""
    with Image.open(io.BytesIO(data)) as image:
        return (
            image.format in ("JPEG", "PNG")
            and image.mode == "RGB"
            and image.getexif().get(0x0112, 1) == 1
            and "transparency" not in image.info
        )


def encode_png(image: np.ndarray | torch.Tensor) -> bytes:
    """(H, W, 3) array or (3, H, W) tensor, uint8 -> PNG: lossless and the same bytes everywhere."""
    if isinstance(image, torch.Tensor):
        image = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def training_image(data: bytes, size: int) -> torch.Tensor:
    """Centre square, then the one resize: encoded bytes -> (3, size, size) uint8.

    Raises:
        BadImage: see `decode`.
    """
    return resize(centre_square(decode_tensor(data))[None], size)[0]


def centre_square(images: torch.Tensor) -> torch.Tensor:
    """(…, H, W) -> (…, S, S) with S = min(H, W)."""
    side = min(images.shape[-2:])
    top, left = (images.shape[-2] - side) // 2, (images.shape[-1] - side) // 2
    return images[..., top : top + side, left : left + side]


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Float [-1, 1] -> uint8 0..255, rounded and clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid(rows: list[list[torch.Tensor]] | list[torch.Tensor], cell: int, gap: int = 2) -> np.ndarray:
    """Rows of images as one picture on white: (N, 3, h, w) or a list of (3, h, w), uint8. Each is shown as large as it
    fits into `cell` px, whatever its shape: by nearest neighbour when enlarged, by the one resize when reduced."""
    columns = max(len(row) for row in rows)
    sheet = np.full((len(rows) * (cell + gap) - gap, columns * (cell + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            factor = cell / max(image.shape[-2:])
            height, width = (max(round(side * factor), 1) for side in image.shape[-2:])
            if factor > 1:
                array = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
                array = np.asarray(Image.fromarray(array).resize((width, height), Image.Resampling.NEAREST))
            else:
                array = resize(image[None], height, width)[0].permute(1, 2, 0).numpy()
            y, x = r * (cell + gap), c * (cell + gap)
            sheet[y : y + height, x : x + width] = array
    return sheet
