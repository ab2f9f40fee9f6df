"""Encoded bytes <-> uint8 RGB, and the way every face becomes a training image."""

import io
import threading
from contextlib import nullcontext

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from models.resize import resize

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""Whatever a file is called: Pillow knows dozens more, some of which run programs on what they read, such as EPS."""
MAX_PIXELS = 64_000_000
"""More is taken for a decompression bomb; a face crop has a thousandth of it."""
MAX_BYTES = 8 * MAX_PIXELS
"""Of a file: more than any image that is taken has, in any format."""
LARGE_SIDE = 2048
"""A square of more px a side is reduced by a whole factor before the one resize, whose floats would take gigabytes."""
_ONE_LARGE_AT_A_TIME = threading.Lock()
_SRGB = ImageCms.createProfile("sRGB")


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason given in the `rejected` table."""


def read_image(data: bytes, most_side: int | None = None) -> Image.Image:
    """Encoded JPEG, PNG, WebP or BMP -> upright sRGB in Pillow's mode RGB, its first frame where it has several.

    EXIF rotation is applied, colours go from the embedded profile to sRGB (one that cannot be read is passed over, as
    browsers do), 16 bits become 8, transparency is laid over white.

    Args:
        most_side: an image whose shorter side has more px gives its centre square, reduced by a whole factor to no less
            than half of it.

    Raises:
        BadImage: unreadable, truncated or a decompression bomb.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                raise BadImage(f"decompression bomb: {image.width}x{image.height} px")
            with _ONE_LARGE_AT_A_TIME if pixels > LARGE_SIDE**2 else nullcontext():
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                return _reduced(_to_rgb(image), most_side)
    except BadImage:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, met before ours
        raise BadImage(f"decompression bomb: {error}") from error
    except UnidentifiedImageError as error:
        raise BadImage("unreadable: no JPEG, PNG, WebP or BMP, whatever its name says") from error
    except Exception as error:  # decoders raise whatever they like on corrupt input: all of it means one thing
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise BadImage(f"{reason}: {type(error).__name__}: {str(error)[:120]}") from error


def decode(data: bytes) -> np.ndarray:
    """Encoded image -> (H, W, 3) uint8 sRGB.

    Raises:
        BadImage: see `read_image`.
    """
    return np.array(read_image(data))


def decode_tensor(data: bytes) -> torch.Tensor:
    """Encoded image -> (3, H, W) uint8 RGB.

    Raises:
        BadImage: see `read_image`.
    """
    return torch.from_numpy(decode(data)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(np.clip(wide, 0, 65535) / 257).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    elif image.mode not in ("RGB", "CMYK", "L"):
        image = image.convert("RGB")
    if profile and not _is_srgb(profile):
        try:
            return ImageCms.profileToProfile(image, io.BytesIO(profile), _SRGB, outputMode="RGB")  # pyrefly: ignore
        except ImageCms.PyCMSError:
            pass  # damaged, or of other channels than the image
    return image if image.mode == "RGB" else image.convert("RGB")


def _reduced(image: Image.Image, most_side: int | None) -> Image.Image:
    side = min(image.size)
    if most_side is None or side <= most_side:
        return image
    return _centre(image).reduce(-(-side // most_side))


def _centre(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image if side == max(image.size) else image.crop((left, top, left + side, top + side))


def _is_srgb(profile: bytes) -> bool:
    """By its name; c2 and uRGB are the two tiny ones that web services embed."""
    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip().lower()
    except (ImageCms.PyCMSError, OSError):
        return False
    return name.startswith("srgb") or name in ("c2", "urgb")


def is_plain(data: bytes) -> bool:
    """Whether the bytes can be kept as they are: 8-bit sRGB JPEG or PNG without rotation."""
    with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
        profile = image.info.get("icc_profile")
        return (
            image.format in ("JPEG", "PNG")
            and image.mode == "RGB"
            and not (image.format == "PNG" and data[24] == 16)  # the header's bit depth, which Pillow hides
            and image.getexif().get(0x0112, 1) == 1
            and "transparency" not in image.info
            and (not profile or _is_srgb(profile))
        )


def encode_png(image: np.ndarray | torch.Tensor) -> bytes:
    """(H, W, 3) array or (3, H, W) tensor, uint8 -> PNG: lossless and the same bytes everywhere."""
    if isinstance(image, torch.Tensor):
        image = image.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def training_image(image: Image.Image, size: int) -> torch.Tensor:
    """Centre square, then the one resize: RGB -> (3, size, size) uint8."""
    return resize(torch.from_numpy(np.array(_centre(image))).permute(2, 0, 1)[None], size)[0]


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
