"""What a pass over the reference comes to, kept on this node's disk: the next model is compared with it at once."""

import hashlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import PIL
import torch

from facelab import storage
from facelab.data.cache import default_folder
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.measure import Measure
from facelab.evaluation.rows import ImageSet
from facelab.evaluation.tally import Passed, Side
from facelab.metrics.frechet import Moments
from facelab.metrics.kid import CAPACITY

_FORMAT = [1, PIL.__version__, torch.__version__]
"""What decides the numbers beside input and settings: our own version, and who decodes, resizes and extracts."""
_DIGEST = hashlib.sha256().digest_size


@dataclass(frozen=True)
class KnownReference:
    """A reference as one network sees it, and the file where that is kept: the SHA-256 of what follows, then arrays as
    numpy writes them. At 2048 dimensions, the scatter matrix takes 33 MB, and KID's sample 82 MB at most."""

    uri: str
    place: Path

    @classmethod
    def of(cls, config: EvaluateConfig, measure: Measure, images: ImageSet) -> Self:
        """The file is called by the SHA-256 of all that decides its numbers."""
        source, network = images.source, measure.features
        assert network is not None
        # What rounds otherwise: actors have one thread each.
        where = [config.gpus_per_actor > 0] if config.actors else [torch.cuda.is_available(), torch.get_num_threads()]
        least = config.least_side(measure.hr_size, sharp=True)
        size = [measure.hr_size, least, config.native and measure.scale, config.micro_batch]
        seen = [network.name, network.sha256, network.layers, CAPACITY, config.seed]
        what = [_FORMAT, where, size, seen, source.kind, source.hash, source.contents]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        return cls(images.uri, default_folder() / "references" / key)

    def load(self) -> Passed | None:
        """What an earlier pass came to; None where it was not kept, or not as it was written."""
        try:
            data = self.place.read_bytes()
        except OSError:  # whatever hinders the reading: it is measured anew, and `keep` tells what hinders the writing
            return None
        digest, body = data[:_DIGEST], data[_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        print(f"{self.uri}: measured before by this network, found in {self.place.parent}", flush=True)
        return _unpacked(body)

    def keep(self, passed: Passed) -> None:
        """For the next evaluation. A folder that cannot be written is told, and costs nothing but that."""
        body = _packed(passed)
        try:
            storage.write_bytes(str(self.place), hashlib.sha256(body).digest() + body)
        except UsageError as error:
            print(f"the next evaluation will measure {self.uri} again: {error} ($XDG_CACHE_HOME)", file=sys.stderr)


def _packed(passed: Passed) -> bytes:
    told = {"count": passed.count, "enlarged": passed.enlarged, "hash": f"{passed.hash:x}", "rejected": passed.rejected}
    arrays = {"told": np.frombuffer(json.dumps(told | {"layers": list(passed.sides)}).encode(), np.uint8)}
    for layer, side in passed.sides.items():
        (moments,) = side.parts
        arrays |= {f"{layer}.mean": moments.mean, f"{layer}.scatter": moments.scatter}
        arrays |= {f"{layer}.keys": side.sample.keys(), f"{layer}.rows": side.sample.rows().numpy()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _unpacked(data: bytes) -> Passed:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        told = json.loads(arrays["told"].tobytes())
        sides = {}
        for layer in told["layers"]:
            side = sides[layer] = Side()
            side.parts = [Moments.of(told["count"], arrays[f"{layer}.mean"], arrays[f"{layer}.scatter"])]
            side.sample.add(arrays[f"{layer}.keys"], torch.from_numpy(arrays[f"{layer}.rows"]))
    rejected = [(identifier, reason) for identifier, reason in told["rejected"]]
    return Passed(told["count"], told["enlarged"], int(told["hash"], 16), rejected, sides)
