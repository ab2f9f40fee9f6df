"""The whole pipeline in one go: faces, styleVAE, synthesis, four SR trainings, evaluation, report."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from facelab import storage
from facelab.cluster import ray_session
from facelab.config import SizedConfig, Uri, build
from facelab.data.faces import MIN_SIDE, FacesConfig, LimitsConfig
from facelab.data.prepare import PREPARE, PrepareConfig
from facelab.data.tensors import load_faces, load_pairs
from facelab.evaluation.run import EVALUATE
from facelab.experiments.steps import Step, run_steps
from facelab.job import Job
from facelab.metrics import degradation_distances, frechet_distance
from facelab.metrics.features import FeatureConfig, Features
from facelab.metrics.protocol import metric_names
from facelab.reports.demo import DemoResults, demo_report
from facelab.samples.sets import SAMPLE_FACES
from facelab.synthesis.job import SYNTHESIZE
from facelab.training.config import TrainConfig
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR
from models.resize import resize

if TYPE_CHECKING:
    from facelab.tracking.runs import JobRun

# Row of the table -> (model, LR of its training pairs); B is bicubic, S styleVAE, as in the paper's Table 2.
SR_RUNS = {
    "SRCNN-B": ("srcnn", "bicubic"),
    "SRCNN-S": ("srcnn", "stylevae"),
    "Attentive-B": ("attentive", "bicubic"),
    "Attentive-S": ("attentive", "stylevae"),
}
ROWS = ("bicubic", *SR_RUNS)
_HR_SIZE = SizedConfig.model_fields["hr_size"].default  # of every step


class DemoConfig(LimitsConfig):
    """Run the whole pipeline on sample faces, or on your own with --hr, --lr, --test and --real."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "demo": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "paper": {"features.layer": "relu1_1"},
    }

    WRITES = (*LimitsConfig.WRITES, "report.html")

    preset: Literal["debug", "demo", "paper"] = "demo"
    """Preset of every stage: debug (a minute), demo (some minutes on 2 cores), paper (GPUs)."""
    output: Uri = "outputs/demo"
    """Folder for report.html, summary.json, mlflow.db and a folder for each stage."""
    hr: Uri | None = None
    """Sharp training faces, a folder of images. All four, or none: then sample faces are drawn."""
    lr: Uri | None = None
    """Real low-resolution training faces."""
    test: Uri | None = None
    """Sharp test faces."""
    real: Uri | None = None
    """Real low-resolution test faces."""
    max_rejected: float = PrepareConfig.model_fields["max_rejected"].default
    """Fail when more than this share of a folder's files cannot be used."""
    workers: int = 0
    """Ray Train workers of each training; 0 trains in the process itself."""
    max_steps: int | None = None
    """Stop each training after so many updates."""
    gpu: bool | None = None
    """Train on GPUs, one for each worker; no-gpu: on CPUs. None: if there are enough now, which a cluster that grows
    from nothing never has."""
    features: FeatureConfig = FeatureConfig()
    """Network and layer of the Fréchet distance between sets of LR faces."""

    @model_validator(mode="after")
    def _all_or_none(self):
        given = [name for name in ("hr", "lr", "test", "real") if getattr(self, name)]
        if given and len(given) < 4:
            missing = ", ".join(f"--{name}" for name in ("hr", "lr", "test", "real") if name not in given)
            raise ValueError(f"own faces need all of --hr --lr --test --real; missing: {missing}")
        return self

    def database(self) -> Path:
        local = not self.output.startswith("s3://")
        return Path(self.output) / "mlflow.db" if local else super().database()


def demo_faces(config: DemoConfig) -> dict[str, str]:
    """URIs of hr, lr, test_hr, real, and, where it is known, of the test set with true LR."""
    if config.hr is None:
        return {name: storage.join(config.output, "faces", name) for name in ("hr", "lr", "test", "test_hr", "real")}
    return {name: storage.join(config.output, "prepared", name) for name in ("hr", "lr", "test_hr", "real")}


