"""The style bank: codes of real low-resolution faces, encoded once; and which of them a pair takes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm import tqdm

from facelab.data.tables import chunks
from facelab.data.tensors import FaceSet
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


def encode_bank(network: StyleVAE, faces: FaceSet, progress: bool = False) -> StyleBank:
    """The codes of all faces, by the network's E_LR."""
    parts = []
    with torch.no_grad():
        for some in chunks(tqdm(range(len(faces)), "style bank", unit="face", disable=not progress), _AT_A_TIME):
            images = faces.images[torch.tensor(some)]
            codes = in_fixed_batches(lambda x: torch.cat(network.encode_style(to_float(x)), 1), images, size=_AT_A_TIME)
            parts.append(torch.cat([codes, luminance(images)[:, None]], dim=1))
    table = torch.cat(parts)
    order = torch.argsort(table[:, -1], stable=True)
    mu, logvar = table[order, :-1].chunk(2, dim=1)
    ids = pa.array(faces.ids).take(pa.array(order.numpy()))
    return StyleBank(faces.hash, ids, mu.numpy().copy(), logvar.numpy().copy(), table[order, -1].numpy().copy())


def luminance(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, h, w) uint8 -> mean Y, (B,) in [0, 1]."""
    return luma(to_float(images)).mean(dim=(1, 2, 3))


def save_bank(bank: StyleBank, degrader: str) -> bytes:
    """As a Parquet file that names the degrader whose codes these are."""
    columns = {"id": bank.ids, "mu": list(bank.mu), "logvar": list(bank.logvar), "luminance": bank.luminance}
    table = pa.table(columns).replace_schema_metadata({"hash": bank.hash, "degrader": degrader})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def load_bank(data: bytes, faces_hash: str, degrader: str) -> StyleBank | None:
    """What save_bank wrote; None where it is of other faces or of another degrader, or damaged."""
    try:
        table = pq.read_table(pa.BufferReader(data))
    except pa.ArrowInvalid:
        return None
    if table.schema.metadata != {b"hash": faces_hash.encode(), b"degrader": degrader.encode()}:
        return None
    mu, logvar = (np.array(table[name].to_pylist(), np.float32) for name in ("mu", "logvar"))
    return StyleBank(faces_hash, table["id"].combine_chunks(), mu, logvar, table["luminance"].to_numpy())
