"""Rows of numbers -> the numbers of a set, in one pass and in memory that does not grow with it."""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch

from facelab.data import shards
from facelab.data.faces import require_usable
from facelab.data.tables import LongTable
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.measure import FEATURES, Measure
from facelab.evaluation.rows import ImageSet, draw_key, face_of
from facelab.metrics import frechet
from facelab.metrics.intervals import Bootstrap
from facelab.metrics.kid import CAPACITY, Sample, kid
from facelab.metrics.number import Number
from facelab.metrics.protocol import Protocol

Found = tuple[str, Number, Protocol]
"""A number by its name, and how it was computed."""


class Side:
    """Features of one set: moments, in parts where an interval is wanted, and a sample for KID."""

    def __init__(self, parts: int = 1):
        self.parts = [frechet.Moments() for _ in range(parts)]
        self.sample = Sample()

    @property
    def count(self) -> int:
        return sum(part.count for part in self.parts)

    def add(self, keys: np.ndarray, features: torch.Tensor) -> None:
        part = (self.count + torch.arange(len(features))) % len(self.parts)
        for index in part.unique().tolist():
            self.parts[index].add(features[part == index])
        self.sample.add(keys, features)


@dataclass(frozen=True)
class Passed:
    """What a whole pass over the reference comes to."""

    count: int
    """Usable faces."""
    enlarged: int
    """Of these, those that were smaller."""
    hash: int
    """RowHash.total of their pixels."""
    rejected: list[tuple[str, str]]
    """Ids of the others, and why."""
    sides: dict[str, Side]
    """Layer -> features."""


