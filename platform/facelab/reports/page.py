"""What every page shares: its frame, rows of pictures, figures. Pages are one self-contained file."""

import base64
import html
import io

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from facelab.images import encode_png, grid

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

plt.rcParams["text.parse_math"] = False  # a model's name may hold dollars

PictureRow = tuple[str, list[torch.Tensor] | torch.Tensor]
"""A label and the images (3, h, w) uint8 beside it."""


def page(title: str, body: list[str]) -> str:
    """A whole HTML file."""
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def picture_rows(rows: list[PictureRow], cell: int, columns: int = 8) -> str:
    """Labelled rows of images, at `cell` px each."""
    parts = []
    for label, images in rows:
        picture = _img(label, encode_png(grid([images[:columns]], cell)))  # pyrefly: ignore
        parts.append(f"<div class=row><span>{html.escape(label)}</span>{picture}</div>")
    return f"<div class=pictures>{''.join(parts)}</div>"


def figures(pictures: dict[str, bytes]) -> str:
    """Caption -> PNG, side by side."""
    parts = [
        f"<figure>{_img(caption, png)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, png in pictures.items()
    ]
    return f"<div class=figures>{''.join(parts)}</div>"


def _img(name: str, png: bytes) -> str:
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def html_table(head: list[str], rows: list[list[str]]) -> str:
    """Cells are HTML; the first of a row is its name."""
    lines = ["".join(f"<td>{cell}" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=wide><table><tr>{''.join(f'<th>{cell}' for cell in head)}</tr>{body}</table></div>"


def picture_grid(rows: list[PictureRow], cell: int, columns: int = 8, margin: int = 150) -> bytes:
    """The same as one PNG, for a paper or a chat."""
    sheet = grid([list(images[:columns]) for _, images in rows], cell)
    picture = Image.new("RGB", (sheet.shape[1] + margin, sheet.shape[0]), "white")
    picture.paste(Image.fromarray(sheet), (margin, 0))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=14)
    for index, (label, _) in enumerate(rows):
        draw.text((4, index * (cell + 2) + cell // 2), label, fill="black", font=font, anchor="lm")
    return encode_png(np.asarray(picture))


def svg(figure: Figure) -> str:
    """A matplotlib figure as an element of a page; closes it."""
    for axes in figure.axes:
        if axes.get_yscale() == "log":  # whose own labels are mathematics
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter())
    figure.tight_layout()  # around the labels as they are shown
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    plt.close(figure)
    return f"<div class=curves>{buffer.getvalue().split('?>', 1)[-1]}</div>"


_PAGE = """<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>{title}</title><style>
body{{font:16px/1.5 system-ui,sans-serif;max-width:1360px;margin:2rem auto;padding:0 1rem;color:#1c2430}}p,ul{{max-width:70rem}}
h1{{margin-bottom:0}}h2{{margin-top:2.4rem;border-bottom:1px solid #dde3ea;padding-bottom:.2rem}}.lead{{font-size:1.1rem}}
.verdict{{background:#eef6f0;border-left:4px solid #3a9a5b;padding:.7rem 1rem}}.note{{color:#66707c;font-size:.9rem}}.look{{font-style:italic}}
.row{{display:flex;align-items:center;margin:2px 0}}.row span{{flex:0 0 150px;font-size:.9rem;color:#47515d}}
.row img{{max-width:calc(100% - 150px);image-rendering:pixelated}}.pictures,.wide{{overflow-x:auto}}
table{{border-collapse:collapse;margin:1rem 0}}td,th{{padding:.3rem .9rem;border-bottom:1px solid #e3e8ee;text-align:right}}
td:first-child,th:first-child{{text-align:left;white-space:nowrap}}td small{{color:#66707c;display:block;white-space:nowrap}}
tr.floor td{{color:#66707c;font-style:italic}}
pre{{background:#f4f6f8;padding:.6rem .8rem;overflow-x:auto}}
.figures{{display:flex;flex-wrap:wrap;gap:1rem}}figure{{margin:0;max-width:42rem}}figure img{{max-width:100%}}
figcaption{{color:#47515d;font-size:.9rem}}.curves svg{{width:100%;height:auto}}
</style><body>{body}</body></html>
"""
