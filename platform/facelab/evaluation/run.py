"""A model, or finished images of any tool, on its test sets: one pass over Ray Data or in the process itself."""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
from tqdm import tqdm

from facelab import storage
from facelab.data.tables import chunks, write_table
from facelab.data.work import stream
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.measure import Face, Measure
from facelab.evaluation.reference import KnownReference
from facelab.evaluation.rows import ImageSet, draw_key, image_sets, read_rows
from facelab.evaluation.subject import load_subject
from facelab.evaluation.tally import Tally
from facelab.images import BadImage, encode_png, grid
from facelab.job import Job
from models.resize import resize

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking.runs import JobRun

EXAMPLES = 12
_MOST_FILES_PER_TASK = 256
EXAMPLE_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("role", "id")] + [(n, pa.binary()) for n in ("lr", "sr", "hr")]
)


def evaluate_and_log(config: EvaluateConfig, run: "JobRun") -> dict[str, Any]:
    """Do the job; its tables and pictures also go to its MLflow run, which resolves a models:/ URI."""
    with run.model_folder(config.model) as model:
        summary = evaluate(config.model_copy(update={"model": model}), run)
    send_artifacts(run, config.output, config.ARTIFACTS)
    return summary


def send_artifacts(run: "JobRun", output: str, names: Iterable[str]) -> None:
    """To the job's MLflow run, those files of its output that there are."""
    for name in names:
        if storage.exists(place := storage.join(output, name)):
            with storage.local_copy(place) as file:
                run.artifact(file)


def evaluate(config: EvaluateConfig, run: "JobRun | None" = None) -> dict[str, Any]:
    """Writes per_image.parquet, protocol.json, examples.parquet, grid.png and real.png to --output, jackknife.json
    where there is a Fréchet distance with an interval, and rejected.parquet where an image could not be used; returns
    the summary.

    Raises:
        UsageError: unusable model or sets.
    """
    sets = image_sets(config)
    subject = load_subject(config, sets)
    measure = Measure(config, subject, sets)
    for name in config.ARTIFACTS:  # of an earlier evaluation
        storage.delete(storage.join(config.output, name))
    known = KnownReference.of(config, measure, sets["reference"]) if "reference" in sets else None
    found = known.load() if known else None
    passed = {role: images for role, images in sets.items() if role != "reference" or found is None}
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        local = Path(folder)
        total = sum(images.rows for images in passed.values())
        with (
            Tally(config, measure, sets, local) as tally,
            tqdm(total=total, desc=f"measuring {subject.name}", unit="image", leave=False) as progress,
        ):
            for batch in _measured(config, measure, passed):
                tally.add(batch)
                progress.update(len(batch["id"]))
            if found:
                tally.take_reference(found)
        if tally.rejected.rows:
            storage.upload(local / "rejected.parquet", storage.join(config.output, "rejected.parquet"))
        summary, protocols = tally.finish()
        if run:
            for role, images in sets.items():
                digest = images.source.hash or tally.hashes[role].hexdigest()
                run.takes(role, images.uri, digest, tally.counts[role])
        if known and not found:
            known.keep(tally.reference())
        storage.upload(local / "per_image.parquet", storage.join(config.output, "per_image.parquet"))
    storage.write_text(storage.join(config.output, "protocol.json"), json.dumps(protocols, indent=2))
    if tally.without:
        storage.write_text(storage.join(config.output, "jackknife.json"), json.dumps(tally.without, indent=2))
    _write_examples(config, measure.to(torch.device("cpu")), sets)
    version = subject.version or tally.outputs.hexdigest()[:16]
    return {"model": f"{subject.name}@{version}"} | summary


def _measured(config: EvaluateConfig, measure: Measure, sets: dict[str, ImageSet]) -> Iterator[dict[str, Any]]:
    """The batches of all sets, in the order of their items."""
    if config.actors:
        units = [unit for images in sets.values() for unit in images.units(_files_per_task(images, config.actors))]
        yield from stream(units, read_rows, measure, config, config.batch_size)
        return
    measure.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    rows = (row for images in sets.values() for unit in images.units(1) for row in read_rows(unit))
    for chunk in chunks(rows, config.batch_size):
        yield measure({key: [row[key] for row in chunk] for key in chunk[0]})


def _files_per_task(images: ImageSet, actors: int) -> int:
    """Every actor gets a share of a folder."""
    return min(-(-images.rows // (2 * actors)), _MOST_FILES_PER_TASK)


def _write_examples(config: EvaluateConfig, measure: Measure, sets: dict[str, ImageSet]) -> None:
    """Some images of each set, as they went in and came out: for a report that puts models side by side."""
    rows: list[dict[str, Any]] = []
    for role, name in (("test", "grid.png"), ("real", "real.png")):
        if role not in sets:
            continue
        groups: dict[tuple, list[Face]] = defaultdict(list)
        for row in _some_rows(sets[role]):
            try:
                if not row["rejected"]:
                    face = measure.decode(0, role, row["id"], row["hr"], row["lr"])
                    groups[face.sizes].append(face)
            except BadImage:
                continue  # counted and told by the tally
        made = [pair for faces in groups.values() for pair in zip(faces, measure.outputs(faces), strict=True)]
        usable = [(face, image) for face, image in made if isinstance(image, torch.Tensor)]
        shown = sorted(usable, key=lambda pair: draw_key(0, pair[0].id))[:EXAMPLES]
        for face, image in shown:
            pictures = {"lr": face.lr, "sr": image, "hr": face.hr}
            encoded = {key: None if x is None else encode_png(x) for key, x in pictures.items()}
            rows.append({"role": role, "id": face.id, **encoded})
        columns = [[face.lr, _enlarged(face, image), image, face.hr] for face, image in shown]
        lines = [list(line) for line in zip(*columns, strict=True) if line[0] is not None]
        if lines:
            storage.write_bytes(storage.join(config.output, name), encode_png(grid(lines, cell=96)))
    write_table(storage.join(config.output, "examples.parquet"), rows, EXAMPLE_SCHEMA)


def _some_rows(images: ImageSet) -> list[dict[str, Any]]:
    """Rows to choose examples from, the same for every model; drawn by id, as neighbours are often one person."""
    items = list(images.source.items)
    chosen = sorted(items, key=lambda item: draw_key(0, item.name))[: 2 * EXAMPLES]
    rows = read_rows(images.unit(chosen if images.kind == "folder" else items[:1]))
    return sorted(rows, key=lambda row: draw_key(0, row["id"]))[: 2 * EXAMPLES]  # some may be unusable


def _enlarged(face: Face, image: torch.Tensor) -> torch.Tensor:
    assert face.lr is not None
    return resize(face.lr[None], image.shape[-2], image.shape[-1])[0]


def evaluate_plan(config: EvaluateConfig) -> str:
    test = f" on {config.test}" if config.test else ""
    real = f" on {config.real} against {config.reference}" if config.real else ""
    how = f"{config.actors} actors" if config.actors else "this process"
    return f"measure {config.model}{test}{' and' if test and real else ''}{real} in {how}; write to {config.output}"


EVALUATE = Job("evaluate", EvaluateConfig, evaluate_and_log, evaluate_plan)
