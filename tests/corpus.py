"""Odd and hostile inputs, and what becomes of each: files of a folder of faces, places, configs."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from facelab.samples.faces import sample_face
from PIL import Image, ImageCms

ROW, COPY, UNREADABLE, TRUNCATED, BOMB, SMALL, LR_ONLY, IGNORED = (
    "row", "copy", "unreadable", "truncated", "decompression bomb", "too small", "large enough for an LR face", "ignored",
)  # fmt: skip
"""What becomes of a file: a row; the kind of its rejection; nothing, as it is no image of the folder's own."""

SIZE = 64


def face(identity: int, size: int = SIZE) -> Image.Image:
    return Image.fromarray(sample_face(11, identity, size))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    """A PNG, chunk by chunk; `pixels` as they are before compression."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def bomb() -> bytes:
    """A PNG header that promises 100 000 x 100 000 pixels."""
    return png(100_000, 100_000, 8, 2, b"0")


def sixteen_bit(image: Image.Image) -> bytes:
    """A face as 48-bit PNG."""
    rows = np.asarray(image).astype(">u2") * 257
    return png(image.width, image.height, 16, 2, b"".join(b"\0" + row.tobytes() for row in rows))


def p3_profile() -> bytes:
    """An ICC profile of Display P3: sRGB's curve over wider primaries, as phones embed it."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    columns = {b"rXYZ": (0.51512, 0.24120, -0.00105), b"gXYZ": (0.29198, 0.69225, 0.04189),
               b"bXYZ": (0.15710, 0.06657, 0.78407)}  # fmt: skip
    for i in range(struct.unpack(">I", profile[128:132])[0]):
        tag, offset, _ = struct.unpack(">4sII", profile[132 + 12 * i : 144 + 12 * i])
        if tag in columns:
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *(round(v * 65536) for v in columns[tag]))
        if tag == b"desc":
            text = profile.find("sRGB".encode("utf-16-be"), offset)
            profile[text : text + 8] = "Disp".encode("utf-16-be")
    return bytes(profile)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _files() -> dict[str | bytes, tuple[bytes, str]]:
    """Name below the folder -> (bytes, what becomes of it)."""
    faces = iter(range(1000))

    def good(kind: str = "PNG", convert: str = "RGB", **options) -> tuple[bytes, str]:
        return encoded(face(next(faces)).convert(convert), kind, **options), ROW

    jpeg, alpha = encoded(face(900), "JPEG"), face(901).convert("RGBA")
    alpha.putalpha(Image.new("L", alpha.size, 128))
    frames = {"save_all": True, "append_images": [face(902), face(903)]}
    wide = Image.fromarray(np.concatenate([np.asarray(face(904))] * 3, axis=1))
    return {
        # Formats and modes
        "plain.jpg": good("JPEG"),
        "progressive.jpg": good("JPEG", progressive=True),
        "cmyk.jpg": good("JPEG", "CMYK"),
        "grey.jpg": good("JPEG", "L"),
        "turned.jpg": good("JPEG", exif=_exif(6)),
        "no such turn.jpg": good("JPEG", exif=_exif(77)),
        "display-p3.jpg": good("JPEG", icc_profile=p3_profile()),
        "damaged-profile.jpg": good("JPEG", icc_profile=b"no profile"),
        "several.jpg": (encoded(face(905), "MPO", save_all=True, append_images=[face(906)]), ROW),
        "garbage-after-the-end.jpg": (encoded(face(907), "JPEG") + b"\0garbage" * 99, ROW),
        "plain.png": good(),
        "grey.png": good(convert="L"),
        "grey16.png": (encoded(Image.fromarray(np.asarray(face(908).convert("L")).astype(np.uint16) * 257), "PNG"), ROW),
        "rgb16.png": (sixteen_bit(face(909)), ROW),
        "one-bit.png": good(convert="1"),
        "palette.png": good(convert="P"),
        "palette-transparent.png": good(convert="P", transparency=0),
        "grey-alpha.png": good(convert="LA"),
        "alpha.png": (encoded(alpha, "PNG"), ROW),
        "moving.png": (encoded(face(910), "PNG", **frames), ROW),
        "lossless.webp": good("WEBP", lossless=True),
        "lossy.webp": good("WEBP"),
        "moving.webp": (encoded(face(911), "WEBP", **frames), ROW),
        "plain.bmp": good("BMP"),
        "palette.bmp": good("BMP", "P"),
        "a png after all.jpg": good(),
        "a jpeg after all.png": good("JPEG"),
        # Names
        "CAPITALS.JPG": good("JPEG"),
        "Mixed.Png": good(),
        "two words.png": good(),
        "two.dots.png": good(),
        "höhe-顔-🙂.png": good(),
        "quote's \"double\".png": good(),
        "$\\foo$.png": good(),
        "<img src=x onerror=alert(1)>.png": good(),
        "a|b.png": good(),
        "100%20#1?.png": good(),
        "star*[1]{2}.png": good(),
        "{name}.png": good(),
        "line\nbreak.png": good(),
        "-rf.png": good(),
        "~nobody.png": good(),
        "n" * 240 + ".png": good(),
        b"no-utf8-\xff.png": good(),
        "deep/er/and/deeper.png": good(),
        "a folder.png/inside.png": good(),
        # Sizes
        "wide.png": (encoded(wide, "PNG"), ROW),
        "tall.png": (encoded(wide.rotate(90, expand=True), "PNG"), ROW),
        "large.jpg": (encoded(face(912).resize((2600, 2600)), "JPEG", quality=60), ROW),
        "20px.png": (encoded(face(913, 48).resize((20, 20)), "PNG"), LR_ONLY),
        "8px.png": (encoded(face(914, 48).resize((8, 8)), "PNG"), SMALL),
        "1px.png": (encoded(Image.new("RGB", (1, 1)), "PNG"), SMALL),
        "strip.png": (encoded(Image.new("RGB", (5000, 1)), "PNG"), SMALL),
        "bomb.png": (bomb(), BOMB),
        # No images, or none that is decoded
        "empty.png": (b"", UNREADABLE),
        "text.jpg": (b"no image", UNREADABLE),
        "page.jpg": (b"<!doctype html><script>alert(1)</script>", UNREADABLE),
        "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", UNREADABLE),
        "postscript.png": (encoded(face(915), "EPS"), UNREADABLE),
        "pdf.jpg": (encoded(face(916), "PDF"), UNREADABLE),
        "gif.png": (encoded(face(917), "GIF"), UNREADABLE),
        "tiff.jpg": (encoded(face(918), "TIFF"), UNREADABLE),
        "ppm.bmp": (encoded(face(919), "PPM"), UNREADABLE),
        "icon.png": (encoded(face(920), "ICO"), UNREADABLE),
        "half.jpg": (jpeg[: len(jpeg) // 2], TRUNCATED),
        "head-alone.jpg": (jpeg[:20], UNREADABLE),
        "magic-alone.png": (b"\x89PNG\r\n\x1a\n" + bytes(100), UNREADABLE),
        "half.png": (encoded(face(921), "PNG")[:400], TRUNCATED),
        "short-rows.png": (png(SIZE, SIZE, 8, 2, bytes(100)), TRUNCATED),
        "half.webp": (encoded(face(922), "WEBP")[:200], UNREADABLE),
        # Not the folder's own
        ".hidden.png": (encoded(face(923), "PNG"), IGNORED),
        "._plain.png": (b"resource fork", IGNORED),
        ".ipynb_checkpoints/plain-checkpoint.png": (encoded(face(924), "PNG"), IGNORED),
        "__MACOSX/plain.png": (b"resource fork", IGNORED),
        "notes.txt": (b"hello", IGNORED),
        "Thumbs.db": (b"thumbs", IGNORED),
        "config.yaml": (b"mine: true", IGNORED),
        "animation.gif": (encoded(face(925), "GIF"), IGNORED),
    }  # fmt: skip


def write_corpus(folder: Path) -> dict[str, str]:
    """Fill a folder; what becomes of each name (bytes that are no UTF-8 spelt out)."""
    becomes = {}
    for name, (data, outcome) in _files().items():
        place = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(place), exist_ok=True)
        Path(os.fsdecode(place)).write_bytes(data)
        becomes[os.fsencode(name).decode(errors="backslashreplace")] = outcome
    (folder / "zz-copy.png").write_bytes((folder / "plain.png").read_bytes())
    os.link(folder / "plain.jpg", folder / "zz-hard-link.jpg")
    becomes |= {"zz-copy.png": COPY, "zz-hard-link.jpg": COPY}
    for link, target in {
        "link.png": "plain.png", "loop": ".", "up": "..", "deep/root": "/", "deep/again": "../deep", "a": "b", "b": "a",
    }.items():  # fmt: skip
        (folder / link).symlink_to(target)
        becomes[link] = IGNORED
    for link, target in {
        "nowhere.png": "no such file.png", "loop.png": "loop.png", "through-a-file.png": "notes.txt/x.png",
        "to-too-long-a-name.png": "x" * 300,
    }.items():  # fmt: skip
        (folder / link).symlink_to(target)
        becomes[link] = UNREADABLE
    # As Hugging Face's hub and git-annex store files: links to contents without an ending.
    (folder / "contents").mkdir()
    (folder / "contents" / "0123abc").write_bytes(encoded(face(931), "PNG"))
    (folder / "from-contents.png").symlink_to("contents/0123abc")
    becomes |= {"from-contents.png": ROW, "contents/0123abc": IGNORED}
    (folder.parent / "elsewhere").mkdir()
    (folder.parent / "elsewhere" / "linked.png").write_bytes(encoded(face(930), "PNG"))
    (folder / "outside").symlink_to("../elsewhere")
    becomes["outside/linked.png"] = ROW
    os.mkfifo(folder / "pipe.png")
    becomes["pipe.png"] = IGNORED
    pq.write_table(pa.table({"name": ["plain.png"], "age": [33]}), folder / "metadata.parquet")
    return becomes | {"metadata.parquet": IGNORED}