def demo_steps(config: DemoConfig, tracking_uri: str) -> list[Step]:
    """Every job of a demo, in order."""
    faces, pairs = demo_faces(config), storage.join(config.output, "pairs")
    steps: list[Step] = []

    def add(folder: str, job: Job, **values: Any) -> None:
        options: dict[str, Any] = {"preset": config.preset, "seed": config.seed, "experiment": config.experiment}
        options |= {"tracking_uri": tracking_uri, "output": storage.join(config.output, folder)}
        if issubclass(job.config, TrainConfig):
            options |= {"workers": config.workers, "compute": {"gpu": config.gpu}}
            options |= {"max_steps": config.max_steps} if config.max_steps else {}
        options |= {name: True for name in ("resume", "overwrite") if name in job.config.model_fields}
        if issubclass(job.config, FacesConfig):
            options["allow_enlarged"] = config.allow_enlarged
        steps.append(Step(folder, job, build(job.config, **options | values)))

    if config.hr is None:
        add("faces", SAMPLE_FACES)
    else:
        for name, own, least in (
            ("hr", config.hr, _HR_SIZE), ("lr", config.lr, MIN_SIDE),
            ("test_hr", config.test, _HR_SIZE), ("real", config.real, MIN_SIDE),
        ):  # fmt: skip
            least = MIN_SIDE if config.allow_enlarged else least
            add(f"prepared/{name}", PREPARE, input=own, min_side=least, max_rejected=config.max_rejected)
    add("stylevae", TRAIN_DEGRADER, model="stylevae", hr=faces["hr"], lr=faces["lr"])
    for folder, hr in (("pairs", faces["hr"]), ("test_pairs", faces["test_hr"])):
        add(folder, SYNTHESIZE, hr=hr, lr=faces["lr"], degrader=storage.join(config.output, "stylevae"))
    for name, (model, kind) in SR_RUNS.items():
        source = {"hr": faces["hr"]} if kind == "bicubic" else {"pairs": pairs}
        add(name.lower(), TRAIN_SR, model=model, register_as=f"facelab-{name.lower()}", **source)
    sets = {"test": _test_set(config), "real": faces["real"], "reference": faces["hr"]}
    for name in ROWS:
        model = name if name == "bicubic" else storage.join(config.output, name.lower())
        add(f"evaluation/{name.lower()}", EVALUATE, model=model, **sets)
    return steps


def _test_set(config: DemoConfig) -> str:
    """Test faces with their true LR, or, where nobody knows that, with the styleVAE's."""
    return demo_faces(config).get("test", storage.join(config.output, "test_pairs"))


def degradation(config: DemoConfig) -> dict[str, float]:
    """How far learnt and bicubic LR of the test faces are from true LR, beside the floor (Table 3's question).

    True LR is that of the very same faces where it is known, else the real faces; the floor compares two sets of
    true LR of other identities.
    """
    faces, learnt = demo_faces(config), load_pairs(storage.join(config.output, "test_pairs"))
    size = learnt.lr.shape[-1]
    if "test" in faces:
        truth, other = load_pairs(faces["test"]).lr, load_faces(faces["real"], size).images
    else:
        truth, other = load_faces(faces["real"], size).images, load_faces(faces["lr"], size).images
    f = config.features
    features = Features(f)
    candidates = {"learnt": learnt.lr, "bicubic": resize(learnt.hr, size), "floor": other}
    numbers: dict[str, float] = {}
    for name, images in candidates.items():
        values = degradation_distances(images, truth)
        values[f"fd_{f.network}_{features.main}"] = frechet_distance(
            lambda x: features(x)[features.main], truth, images
        )
        numbers |= {f"{metric}_{name}": value for metric, value in values.items()}
    return numbers


def run_demo(config: DemoConfig, run: "JobRun") -> dict[str, Any]:
    """Run every step and write OUTPUT/report.html; returns the summary."""
    with ray_session():  # one for all steps
        done = run_steps(demo_steps(config, run.uri), run.id)
    summary: dict[str, Any] = dict(degradation(config))
    table = {name: done[f"evaluation/{name.lower()}"].summary for name in ROWS}
    for name, numbers in table.items():
        for metric in metric_names(numbers):
            summary[f"{metric}_{name.lower().replace('-', '_')}"] = numbers[metric]
    summary |= {"n_test": table["bicubic"]["n"], "n_real": table["bicubic"]["n_real"]}
    summary |= {f"seconds_{folder.replace('/', '_')}": round(each.seconds, 1) for folder, each in done.items()}
    runs, seconds = {k: d.run_id for k, d in done.items()}, {k: d.seconds for k, d in done.items()}
    results = DemoResults(
        config, demo_faces(config), _test_set(config), table, summary, runs, seconds, run.uri, list(SR_RUNS)
    )
    page, place = demo_report(results), storage.join(config.output, "report.html")
    storage.write_text(place, page)
    run.text(page, "report.html")
    print(f"── report: {place}", flush=True)
    return summary


def demo_plan(config: DemoConfig) -> str:
    source = f"{config.hr}, {config.lr}, {config.test} and {config.real}" if config.hr else "sample faces"
    stages = json.dumps(list(SR_RUNS))
    steps = f"train a styleVAE, synthesise pairs, train {stages}, evaluate"
    return f"take {source}; {steps}; write {config.output}/report.html"


DEMO = Job("demo", DemoConfig, run_demo, demo_plan)
