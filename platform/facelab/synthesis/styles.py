"""The style bank: codes of real low-resolution faces, encoded once; and which of them a pair takes."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from facelab.data.decoding import Decoding, in_order
from facelab.data.faces import require_usable
from facelab.data.tables import require_plain
from facelab.errors import UsageError
from facelab.images import to_float
from facelab.seeding import seed_for
from facelab.trained.apply import in_fixed_batches
from models.luma import luma
from models.stylevae import StyleVAE

NEAREST = 32
"""Among so many bank faces of the most similar luminance, one is drawn."""
_AT_A_TIME = 256

Style = list[tuple[str, float]]
"""Bank faces and their weights; none where the style is of the prior."""


@dataclass(frozen=True)
class StyleBank:
    """Arrays that Ray's actors share: one copy on each node."""

    hash: str
    """Of the faces."""
    ids: pa.Array
    """(N,) strings, in the order of the luminances."""
    mu: np.ndarray
    """(N, M) float32: means of q(z | x_LR)."""
    logvar: np.ndarray
    """(N, M) float32."""
    luminance: np.ndarray
    """(N,) float32, ascending: mean Y in [0, 1]."""

    def __len__(self) -> int:
        return len(self.luminance)

    def choose(self, mode: str, key: tuple[Any, ...], luminance: float) -> tuple[Style, np.ndarray, np.ndarray]:
        """A style, and mean and log variance of its code, (M,) each; a function of the bank and of what is given.

        Args:
            mode: random: any face. nearest: one of the NEAREST of about this luminance. interpolated: a point between
                the codes of any two.
            key: of the draw.
        """
        if mode == "interpolated":
            a, b = (seed_for(*key, which) % len(self) for which in ("a", "b"))
            t = np.float32(seed_for(*key, "t") / 2**63)
            mu, logvar = ((1 - t) * code[a] + t * code[b] for code in (self.mu, self.logvar))
            return [(self.ids[a].as_py(), float(1 - t)), (self.ids[b].as_py(), float(t))], mu, logvar
        first, count = 0, len(self)
        if mode == "nearest":
            place, count = int(np.searchsorted(self.luminance, luminance)), min(NEAREST, len(self))
            first = min(max(place - count // 2, 0), len(self) - count)
        i = first + seed_for(*key) % count
        return [(self.ids[i].as_py(), 1.0)], self.mu[i], self.logvar[i]


def encode_bank(network: StyleVAE, faces: Decoding, max_rejected: float, progress: bool = False) -> StyleBank:
    """The codes of real faces, by the network's E_LR; decoded part by part, none stays in memory.

    Raises:
        UsageError: none is usable, or more than the share `max_rejected` is not.
    """
    tables, parts = [], []
    title = f"style bank of {faces.source.uri}"
    with tqdm(desc=title, total=faces.rows, unit="face", disable=not progress, dynamic_ncols=True) as bar:
        for number, (start, end) in enumerate(pairwise(faces.starts)):
            images = np.zeros((end - start, *faces.shapes["image"]), np.uint8)
            tables.append(faces.decode(number, {"image": images}))
            parts.append(_codes(network, torch.from_numpy(images)))
            bar.update(end - start)
    index, facts = in_order(faces, tables)
    require_usable(faces.source.uri, facts.rejected, facts.rows, facts.first, max_rejected)
    table = torch.cat(parts)[torch.tensor(index["position"].to_numpy())]
    order = torch.argsort(table[:, -1], stable=True)
    mu, logvar = table[order, :-1].chunk(2, dim=1)
    ids = index["id"].combine_chunks().take(pa.array(order.numpy()))
    return StyleBank(facts.hash, ids, mu.numpy().copy(), logvar.numpy().copy(), table[order, -1].numpy().copy())


@torch.no_grad()
def _codes(network: StyleVAE, images: torch.Tensor) -> torch.Tensor:
    """(B, 3, h, w) uint8 -> mu, log variance and luminance, (B, 2M + 1)."""
    codes = in_fixed_batches(lambda x: torch.cat(network.encode_style(to_float(x)), 1), images, size=_AT_A_TIME)
    return torch.cat([codes, luminance(images)[:, None]], dim=1)


def luminance(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, h, w) uint8 -> mean Y, (B,) in [0, 1]."""
    return luma(to_float(images)).mean(dim=(1, 2, 3))


def save_bank(bank: StyleBank, key: str) -> bytes:
    """As a Parquet file.

    Args:
        key: of what the codes were made of: the faces, and the degrader.
    """
    columns = {"id": bank.ids, "mu": list(bank.mu), "logvar": list(bank.logvar), "luminance": bank.luminance}
    table = pa.table(columns).replace_schema_metadata({"hash": bank.hash, "key": key})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def load_bank(data: bytes, key: str) -> StyleBank | None:
    """What save_bank wrote; None where it is of another key, or damaged."""
    try:
        table = pq.read_table(pa.BufferReader(data))
        require_plain("style bank", table.schema)
    except (pa.ArrowInvalid, UsageError):
        return None
    told = table.schema.metadata or {}
    if told.get(b"key") != key.encode():
        return None
    mu, logvar = (np.array(table[name].to_pylist(), np.float32) for name in ("mu", "logvar"))
    return StyleBank(told[b"hash"].decode(), table["id"].combine_chunks(), mu, logvar, table["luminance"].to_numpy())
