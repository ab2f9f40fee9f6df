"""A set of faces, or at most so many of it, drawn by their ids: what can be held in memory of a set of any size."""

from dataclasses import dataclass
from functools import cached_property
from heapq import nsmallest
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from tqdm import tqdm

from facelab.data.decoding import Decoding, Facts, in_order
from facelab.data.faces import require_usable
from facelab.data.shards import RowHash
from facelab.errors import UsageError
from facelab.evaluation.measure import digest_of
from facelab.evaluation.rows import draw_key, is_first_variant


@dataclass(frozen=True, eq=False)
class Drawn:
    """Some faces of a set, in the order in which they were drawn: the first of them are a draw themselves."""

    uri: str
    hash: str
    """Of the rows of the whole set."""
    facts: Facts
    """Of the whole set."""
    rejected: list[dict[str, str]]
    """What could not be used of it: rows of REJECTED_SCHEMA."""
    ids: list[str]
    images: dict[str, torch.Tensor]
    """Column -> (n, 3, H, W) uint8: "image" of faces, "hr" and "lr" of pairs."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def given(self) -> torch.Tensor:
        """What was there before any degrader: the faces, or the sharp side of pairs."""
        return self.images["hr"] if "hr" in self.images else self.images["image"]

    @cached_property
    def digest(self) -> str:
        """Of the pixels of `given`."""
        found = RowHash()
        for image in self.given:
            found.add({"image": digest_of(image)})
        return found.hexdigest()


def draw(decoding: Decoding, limit: int, seed: int, max_rejected: float) -> Drawn:
    """At most `limit` usable faces, each once, of pairs in its first variant. Which, their ids and the seed decide. No
    more than these and one part of the set are in memory.

    Raises:
        UsageError: fewer than two are usable, or more than the share `max_rejected` is not.
    """
    source, tables = decoding.source, []
    found: list[tuple[int, str, dict[str, np.ndarray]]] = []
    with tqdm(desc=f"decoding {source.uri}", unit="row", total=decoding.rows, leave=False) as progress:
        for number, (start, stop) in enumerate(pairwise(decoding.starts)):
            pixels = {name: np.empty((stop - start, *shape), np.uint8) for name, shape in decoding.shapes.items()}
            tables.append(decoding.decode(number, pixels))
            for place, row in enumerate(tables[-1].to_pylist()):
                if not row["rejected"] and is_first_variant(source.kind, row["id"]):
                    own = {name: array[place].copy() for name, array in pixels.items()}  # without the rest of its part
                    found.append((draw_key(seed, row["id"]), row["id"], own))
            found = nsmallest(limit, found, key=lambda face: face[:2])
            progress.update(stop - start)
    index, facts = in_order(decoding, tables)
    require_usable(source.uri, facts.rejected, facts.rows, facts.first, max_rejected)
    first = set(index["id"].to_pylist())  # of equal faces, the first by name
    found = [face for face in found if face[1] in first]
    if len(found) < 2:
        raise UsageError(f"{source.uri}: a distance of sets needs 2 faces at least, not {len(found)}")
    bad = pa.concat_tables(tables).filter(pc.field("rejected") != "").to_pylist()
    rejected = [{"id": row["id"], "source": source.uri, "reason": row["rejected"]} for row in bad]
    images = {name: torch.from_numpy(np.stack([own[name] for *_, own in found])) for name in decoding.shapes}
    return Drawn(source.uri, source.hash or facts.hash, facts, rejected, [name for _, name, _ in found], images)
