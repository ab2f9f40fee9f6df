"""How close the LR that a degradation makes is to real LR: what the paper's Table 3 asks, and its Fig. 4 shows."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from facelab import storage
from facelab.config import Uri
from facelab.data.decoding import faces_of, pairs_of
from facelab.data.faces import LimitsConfig
from facelab.data.manifest import read_manifest
from facelab.data.shards import REJECTED_SCHEMA
from facelab.data.tables import write_table
from facelab.errors import UsageError
from facelab.evaluation.drawn import Drawn, draw
from facelab.evaluation.rows import draw_key
from facelab.evaluation.run import EXAMPLE_SCHEMA, EXAMPLES, send_artifacts
from facelab.images import encode_png, grid
from facelab.job import Job
from facelab.metrics import degradation_distances
from facelab.metrics.features import FeatureConfig, Features
from facelab.metrics.frechet import GROUPS, Moments, Reference, estimate
from facelab.metrics.intervals import jackknife
from facelab.metrics.number import Number
from facelab.metrics.protocol import Protocol
from models.resize import resize

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun


class EvaluateLRConfig(LimitsConfig):
    """Measure how close the LR of synthesised pairs is to real LR, beside bicubic LR of the same faces."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "demo": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "paper": {"features.layer": "relu1_1"},
    }

    ARTIFACTS: ClassVar[tuple[str, ...]] = (
        "examples.parquet", "protocol.json", "jackknife.json", "grid.png", "rejected.parquet",
    )  # fmt: skip
    WRITES = (*LimitsConfig.WRITES, *ARTIFACTS)

    pairs: Uri
    """URI of the pairs whose LR is judged, of jobs.synthesize; of several variants of a face, the first counts."""
    real: Uri
    """URI of real low-resolution faces, shards or a folder; they are compared at the size of the pairs' LR."""
    other: Uri | None = None
    """URI of other real low-resolution faces, best of other people: how far they are from --real is the floor, below
    which no degradation can be expected to come."""
    limit: int = Field(default=10_000, ge=2)
    """At most so many faces of each set are compared, drawn by their ids."""
    features: FeatureConfig = FeatureConfig()
    """Network and layer of the Fréchet distance."""


@dataclass(frozen=True)
class Distance:
    """How far a set of LR is from real LR, by one measure."""

    number: Number
    without: list[float]
    """The same without each of the groups of faces that the interval is made of; empty where there is none."""
    own: dict[str, Any]
    """Fields of the Protocol that are the measure's own."""


class RealLR:
    """Real low-resolution faces, which others are compared with. Images are (N, 3, h, h) uint8, all of one size."""

    def __init__(self, images: torch.Tensor, features: Features, name: str):
        """`name`: what the Fréchet distance over the main layer of `features` is called.

        Raises:
            ValueError: fewer than two images.
        """
        self.images, self.features, self.name = images, features, name
        self.reference = Reference(Moments().add(self._seen(images)))

    def _seen(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, d)."""
        return torch.cat([self.features(part)[self.features.main].cpu() for part in images.split(64)])

    def distances(self, images: torch.Tensor) -> dict[str, float]:
        """Name -> how far other LR is: in spectrum and noise, and by the Fréchet distance."""
        frechet = self.reference.distance(Moments().add(self._seen(images)))
        return degradation_distances(images, self.images) | {self.name: frechet}

    def estimates(self, images: torch.Tensor) -> dict[str, Distance]:
        """The same with intervals, where there are GROUPS images at least; they are in random order."""
        groups = torch.arange(len(images)) % GROUPS
        left_out = range(GROUPS) if len(images) >= GROUPS else ()
        without = [degradation_distances(images[groups != group], self.images) for group in left_out]
        found: dict[str, Distance] = {}
        for name, value in degradation_distances(images, self.images).items():
            values = [each[name] for each in without]
            low, high = jackknife(value, np.array(values)) if values else (None, None)
            found[name] = Distance(Number(value, low=low, high=high), values, {"colour": "luma of BT.601, full range"})
        seen, layer = self._seen(images), self.features.main
        fd = estimate(self.reference, [Moments().add(seen[groups == group]) for group in range(GROUPS)])
        number = Number(fd.value, low=fd.low, high=fd.high, infinity=fd.infinity, warning=fd.warning, layer=layer)
        own = {"colour": "rgb", "weights": self.features.sha256, "settings": {"layer": layer}}
        return found | {self.name: Distance(number, list(fd.without), own)}


def evaluate_lr(config: EvaluateLRConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job: writes its ARTIFACTS to --output; returns the summary.

    Raises:
        UsageError: unusable sets, or no weights of the network.
    """
    features = Features(config.features).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name in config.ARTIFACTS:  # of an earlier evaluation
        storage.delete(storage.join(config.output, name))
    sets = draw_sets(config)
    if run:
        for role, faces in sets.items():
            run.takes(role, faces.uri, faces.hash, faces.facts.rows)
    real = RealLR(sets["real"].given, features, config.features.names(features.main)[0])
    numbers, found = measured(real, sets)
    protocols = {name: protocol_of(name, distance, sets) for name, distance in found.items()}
    without = {name: distance.without for name, distance in found.items() if distance.without}
    _write_json(config, "protocol.json", {name: asdict(protocol) for name, protocol in protocols.items()})
    _write_json(config, "jackknife.json", without)
    if rejected := [row for faces in sets.values() for row in faces.rejected]:
        write_table(storage.join(config.output, "rejected.parquet"), rejected, REJECTED_SCHEMA)
    _write_pictures(config, sets)
    if run:
        send_artifacts(run, config.output, config.ARTIFACTS)
    fingerprints = {f"protocol_{name}": protocol.fingerprint for name, protocol in protocols.items()}
    return {"model": _degrader(config.pairs)} | numbers | _counts(sets) | fingerprints


