"""The whole pipeline in one go: faces, styleVAE, synthesis, one SR network on four kinds of pairs, numbers, report."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch

from facelab import storage
from facelab.cluster import ray_session
from facelab.config import Uri
from facelab.data.tensors import load_faces, load_pairs
from facelab.evaluation.degradation import RealLR
from facelab.evaluation.rows import face_of
from facelab.evaluation.run import EVALUATE
from facelab.experiments.faces import OwnFacesConfig, experiment_step, face_sets, face_steps
from facelab.experiments.steps import Step, run_steps
from facelab.job import Job
from facelab.metrics import paired_difference, share_of_gap
from facelab.metrics.features import FeatureConfig, Features
from facelab.metrics.intervals import Interval, jackknifed
from facelab.metrics.number import Number
from facelab.metrics.protocol import metric_names
from facelab.reports.demo import COMPARED, DemoResults, demo_report, distance_names
from facelab.reports.results import per_image
from facelab.synthesis.classical import Classical
from facelab.synthesis.job import SYNTHESIZE
from facelab.training.config import TrainConfig
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR
from models.resize import resize

if TYPE_CHECKING:
    from facelab.tracking.runs import JobRun

NETWORK = "attentive"
"""Of every row, so that rows differ in nothing but their training pairs."""
PRETRAIN_STEPS = {"debug": 4, "demo": 150, "paper": None}
"""Of the network that all rows start from, on bicubic pairs; by preset, None: the whole recipe."""
ROW_STEPS = {"debug": 4, "demo": 200, "paper": None}
"""Of each row after that, of drawn faces."""
OWN_ROW_STEPS = ROW_STEPS | {"demo": 600}
"""The same of one's own faces, which differ more, and there is one row less to train."""


class DemoConfig(OwnFacesConfig):
    """Run the whole pipeline on sample faces, or on your own with --hr, --lr, --test and --real."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "demo": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "paper": {"features.layer": "relu1_1"},
    }

    WRITES = (*OwnFacesConfig.WRITES, "report.html")

    preset: Literal["debug", "demo", "paper"] = "demo"
    """Preset of every stage: debug (a minute), demo (some minutes on 2 cores), paper (GPUs)."""
    output: Uri = "outputs/demo"
    """Folder for report.html, summary.json, mlflow.db and a folder for each stage."""
    workers: int = 0
    """Ray Train workers of each training; 0 trains in the process itself."""
    max_steps: int | None = None
    """Stop each training after so many updates."""
    gpu: bool | None = None
    """Train on GPUs, one for each worker; no-gpu: on CPUs. None: if there are enough now, which a cluster that grows
    from nothing never has."""
    features: FeatureConfig = FeatureConfig()
    """Network and layer of the Fréchet distance between sets of LR faces."""

    def database(self) -> Path:
        local = not self.output.startswith("s3://")
        return Path(self.output) / "mlflow.db" if local else super().database()


def row_pairs(config: DemoConfig) -> dict[str, dict[str, str]]:
    """SR row of the table -> the option of train_sr that names its pairs. B is bicubic, S styleVAE, as in the paper's
    Table 2; Ceiling, the true degradation, is there for drawn faces alone: of others nobody knows it."""
    faces, made = face_sets(config), partial(storage.join, config.output, "pairs")
    rows = {"B": {"hr": faces.hr}, "Classical": {"pairs": made("classical")}, "S": {"pairs": made("stylevae")}}
    return rows | ({"Ceiling": {"pairs": faces.true}} if faces.true else {})


def row_folders(config: DemoConfig) -> dict[str, str]:
    """SR row -> folder of its training."""
    return {row: f"sr/{row.lower()}" for row in row_pairs(config)}


def demo_steps(config: DemoConfig, tracking_uri: str) -> list[Step]:
    """Every job of a demo, in order."""
    faces, steps = face_sets(config), face_steps(config, tracking_uri)
    stylevae, pretrained = (storage.join(config.output, folder) for folder in ("stylevae", "pretrained"))

    def add(folder: str, job: Job, **values: Any) -> None:
        if issubclass(job.config, TrainConfig):
            values |= {"workers": config.workers, "compute": {"gpu": config.gpu}}
        steps.append(experiment_step(config, tracking_uri, folder, job, **values))

    def limit(steps: int | None) -> dict[str, int]:
        most = config.max_steps or steps
        return {"max_steps": most} if most else {}

    add("stylevae", TRAIN_DEGRADER, model="stylevae", hr=faces.hr, lr=faces.lr, **limit(None))
    add("pairs/classical", SYNTHESIZE, hr=faces.hr, degrader="classical")
    for folder, hr in (("pairs/stylevae", faces.hr), ("test_pairs", faces.test_hr)):
        add(folder, SYNTHESIZE, hr=hr, lr=faces.lr, degrader=stylevae)
    name, folders = f"facelab-{NETWORK}", row_folders(config)
    add("pretrained", TRAIN_SR, model=NETWORK, hr=faces.hr, register_as=f"{name}-pretrained",
        **limit(PRETRAIN_STEPS[config.preset]))  # fmt: skip
    watch = {"watch": faces.test} if faces.test else {}
    row_steps = (OWN_ROW_STEPS if config.hr else ROW_STEPS)[config.preset]
    for row, pairs in row_pairs(config).items():
        options = pairs | watch | limit(row_steps)
        add(folders[row], TRAIN_SR, model=NETWORK, init_from=pretrained, register_as=f"{name}-{row.lower()}", **options)
    sets = {"test": _test_set(config), "real": faces.real, "reference": faces.hr}
    for row, folder in {"bicubic": None, **folders}.items():
        model = storage.join(config.output, folder) if folder else row
        add(_evaluation(row), EVALUATE, model=model, **sets)
    return steps


def _evaluation(row: str) -> str:
    return f"evaluation/{row.lower()}"


def _test_set(config: DemoConfig) -> str:
    """Test faces with their true LR, or, where nobody knows that, with the styleVAE's."""
    return face_sets(config).test or storage.join(config.output, "test_pairs")