PLACES: dict[str, str] = {
    "": "empty",
    "a\nb": "no path should have",
    "a\0b": "no path should have",
    "no-utf8-\udcff": "no path should have",
    "gs://bucket/x": "unknown scheme",
    "http://host/x": "unknown scheme",
    "models:x": "unknown scheme",
    "s3://": "no bucket",
    "s3:///x": "no bucket",
    "s3:bucket/x": "no bucket",
    "S3://": "no bucket",
    "s3://key:secret/with/slash@bucket/x": "never from a URI",
    "s3://token@bucket/x": "never from a URI",
    "s3://bucket/../other": "no . and ..",
    "file://host/x": "names a host",
    "file:x": "no absolute path",
    "file:///a%00b": "no path should have",
    "~no-such-user/x": "no such user",
    "{folder}/nothing": "not found",
    "{folder}/text.txt": "is a file",
    "{folder}/empty": "no images",
    "{folder}/text": "no images",
    "{folder}/unfinished": "did not finish",
    "{folder}/manifest": "not a facelab manifest",
    "{folder}/damaged": "changed since",
    "{folder}/lost": "write the set again",
}
"""What a user may give for a folder of faces -> what the one line says."""


def write_places(folder: Path, shards: Callable[[str], str]) -> None:
    """What PLACES names; `shards` writes a whole set of face shards to a place, and returns the path of its shard."""
    (folder / "text").mkdir(parents=True)
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("no folder")
    (folder / "text" / "a.txt").write_text("no image")
    for name in ("unfinished", "manifest", "damaged", "lost"):
        shard = Path(shards(str(folder / name)))
        if name == "unfinished":
            (folder / name / "manifest.json").unlink()
        elif name == "manifest":
            (folder / name / "manifest.json").write_text("{")
        elif name == "damaged":
            shard.write_bytes(shard.read_bytes()[:-9])
        else:
            shard.unlink()