def draw_sets(config: EvaluateLRConfig) -> dict[str, Drawn]:
    """pairs, real and, where it is given, other.

    Raises:
        UsageError: see `draw`; or the pairs are not square.
    """
    pairs = pairs_of(config.pairs)
    _, height, size = pairs.shapes["lr"]
    if height != size:
        raise UsageError(f"{config.pairs}: LR of {size}x{height} px, but square faces are compared: synthesise them")
    least = config.least_side(size, sharp=False)
    named = {"real": config.real} | ({"other": config.other} if config.other else {})
    decodings = {"pairs": pairs} | {role: faces_of(uri, size, least) for role, uri in named.items()}
    return {role: draw(each, config.limit, config.seed, config.max_rejected) for role, each in decodings.items()}


def _bicubic(pairs: Drawn) -> torch.Tensor:
    """Of the same faces, (n, 3, h, h) uint8: the baseline that everybody knows."""
    return resize(pairs.given, pairs.images["lr"].shape[-1])


def measured(real: RealLR, sets: dict[str, Drawn]) -> tuple[dict[str, Any], dict[str, Distance]]:
    """The numbers as a summary has them, and the distances: of the pairs' LR, and of bicubic LR, with the suffix
    _bicubic. Those of other real LR, with the suffix _floor, are the floor of the former, at the same N."""
    lr = sets["pairs"].images["lr"]
    found, bicubic = real.estimates(lr), real.estimates(_bicubic(sets["pairs"]))
    floors = real.estimates(sets["other"].given[: len(lr)]) if "other" in sets else {}
    n_floor = min(len(lr), len(sets["other"])) if floors else 0
    fewer = real.distances(lr[:n_floor]) if 0 < n_floor < len(lr) else {}
    numbers: dict[str, Any] = {}
    for name, distance in found.items():
        number = distance.number
        if not floors:
            warning = "; ".join(filter(None, (number.warning, "no floor, as --other was not given")))
            number = replace(number, warning=warning)
        else:
            least = floors[name].number
            number = replace(number, floor=least.value, floor_n=n_floor)
            if fewer:
                number = replace(number, at_floor=fewer[name], at_floor_n=n_floor)
            numbers |= Number(least.value, low=least.low, high=least.high).flat(f"{name}_floor")
        numbers |= number.flat(name) | bicubic[name].number.flat(f"{name}_bicubic")
    return numbers, found | {f"{name}_bicubic": distance for name, distance in bicubic.items()}


def protocol_of(name: str, distance: Distance, sets: dict[str, Drawn]) -> Protocol:
    """The sharp faces are what all degradations are given: their hash is that of the inputs."""
    pairs, real = sets["pairs"], sets["real"]
    return Protocol(
        name, n=len(pairs), inputs=pairs.digest, size=str(pairs.images["lr"].shape[-1]),
        lr="bicubic" if name.endswith("_bicubic") else "pairs", reference=real.digest, n_reference=len(real),
        **distance.own,
    )  # fmt: skip


def _counts(sets: dict[str, Drawn]) -> dict[str, Any]:
    """Faces that were compared; of the real ones, those of the whole set that were not usable, or were smaller."""
    counts: dict[str, Any] = {"n": len(sets["pairs"]), "data_hash": sets["pairs"].digest[:16]}
    for role in ("real", "other"):
        if role in sets:
            facts = sets[role].facts
            counts |= {f"n_{role}": len(sets[role]), f"n_rejected_{role}": facts.rejected}
            counts |= {f"n_enlarged_{role}": facts.enlarged}
    return counts


def _degrader(uri: str) -> str:
    """What made the pairs, as jobs.synthesize wrote it down; of other pairs, the name of their folder."""
    manifest = read_manifest(uri)
    assert manifest is not None
    return str(manifest.settings.get("model") or PurePosixPath(uri).name)


def _write_json(config: EvaluateLRConfig, name: str, values: dict[str, Any]) -> None:
    storage.write_text(storage.join(config.output, name), json.dumps(values, indent=2))


def _write_pictures(config: EvaluateLRConfig, sets: dict[str, Drawn]) -> None:
    """grid.png: sharp faces, their bicubic LR and the pairs' LR, one below the other, and real LR for look.
    examples.parquet: the former, for a report that puts degradations side by side below their bicubic LR."""
    pairs = sets["pairs"]
    shown = sorted(range(len(pairs)), key=lambda row: draw_key(0, pairs.ids[row]))[:EXAMPLES]  # whatever the seed
    hr, lr, bicubic = (images[shown] for images in (pairs.given, pairs.images["lr"], _bicubic(pairs)))
    lines = [list(hr), list(bicubic), list(lr), list(sets["real"].given[: len(shown)])]
    storage.write_bytes(storage.join(config.output, "grid.png"), encode_png(grid(lines, cell=96)))
    rows: list[dict[str, Any]] = []
    for name, *images in zip([pairs.ids[row] for row in shown], bicubic, lr, hr, strict=True):
        encoded = dict(zip(("lr", "sr", "hr"), map(encode_png, images), strict=True))
        rows.append({"role": "test", "id": name} | encoded)
    write_table(storage.join(config.output, "examples.parquet"), rows, EXAMPLE_SCHEMA)


def evaluate_lr_plan(config: EvaluateLRConfig) -> str:
    floor = f", and {config.other}, the floor," if config.other else ""
    return (
        f"compare the LR of {config.pairs} and bicubic LR of the same faces{floor} with {config.real}, at most "
        f"{config.limit} faces of each, by {config.features.network}; write to {config.output}"
    )


EVALUATE_LR = Job("evaluate_lr", EvaluateLRConfig, evaluate_lr, evaluate_lr_plan)
