"""The whole pipeline in one go: faces, styleVAE, synthesis, four SR trainings, evaluation, report."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import model_validator

from facelab import storage
from facelab.config import JobConfig, Uri, build, to_yaml
from facelab.data.prepare import PrepareConfig, prepare
from facelab.data.tensors import load_faces, load_pairs
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import evaluate_and_log
from facelab.job import run_job
from facelab.metrics import degradation_distances, frechet_distance
from facelab.metrics.features import FeatureConfig, Features
from facelab.metrics.protocol import metric_names
from facelab.reports.demo import DemoResults, demo_report
from facelab.samples.sets import SampleFacesConfig, make_sample_sets
from facelab.synthesis.job import SynthesizeConfig, synthesize
from facelab.tracking.runs import JobRun
from facelab.training.config import TrainConfig
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.job import train_and_register
from facelab.training.sr import TrainSRConfig
from models.resize import resize

# Row of the table -> (model, LR of its training pairs); B is bicubic, S styleVAE, as in the paper's Table 2.
SR_RUNS = {
    "SRCNN-B": ("srcnn", "bicubic"),
    "SRCNN-S": ("srcnn", "stylevae"),
    "Attentive-B": ("attentive", "bicubic"),
    "Attentive-S": ("attentive", "stylevae"),
}


class DemoConfig(JobConfig):
    """Run the whole pipeline on sample faces, or on your own with --hr, --lr, --test and --real."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "demo": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "paper": {"features.layer": "relu1_1"},
    }

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
    workers: int = 0
    """Ray Train workers of each training; 0 trains in the process itself."""
    max_steps: int | None = None
    """Stop each training after so many updates."""
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


class Demo:
    """The stages of one demo; each is a job with its own folder and nested MLflow run."""

    def __init__(self, config: DemoConfig, run: JobRun):
        self.config, self.run = config, run
        self.seconds: dict[str, float] = {}
        self.runs: dict[str, str] = {}
        self.renewed = False
        """Whether a stage was run now: then all that come after it are, too."""

    def place(self, *parts: str) -> str:
        return storage.join(self.config.output, *parts)

    def stage(
        self,
        folder: str,
        job: str,
        config_type: type[JobConfig],
        work: Callable[[Any, Any], dict[str, Any]],
        **values: Any,
    ) -> dict[str, Any]:
        """Run one job with the demo's preset and seed; remember its time and MLflow run.

        What an interrupted demo of the same settings finished is not run again, and its training goes on.
        """
        options: dict[str, Any] = {"preset": self.config.preset, "seed": self.config.seed, "output": self.place(folder)}
        options |= {"experiment": self.config.experiment, "tracking_uri": self.run.uri}
        if issubclass(config_type, TrainConfig):
            options["workers"] = self.config.workers
            options |= {"max_steps": self.config.max_steps} if self.config.max_steps else {}
        options |= {name: True for name in ("resume", "overwrite") if name in config_type.model_fields}
        config = build(config_type, **options | values)
        began = time.perf_counter()
        summary = self._kept(config)
        print(f"── {job}: {folder}{' (done before)' if summary else ''}", flush=True)
        if summary is None:
            self.renewed = True
            summary = run_job(job, config, work, parent=self.run.id)
        self.seconds[folder] = time.perf_counter() - began
        self.runs[folder] = summary["mlflow_run_id"]
        return summary

    def _kept(self, config: JobConfig) -> dict[str, Any] | None:
        """The summary of an earlier run of just this stage, if it came to its end. A run of other settings, or from
        before an earlier stage was run anew, is deleted."""
        was, summary = (storage.join(config.output, name) for name in ("config.yaml", "summary.json"))
        if not storage.exists(was):
            return None
        if self.renewed or storage.read_bytes(was).decode() != to_yaml(config):
            storage.delete(config.output)
            return None
        return json.loads(storage.read_bytes(summary)) if storage.exists(summary) else None

    def faces(self) -> dict[str, str]:
        """URIs of hr, lr, test_hr, real, and, where it is known, of the test set with true LR."""
        if self.config.hr is None:
            self.stage("faces", "sample_faces", SampleFacesConfig, lambda c, _: make_sample_sets(c))
            return {name: self.place("faces", name) for name in ("hr", "lr", "test", "test_hr", "real")}
        found = {}
        for name, source in (("hr", "hr"), ("lr", "lr"), ("test_hr", "test"), ("real", "real")):
            found[name] = self.place("prepared", name)
            uri = getattr(self.config, source)
            self.stage(f"prepared/{name}", "prepare", PrepareConfig, lambda c, _: prepare(c), input=uri)
        return found

    def degradation(self, faces: dict[str, str]) -> dict[str, float]:
        """How far learnt and bicubic LR of the test faces are from true LR, beside the floor (Table 3's question).

        True LR is that of the very same faces where it is known, else the real faces; the floor compares two sets of
        true LR of other identities.
        """
        learnt = load_pairs(self.place("test_pairs"))
        size = learnt.lr.shape[-1]
        if "test" in faces:
            truth, other = load_pairs(faces["test"]).lr, load_faces(faces["real"], size).images
        else:
            truth, other = load_faces(faces["real"], size).images, load_faces(faces["lr"], size).images
        f = self.config.features
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


