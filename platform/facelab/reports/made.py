"""What runs made of images, as far as MLflow keeps it: evaluations image by image, samples of trainings."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from facelab.config import RUN
from facelab.errors import UsageError
from facelab.images import BadImage, decode
from facelab.reports.comparison import Comparison, listed
from facelab.reports.results import Result, read_json, result_of
from facelab.tracking.records import Recorded, artifacts_of, fetch_artifact

MOST_PICTURED = 24
"""Runs whose files are fetched."""
_FILES = ("summary.json", "protocol.json", "per_image.parquet", "examples.parquet")
"""Of an evaluation."""


@dataclass
class Made:
    """What some of the runs made of images, by their labels."""

    evaluated: list[Result] = field(default_factory=list)
    samples: dict[str, bytes] = field(default_factory=dict)
    """Label and name of its last picture -> PNG."""
    notes: list[str] = field(default_factory=list)
    """What could not be had, and why."""


def made_by(compared: Comparison, baseline: str | None, uri: str) -> Made:
    """What the first runs, and the baseline, have made."""
    places = list(range(len(compared.runs)))
    shown = sorted(sorted(places, key=lambda place: compared.runs[place].id != baseline)[:MOST_PICTURED])
    made, bare = Made(), []
    with tempfile.TemporaryDirectory(prefix="facelab-") as scratch:
        for place in shown:
            run, label = compared.runs[place], compared.labels[place]
            folder = Path(scratch) / run.id
            folder.mkdir()
            try:
                if run.job == "evaluate":
                    result = _evaluated(run, label, folder, uri)
                    made.evaluated.append(result)
                    seen = bool(result.pictures)
                else:
                    last = _last_picture(run, folder, uri)
                    made.samples |= {f"{label}, {name}": png for name, png in last.items()}
                    seen = bool(last)
            except (UsageError, BadImage) as error:  # the other runs can be compared all the same
                made.notes.append(f"{label} ({run.status}): without pictures and differences: {error}")
            else:
                bare += [] if seen else [label]
    if bare:
        made.notes.append(f"MLflow has no pictures of {listed(bare)}.")
    if len(shown) < len(places):
        made.notes.append(f"Pictures and differences are those of {len(shown)} of {len(places)} runs.")
    return made


def _evaluated(run: Recorded, label: str, folder: Path, uri: str) -> Result:
    kept = artifacts_of(uri, run.id)
    if _FILES[0] not in kept:
        raise UsageError(f"MLflow has no {_FILES[0]} of it")
    for name in _FILES:
        if name in kept:
            fetch_artifact(uri, run.id, name, str(folder))
    return result_of(label, str(folder), f"{RUN}{run.id}", read_json(str(folder / "summary.json"), f"{RUN}{run.id}"))


def _last_picture(run: Recorded, folder: Path, uri: str) -> dict[str, bytes]:
    """Name -> PNG of the last samples of a training, or of the first picture of another job, where there is one."""
    kept = artifacts_of(uri, run.id)
    samples = artifacts_of(uri, run.id, "samples") if "samples" in kept else []
    names = [name for name in samples if name.endswith(".png")][-1:] or [n for n in kept if n.endswith(".png")][:1]
    found = {Path(name).stem: Path(fetch_artifact(uri, run.id, name, str(folder))).read_bytes() for name in names}
    for data in found.values():
        decode(data)
    return found
