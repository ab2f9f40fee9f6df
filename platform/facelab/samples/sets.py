"""Shard sets of sample faces: unpaired HR and real-world-like LR, a paired test set whose truth is known, and more of
that LR to tell how far two sets of the same kind are from each other."""

from typing import Any, ClassVar

import numpy as np
import ray.data
import torch
from pydantic import Field, model_validator

from facelab import storage
from facelab.config import JobConfig
from facelab.data import shards
from facelab.data.tensors import face_row
from facelab.images import encode_png, grid
from facelab.samples.faces import sample_face
from facelab.samples.nuisance import degrade
from facelab.seeding import seed_for

# No identity is in two sets.
_FIRST_IDENTITY = {"hr": 0, "lr": 10_000_000, "test": 20_000_000, "real": 30_000_000}


class SampleFacesConfig(JobConfig):
    """Draw sample faces: hr and lr to train on, test pairs with known truth (test_hr: their sharp side), real LR."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"n_hr": 60, "n_lr": 60, "n_test": 8, "n_real": 8},
        "demo": {},
        "paper": {"n_hr": 20_000, "n_lr": 20_000, "n_test": 1000, "n_real": 1000},
    }

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
    scale: int = Field(default=4, ge=2)
    """LR side = hr_size / scale."""
    overwrite: bool = False
    """Replace finished shard sets at --output."""

    def check_output(self) -> None:
        super().check_output()
        for name in (*_FIRST_IDENTITY, "test_hr"):
            shards.refuse_finished(storage.join(self.output, name), self.overwrite)

    @model_validator(mode="after")
    def _sizes_fit(self):
        if self.hr_size % self.scale:
            raise ValueError(f"hr_size {self.hr_size} is no multiple of scale {self.scale}")
        return self


def make_sample_sets(config: SampleFacesConfig) -> dict[str, Any]:
    """Run the job, with a contact sheet beside the sets; returns its summary."""
    counts = {"hr": config.n_hr, "lr": config.n_lr, "test": config.n_test, "real": config.n_real}
    items = []
    for name in (*counts, "test_hr"):
        shards.start_set(storage.join(config.output, name), config.overwrite)
    for name, count in counts.items():
        items += [{"set": name, "first": i, "count": min(100, count - i)} for i in range(0, count, 100)]

    def draw(task: dict[str, Any]) -> dict[str, Any]:
        return _draw(config, task["set"], task["first"], task["count"])

    tasks = ray.data.from_items(items, override_num_blocks=len(items)).map(draw).take_all()
    results = [written for task in tasks for written in task["written"]]
    summary: dict[str, Any] = {}
    for name in (*counts, "test_hr"):
        done = [shards.ShardSummary(r["rows"], r["row_hash"]) for r in results if r["set"] == name]
        kind = "pairs" if name == "test" else "faces"
        manifest = shards.finish_set(
            storage.join(config.output, name), kind, done, {"recipe": "sample", "seed": config.seed}
        )
        summary |= {f"n_{name}": manifest.rows, f"data_hash_{name}": manifest.hash}
    storage.write_bytes(storage.join(config.output, "contact_sheet.png"), encode_png(_contact_sheet(config)))
    return summary


def _contact_sheet(config: SampleFacesConfig, count: int = 12) -> np.ndarray:
    """Sharp sample faces above what the nuisance pipeline makes of them."""
    faces = [_face_and_lr(config, _FIRST_IDENTITY["hr"] + i) for i in range(count)]
    hr, lr = (torch.stack([torch.from_numpy(pair[k]).permute(2, 0, 1) for pair in faces]) for k in (0, 1))
    return grid([hr, lr], cell=96)


def _face_and_lr(config: SampleFacesConfig, identity: int) -> tuple[np.ndarray, np.ndarray]:
    face = sample_face(config.seed, identity, config.hr_size)
    return face, degrade(face, config.scale, np.random.default_rng((config.seed, identity, seed_for("nuisance"))))


def _draw(config: SampleFacesConfig, name: str, first: int, count: int) -> dict[str, Any]:
    faces, pairs = [], []
    for number in range(first, first + count):
        identifier = f"{name}{number:06d}"
        face, low = _face_and_lr(config, _FIRST_IDENTITY[name] + number)
        shown = encode_png(face if name in ("hr", "test") else low)
        faces.append(face_row(identifier, shown, "sample faces", min_side=1))
        if name == "test":
            pairs.append(
                dict(id=f"{identifier}#0", hr_id=identifier, variant=0, hr=shown, lr=encode_png(low), style_mode="none",
                     style_ids=[], style_bank="", seed=config.seed, model="known nuisance")
            )  # fmt: skip
    written = []
    sets = [("test_hr", faces, shards.FACE_SCHEMA), ("test", pairs, shards.PAIR_SCHEMA)]
    for part, rows, schema in sets if name == "test" else [(name, faces, shards.FACE_SCHEMA)]:
        summary = shards.write_shard(storage.join(config.output, part), rows, schema)
        written.append({"set": part, "rows": summary.rows, "row_hash": summary.row_hash})
    return {"written": written}