CONFIGS: dict[bytes, str] = {
    b"": "mapping",
    b"just text": "mapping",
    b"- a list": "mapping",
    b"a: [": "not valid YAML",
    b"\tseed: 1": "not valid YAML",
    b"seed: !!python/object/apply:os.system ['true']": "not valid YAML",
    b"\xff\xfe\x00": "not valid YAML",
    b"when: 2024-13-45": "not valid YAML",
    b"sede: 1": "did you mean 'seed'",
    b"compute: {gpus: true}": "did you mean 'compute.gpu'",
    b"1: 2": "unknown key",
    b"experiment: no": "YAML reads",
    b"experiment:": "has no value",
    b"seed: many": "seed",
    b"seed: -1": "seed",
    b"batch_size: 1": "batch_size",
    b"preset: demi": "did you mean 'demo'",
    b"preset: [debug]": "is unknown",
    b"preset: {a: 1}": "is unknown",
    b"seed: {}": "seed: neither a value",
    b"experiment: &a {x: *a}": "neither a value",
    b"experiment: &a [*a]": "neither a value",
    b"experiment: !!binary aGk=": "neither a value",
    b"experiment: !!set {a}": "neither a value",
    b"output: s3://key:secret@bucket/x": "never from a URI",
}
"""A --config file -> what the one line says."""