class Tally:
    """Takes the batches of `Measure`, whatever their sizes; knows the summary at the end.

    To be closed, also after an error: `with Tally(…) as tally`.
    """

    def __init__(self, config: EvaluateConfig, measure: Measure, sets: dict[str, ImageSet], folder: Path):
        """`folder`: a local one, for per_image.parquet and rejected.parquet."""
        self.config, self.measure, self.sets = config, measure, sets
        self.names = list(measure.columns)
        roles = ("test", "real", "reference")
        self.counts, self.hashes = dict.fromkeys(roles, 0), {role: shards.RowHash() for role in roles}
        self.outputs = shards.RowHash()
        self.without: dict[str, list[float]] = {}
        """Of each Fréchet distance: see FrechetEstimate."""
        self.n_rejected, self.n_enlarged = dict.fromkeys(roles, 0), dict.fromkeys(roles, 0)
        self.first_rejected: dict[str, str] = {}
        """Role -> one rejected image and why."""
        self.rejected_reference: list[tuple[str, str]] = []
        """All of them and why."""
        self.bootstraps = {role: Bootstrap(len(self.names), config.seed) for role in ("test", "real")}
        self.infinite = {role: np.zeros(len(self.names), np.int64) for role in ("test", "real")}
        """Images for which a metric is infinite: PSNR of equal ones."""
        layers = measure.features.layers if measure.features else ()
        # Of the real side, what an interval needs.
        self.sides = {layer: {"real": Side(frechet.GROUPS), "test": Side(), "reference": Side()} for layer in layers}
        self.drawn = {layer: frechet.Moments() for layer in layers}
        """As many real outputs as there are test faces, where those are fewer."""
        schema = pa.schema([("role", pa.string()), ("id", pa.string()), *((name, pa.float64()) for name in self.names)])
        self.tables = ExitStack()
        self.table, self.rejected = (
            self.tables.enter_context(LongTable(folder / name, columns))
            for name, columns in (("per_image.parquet", schema), ("rejected.parquet", shards.REJECTED_SCHEMA))
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.tables.close()

    def add(self, batch: dict[str, Any]) -> None:
        """Fold in one batch."""
        reasons, roles, ids = (np.asarray(batch[key], dtype=str) for key in ("rejected", "role", "id"))
        for role in self.counts:
            rows, bad = (np.flatnonzero((roles == role) & found) for found in (reasons == "", reasons != ""))
            if len(bad):
                self._reject(role, list(zip(ids[bad].tolist(), reasons[bad].tolist(), strict=True)))
            if len(rows):
                self._add_images(role, rows, ids, batch)

    def _reject(self, role: str, rejected: list[tuple[str, str]]) -> None:
        """Of some images, id and reason."""
        self.n_rejected[role] += len(rejected)
        self.first_rejected.setdefault(role, ": ".join(rejected[0]))
        ids, reasons = zip(*rejected, strict=True)
        self.rejected.add({"id": ids, "source": [self.sets[role].uri] * len(ids), "reason": reasons})
        if role == "reference":
            self.rejected_reference += rejected

    def reference(self) -> Passed:
        """What its batches came to."""
        sides = {layer: sides["reference"] for layer, sides in self.sides.items()}
        counts = self.counts["reference"], self.n_enlarged["reference"]
        return Passed(*counts, self.hashes["reference"].total, self.rejected_reference, sides)

    def take_reference(self, passed: Passed) -> None:
        """Instead of its batches, and after those of the other roles: what an earlier pass came to."""
        self.counts["reference"], self.n_enlarged["reference"] = passed.count, passed.enlarged
        self.hashes["reference"] = shards.RowHash(passed.hash)
        if passed.rejected:
            self._reject("reference", passed.rejected)
        for layer, side in passed.sides.items():
            self.sides[layer]["reference"] = side

    def _add_images(self, role: str, rows: np.ndarray, ids: np.ndarray, batch: dict[str, Any]) -> None:
        self.counts[role] += len(rows)
        self.n_enlarged[role] += int(np.asarray(batch["enlarged"])[rows].sum())
        for i in rows:
            self.hashes[role].add({"image": str(batch["digest"][i])})
        names = [str(i) for i in ids[rows]]
        if role != "reference":
            for i in rows:
                self.outputs.add({"image": str(batch["output_digest"][i])})
            values = np.stack([np.asarray(batch[n], np.float64)[rows] for n in self.names], 1) if self.names else None
            columns = {name: pa.array(values[:, k], from_pandas=True) for k, name in enumerate(self.names)}  # pyrefly: ignore
            self.table.add({"role": [role] * len(rows), "id": names, **columns})
            if values is not None:
                self.infinite[role] += np.isinf(values).sum(axis=0)
                for name, own in zip(names, values, strict=True):
                    self.bootstraps[role].add(face_of(self.sets[role].kind, name), own)  # variants belong together
        if self.sides:
            self._add_features(role, rows, names, batch)

    def _add_features(self, role: str, rows: np.ndarray, names: list[str], batch: dict[str, Any]) -> None:
        keys = np.array([draw_key(self.config.seed, name) for name in names], np.uint64)
        # By id, not by what was found: a network may yield nan. Only drawn test faces have features.
        wanted = np.array([role != "test" or self.measure.is_drawn(name) for name in names])
        threshold = self.measure.thresholds.get(role)
        for layer, sides in self.sides.items():
            features = torch.from_numpy(np.asarray(batch[FEATURES + layer], np.float32)[rows])
            if wanted.any():
                sides[role].add(keys[wanted], features[torch.from_numpy(wanted)])
            if role == "real" and threshold is not None:
                self.drawn[layer].add(features[torch.from_numpy(keys <= np.uint64(threshold))])

    def finish(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """The summary, and the protocol of each of its numbers.

        Raises:
            UsageError: nothing usable in a set, too many rejected, or shards are missing.
        """
        self._check_counts()
        summary: dict[str, Any] = {}
        protocols: dict[str, Protocol] = {}

        def take(found: Iterator[Found]) -> None:
            for name, number, protocol in found:
                summary.update(number.flat(name))
                protocols[name] = protocol

        if "test" in self.sets:
            take(self._per_image("test", ""))
            summary |= {"n": self.counts["test"], "lr_kind": self.sets["test"].lr_kind}
            summary |= {"n_rejected": self.n_rejected["test"], "n_enlarged": self.n_enlarged["test"]}
            summary["data_hash"] = self.hashes["test"].hexdigest()[:16]
        if "real" in self.sets:
            take(self._per_image("real", "_real"))
            summary |= {"n_real": self.counts["real"], "n_reference": self.counts["reference"]}
            for name, counts in (("n_rejected", self.n_rejected), ("n_enlarged", self.n_enlarged)):
                summary |= {f"{name}_{role}": counts[role] for role in ("real", "reference")}
            for layer in self.sides:
                take(self._distances(layer))
        summary |= {f"protocol_{name}": protocol.fingerprint for name, protocol in protocols.items()}
        return summary, {name: asdict(protocol) for name, protocol in protocols.items()}

    def _check_counts(self) -> None:
        for role, images in self.sets.items():
            rejected, seen = self.n_rejected[role], self.n_rejected[role] + self.counts[role]
            require_usable(images.uri, rejected, seen, self.first_rejected.get(role, ""), self.config.max_rejected)
            shards.require_rows(images.uri, images.kind, seen, images.rows)

    def _per_image(self, role: str, suffix: str) -> Iterator[Found]:
        """Means over the images of a role, but for metrics that are defined for none of them."""
        intervals = self.bootstraps[role].intervals()
        measured = zip(self.measure.columns.items(), self.infinite[role], intervals, strict=True)
        for (column, metric), infinite, interval in measured:
            defined = int(infinite) + (interval.n if interval else 0)
            if not defined:
                continue
            if infinite or interval is None:
                number = Number(math.inf, infinite=int(infinite))  # as the mean is, with equal images
            else:
                number = Number(interval.mean, low=interval.low, high=interval.high)
            if defined < self.counts[role]:
                number = replace(number, undefined=self.counts[role] - defined)
            yield column + suffix, number, self._protocol(column + suffix, role, **metric.record(column))

    def _protocol(self, name: str, role: str, **own: Any) -> Protocol:
        size = "native" if self.config.native else str(self.measure.hr_size)
        if self.sets[role].kind == "pairs":
            size = "of the pairs"
        inputs = self.hashes[role].hexdigest()
        lr = self.sets[role].lr_kind
        return Protocol(name, n=self.counts[role], inputs=inputs, size=size, lr=lr, **own)

    def _distances(self, layer: str) -> Iterator[Found]:
        """FD or FID, and KID, over a layer."""
        network, sides = self.measure.features, self.sides[layer]
        assert network is not None
        if min(sides["real"].count, sides["reference"].count) < 2:
            raise UsageError(
                f"{self.config.real}, {self.config.reference}: {sides['real'].count} and {sides['reference'].count} "
                "usable images; a Fréchet distance needs 2 on each side"
            )
        common = {
            "colour": "rgb",
            "weights": network.sha256,
            "reference": self.hashes["reference"].hexdigest(),
            "n_reference": self.counts["reference"],
        }
        name, kernel = self.config.features.names(layer)
        distance = replace(self._frechet(name, layer), layer=layer, dims=network.dims[layer])
        yield name, distance, self._protocol(name, "real", **common, settings={"layer": layer})
        distance = self._kernel(layer)
        settings = {"layer": layer, "subset_size": distance.subset_size, "seed": self.config.seed}
        settings |= {"drawn_from_at_most": CAPACITY}
        yield kernel, distance, self._protocol(kernel, "real", **common, settings=settings)

    def _frechet(self, name: str, layer: str) -> Number:
        """With interval, extrapolation and floor: sharp test faces against the sharp reference, at the same N."""
        sides, drawn = self.sides[layer], self.drawn[layer]
        base, floor = frechet.Reference(sides["reference"].parts[0], "reference"), sides["test"]
        found = frechet.estimate(base, sides["real"].parts)
        if found.without:
            self.without[name] = list(found.without)
        least = base.distance(floor.parts[0], "test") if floor.count >= 2 else None
        missing = None if "test" in self.sets else "no floor, as --test was not given"
        if least is not None and math.isnan(least):
            least, missing = None, f"no floor, as {frechet.NOT_FINITE}"
        warning = "; ".join(filter(None, (found.warning, missing))) or None
        number = Number(found.value, low=found.low, high=found.high, infinity=found.infinity, warning=warning)
        if least is not None:
            number = replace(number, floor=least, floor_n=floor.count)
            if drawn.count >= 2 and not math.isnan(found.value):  # fewer test faces than real ones
                number = replace(number, at_floor=base.distance(drawn), at_floor_n=drawn.count)
        return number

    def _kernel(self, layer: str) -> Number:
        """With the deviation over its subsets, and the floor."""
        reference, real, floor = (self.sides[layer][role] for role in ("reference", "real", "test"))
        rows, seed = reference.sample.rows(), self.config.seed
        found = kid(rows, real.sample.rows(), seed=seed)
        if math.isnan(found.mean):
            return Number(math.nan, subset_size=found.subset_size, warning=frechet.NOT_FINITE)
        least = kid(rows, floor.sample.rows(), seed=seed).mean if floor.count >= 2 else math.nan
        least = None if math.isnan(least) else least
        return Number(found.mean, subset_size=found.subset_size, std=found.std, floor=least)