def classical_lr(config: DemoConfig) -> torch.Tensor:
    """LR of the test faces by the classical degrader, in the order of the learnt ones; (N, 3, h, w) uint8."""
    learnt = load_pairs(storage.join(config.output, "test_pairs"))
    size = learnt.hr.shape[-1]
    faces = load_faces(face_sets(config).test_hr, size)
    digests = dict(zip(faces.ids, faces.digests, strict=True))  # which the draws depend on, as in jobs.synthesize
    degrader = Classical(size // learnt.lr.shape[-1], config.seed)
    return degrader.degrade(learnt.hr, [digests[i] for i in learnt.hr_ids], 0)[0]


def degradation(config: DemoConfig, classical: torch.Tensor) -> dict[str, float]:
    """How far learnt, bicubic and `classical` LR of the test faces are from true LR; the floor (Table 3's question).

    True LR is that of the very same faces where it is known, else the real faces; the floor compares two sets of
    true LR of other identities.
    """
    faces, learnt = face_sets(config), load_pairs(storage.join(config.output, "test_pairs"))
    size = learnt.lr.shape[-1]
    if faces.test:
        truth, other = load_pairs(faces.test).lr, load_faces(faces.real, size).images
    else:
        truth, other = load_faces(faces.real, size).images, load_faces(faces.lr, size).images
    features = Features(config.features)
    real = RealLR(truth, features, f"fd_{features.name}_{features.main}")
    candidates = {"learnt": learnt.lr, "bicubic": resize(learnt.hr, size), "classical": classical, "floor": other}
    distances = {kind: real.distances(images) for kind, images in candidates.items()}
    return {f"{name}_{kind}": value for kind, found in distances.items() for name, value in found.items()}


def comparisons(config: DemoConfig, table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What S gains over B and Classical on the same images, and how much it closes of the gap between B and the
    ceiling: (S − B) / (Ceiling − B), left out where there is no ceiling, or it is no better than B. Intervals draw the
    same faces for all rows."""
    values = {row: per_image(storage.join(config.output, _evaluation(row))) for row in row_pairs(config)}
    how = {"seed": config.seed, "face_of": partial(face_of, str(table["S"]["lr_kind"]))}
    found: dict[str, Any] = {}

    def take(name: str, interval: Interval | None) -> None:
        if interval is not None:
            found.update(Number(interval.mean, low=interval.low, high=interval.high).flat(name))

    for name in COMPARED:
        of = {row: numbers.get(name, {}) for row, numbers in values.items()}
        take(f"s_minus_b_{name}", paired_difference(of["S"], of["B"], **how))
        take(f"s_minus_classical_{name}", paired_difference(of["S"], of["Classical"], **how))
        if "Ceiling" in of:
            take(f"gap_closed_{name}", share_of_gap(of["S"], of["B"], of["Ceiling"], **how))

    for name in distance_names(table["S"]):
        of = {row: _with_leave_outs(config, row, name, numbers) for row, numbers in table.items() if row in values}
        if len({len(each) for each in of.values()}) > 1:  # some rows have no interval
            of = {row: each[:1] for row, each in of.items()}
        take(f"s_minus_b_{name}", jackknifed(of["S"] - of["B"]))
        take(f"s_minus_classical_{name}", jackknifed(of["S"] - of["Classical"]))
        if "Ceiling" in of:
            take(f"gap_closed_{name}", jackknifed(of["B"] - of["S"], whole=of["B"] - of["Ceiling"]))
    return found


def _with_leave_outs(config: DemoConfig, row: str, name: str, numbers: dict[str, Any]) -> np.ndarray:
    """A row's Fréchet distance, then, where it has an interval, that without each group of faces."""
    place = storage.join(config.output, _evaluation(row), "jackknife.json")
    without = json.loads(storage.read_bytes(place)).get(name, []) if storage.exists(place) else []
    return np.array([Number.of(name, numbers).value, *without])


def run_demo(config: DemoConfig, run: "JobRun") -> dict[str, Any]:
    """Run every step and write OUTPUT/report.html; returns the summary."""
    with ray_session():  # one for all steps
        done = run_steps(demo_steps(config, run.uri), run.id)
    classical = classical_lr(config)
    summary: dict[str, Any] = dict(degradation(config, classical))
    folders = row_folders(config)
    table = {row: done[_evaluation(row)].summary for row in ("bicubic", *folders)}
    for row, numbers in table.items():
        summary |= {f"{metric}_{row.lower()}": numbers[metric] for metric in metric_names(numbers)}
    summary |= comparisons(config, table)
    summary |= {"n_test": table["bicubic"]["n"], "n_real": table["bicubic"]["n_real"]}
    summary |= {f"seconds_{folder.replace('/', '_')}": round(each.seconds, 1) for folder, each in done.items()}
    runs, seconds = {k: d.run_id for k, d in done.items()}, {k: d.seconds for k, d in done.items()}
    faces = {name: uri for name, uri in vars(face_sets(config)).items() if uri}
    results = DemoResults(config, faces, _test_set(config), classical, table, summary, runs, seconds, run.uri, folders)
    page, place = demo_report(results), storage.join(config.output, "report.html")
    storage.write_text(place, page)
    run.text(page, "report.html")
    print(f"── report: {place}", flush=True)
    return summary


def demo_plan(config: DemoConfig) -> str:
    rows = ", ".join(row_pairs(config))
    steps = (
        f"train a styleVAE, synthesise pairs, train {NETWORK} on bicubic pairs and go on from there as {rows}, evaluate"
    )
    return f"take {config.source}; {steps}; write {config.output}/report.html"


DEMO = Job("demo", DemoConfig, run_demo, demo_plan)