def run_demo(config: DemoConfig, run: JobRun) -> dict[str, Any]:
    """Run every stage and write OUTPUT/report.html; returns the summary."""
    demo = Demo(config, run)
    faces = demo.faces()
    stylevae, pairs = demo.place("stylevae"), demo.place("pairs")
    demo.stage(
        "stylevae",
        "train_degrader",
        TrainDegraderConfig,
        train_and_register,
        model="stylevae",
        hr=faces["hr"],
        lr=faces["lr"],
    )
    for folder, hr in (("pairs", faces["hr"]), ("test_pairs", faces["test_hr"])):
        options: dict[str, Any] = {"hr": hr, "lr": faces["lr"], "degrader": stylevae}
        demo.stage(folder, "synthesize", SynthesizeConfig, lambda c, _: synthesize(c), **options)
    summary: dict[str, Any] = dict(demo.degradation(faces))
    for name, (model, kind) in SR_RUNS.items():
        source = {"hr": faces["hr"]} if kind == "bicubic" else {"pairs": pairs}
        register = f"facelab-{name.lower()}"
        demo.stage(
            name.lower(), "train_sr", TrainSRConfig, train_and_register, model=model, register_as=register, **source
        )
    test = faces.get("test", demo.place("test_pairs"))
    table = {}
    for name in ("bicubic", *SR_RUNS):
        model = "bicubic" if name == "bicubic" else demo.place(name.lower())
        table[name] = demo.stage(
            f"evaluation/{name.lower()}", "evaluate", EvaluateConfig, evaluate_and_log,
            model=model, test=test, real=faces["real"], reference=faces["hr"],
        )  # fmt: skip
        for metric in metric_names(table[name]):
            summary[f"{metric}_{name.lower().replace('-', '_')}"] = table[name][metric]
    summary |= {"n_test": table["bicubic"]["n"], "n_real": table["bicubic"]["n_real"]}
    summary |= {f"seconds_{name.replace('/', '_')}": round(value, 1) for name, value in demo.seconds.items()}
    page = demo_report(
        DemoResults(config, faces, test, table, summary, demo.runs, demo.seconds, run.uri, list(SR_RUNS))
    )
    storage.write_text(demo.place("report.html"), page)
    run.text(page, "report.html")
    print(f"── report: {demo.place('report.html')}", flush=True)
    return summary


def demo_plan(config: DemoConfig) -> str:
    source = f"{config.hr}, {config.lr}, {config.test} and {config.real}" if config.hr else "sample faces"
    stages = json.dumps(list(SR_RUNS))
    steps = f"train a styleVAE, synthesise pairs, train {stages}, evaluate"
    return f"take {source}; {steps}; write {config.output}/report.html"
