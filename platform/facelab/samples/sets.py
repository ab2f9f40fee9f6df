"""Shard sets of sample faces: unpaired HR and real-world-like LR, a paired test set whose truth is known, more of that
LR to tell how far two sets of the same kind are from each other, and what nobody has of the real world: the training
faces paired with their true LR."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from facelab import storage
from facelab.cluster import ray_session
from facelab.config import SizedConfig
from facelab.data import shards
from facelab.data.faces import face_row
from facelab.data.items import Item
from facelab.data.manifest import Manifest
from facelab.data.shard_set import ShardSet, claimed, refuse_other
from facelab.data.source import Row, Unit
from facelab.data.tables import chunks
from facelab.data.work import fill
from facelab.images import encode_png, grid
from facelab.job import Job
from facelab.samples.faces import sample_face
from facelab.samples.nuisance import degrade
from facelab.seeding import seed_for

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun

# No identity is in two of these.
_FIRST_IDENTITY = {"hr": 0, "lr": 10_000_000, "test": 20_000_000, "real": 30_000_000}
_SAME_FACES = {"test_hr": "test", "true": "hr"}  # set -> the one whose faces it has, ids and splits with them
_SETS = (*_FIRST_IDENTITY, *_SAME_FACES)
_PAIRS = ("test", "true")
_FACES_PER_UNIT = 100
_SOURCE = "sample faces"


class SampleFacesConfig(SizedConfig):
    """Draw sample faces: hr and lr to train on, test pairs with known truth (test_hr: their sharp side), real LR; true:
    hr with its true LR, for the ceiling of a demo alone."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"n_hr": 60, "n_lr": 60, "n_test": 8, "n_real": 8},
        "demo": {},
        "paper": {"n_hr": 20_000, "n_lr": 20_000, "n_test": 1000, "n_real": 1000},
    }

    WRITES = (*SizedConfig.WRITES, "contact_sheet.png", *(f"{name}/manifest.json" for name in _SETS))

    n_hr: int = Field(default=600, ge=1)
    """Sharp training faces."""
    n_lr: int = Field(default=600, ge=1)
    """Low-resolution training faces, of other identities."""
    n_test: int = Field(default=200, ge=1)
    """Held-out pairs of a sharp face and its true LR."""
    n_real: int = Field(default=200, ge=1)
    """Held-out LR faces of yet other identities."""
    hr_size: int = Field(default=64, ge=32)
    """Side of the sharp faces, px."""
    overwrite: bool = False
    """Delete the shard sets at --output, begun or finished, and write them anew."""

    def settings_of(self, name: str) -> dict[str, Any]:
        """What decides the rows of one set."""
        return {"recipe": "sample", "set": name, "seed": self.seed, "n": _counts(self)[name], "scale": self.scale,
                "hr_size": self.hr_size}  # fmt: skip

    def check_output(self) -> None:
        super().check_output()
        for name in _SETS if not self.overwrite else ():
            refuse_other(storage.join(self.output, name), self.settings_of(name))


def _counts(config: SampleFacesConfig) -> dict[str, int]:
    """Set -> faces."""
    counts = {"hr": config.n_hr, "lr": config.n_lr, "test": config.n_test, "real": config.n_real}
    return counts | {name: counts[same] for name, same in _SAME_FACES.items()}


def make_sample_sets(config: SampleFacesConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Do the job, with a contact sheet beside the sets; returns its summary."""
    summary: dict[str, Any] = {}
    with ray_session():  # one for all sets
        for name, count in _counts(config).items():
            kind, place = "pairs" if name in _PAIRS else "faces", storage.join(config.output, name)
            with claimed(place, kind, config.settings_of(name), {}, overwrite=config.overwrite) as target:
                manifest = target.finished() or _fill(config, target, name, count)
            summary |= {f"n_{name}": manifest.rows, f"data_hash_{name}": manifest.hash}
    storage.write_bytes(storage.join(config.output, "contact_sheet.png"), encode_png(_contact_sheet(config)))
    return summary


@dataclass(frozen=True)
class _DrawnUnit(Unit):
    """Faces that lie nowhere yet: the items are named as their rows will be."""

    first_identity: int = 0
    """Of the first item; the others follow."""


def _fill(config: SampleFacesConfig, target: ShardSet, name: str, count: int) -> Manifest:
    units = _units(target, name, count)
    fill(target, units, partial(_draw, config, name))
    return target.finish(target.totals([unit.name for unit in units]))


def _units(target: ShardSet, name: str, count: int) -> list[_DrawnUnit]:
    """A hundred faces each."""
    drawn, ending = _SAME_FACES.get(name, name), "#0" if name in _PAIRS else ""
    units = []
    for part in chunks(range(count), _FACES_PER_UNIT):
        items = tuple(Item(f"{drawn}{i:06d}{ending}", "") for i in part)
        unit = target.unit_name(item.name for item in items)
        first = _FIRST_IDENTITY[drawn] + part[0]
        units.append(_DrawnUnit(_SOURCE, "drawn", items, unit, len(items), first_identity=first))
    return units


def _draw(config: SampleFacesConfig, name: str, unit: _DrawnUnit) -> Iterator[Row]:
    for place, item in enumerate(unit.items):
        face, low = _face_and_lr(config, unit.first_identity + place)
        if name in _PAIRS:
            hr_id = item.name.removesuffix("#0")
            hr = encode_png(face)
            yield dict(
                id=item.name, hr_id=hr_id, variant=0, hr=hr, lr=encode_png(low), style_mode="none", style_ids=[],
                style_weights=[], style_bank="", seed=config.seed, model="known nuisance",
                split=shards.split_of(hr_id), hr_sha256=hashlib.sha256(hr).hexdigest(), rejected="",
            )  # fmt: skip
        else:
            shown = encode_png(face if name in ("hr", "test_hr") else low)
            yield face_row(item.name, shown, _SOURCE) | {"rejected": ""}


def _contact_sheet(config: SampleFacesConfig, count: int = 12) -> np.ndarray:
    """Sharp sample faces above what the nuisance pipeline makes of them."""
    faces = [_face_and_lr(config, _FIRST_IDENTITY["hr"] + i) for i in range(count)]
    hr, lr = (torch.stack([torch.from_numpy(pair[k]).permute(2, 0, 1) for pair in faces]) for k in (0, 1))
    return grid([hr, lr], cell=96)


def _face_and_lr(config: SampleFacesConfig, identity: int) -> tuple[np.ndarray, np.ndarray]:
    face = sample_face(config.seed, identity, config.hr_size)
    return face, degrade(face, config.scale, np.random.default_rng((config.seed, identity, seed_for("nuisance"))))


def sample_faces_plan(config: SampleFacesConfig) -> str:
    total = config.n_hr + config.n_lr + config.n_test + config.n_real
    same = ", ".join(f"/{name} of those of /{same}" for name, same in _SAME_FACES.items())
    return f"draw {total} faces of {config.hr_size} px into {config.output}/hr, /lr, /test and /real; {same}"


SAMPLE_FACES = Job("sample_faces", SampleFacesConfig, make_sample_sets, sample_faces_plan)
