"""What a sweep searches, on what, and within which limits."""

import json
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from facelab import storage
from facelab.config import Uri
from facelab.data.faces import FacesConfig
from facelab.errors import UsageError
from facelab.experiments.steps import fingerprint
from facelab.training.config import TrainConfig
from facelab.training.degrader import DegraderStage, TrainDegraderConfig
from facelab.training.sr import SRStage, TrainSRConfig


class SweepConfig(FacesConfig):
    """Search any options of a training: a grid, at random, or by TPE; with early stopping and repeated seeds. The same
    command goes on with what was interrupted."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # Eq. 2 and 6: λ1 to λ3, α, β.
        "weights": {
            "space": [f"weights.{name}=~10" for name in ("lambda_kl", "lambda_style", "lambda_mi", "alpha", "beta")]
        },
        # Table 3.
        "ablation-stylevae": {
            "space": ["stylevae.use_adain=false,true", "weights.lambda_mi=0,default"],
            "search": "grid", "early": "none", "tested": "all",
        },
        # Table 4.
        "ablation-sr": {
            "train": "sr", "space": ["attentive.use_global=false,true", "attentive.use_local=false,true"],
            "search": "grid", "early": "none", "tested": "all",
        },
        "debug": {
            "space": ["weights.beta=~10"], "points": 2, "trial_preset": "debug", "max_steps": 4, "grace_steps": 2,
        },
    }  # fmt: skip

    OPERATIONAL = FacesConfig.OPERATIONAL | {
        "points", "seeds", "test", "real", "tested", "hours", "budget_steps", "cpus_per_worker", "gpus_per_worker",
        "concurrency", "register_as", "alias",
    }  # fmt: skip
    KEEPS_RUN = True
    WRITES = (*FacesConfig.WRITES, "sweep.json", "trials.json")

    preset: str = "weights"
    """What is searched: weights (λ1–λ3, α, β of the styleVAE), ablation-stylevae (AdaIN x MI, Table 3), ablation-sr
    (GA x LA, Table 4), debug (seconds); any option given beside it takes its place."""
    train: Literal["degrader", "sr"] = "degrader"
    """Which stage is trained."""
    model: str | None = None
    """Its network; default: stylevae, attentive."""
    trial_preset: str = "paper"
    """Preset of the trainings, which --space changes: debug, demo, mini, paper; of the degrader also paper_mini."""
    space: tuple[str, ...] = Field(default=(), min_length=1)
    """Options of the training and their values: OPTION=LOW..HIGH (of a logarithmic scale, OPTION=LOW..HIGH:log),
    OPTION=~F (the preset's value divided and multiplied by up to F), or OPTION=VALUE,VALUE,…, where `default` is the
    preset's value; a single one is the same for all."""
    search: Literal["grid", "random", "tpe"] = "random"
    """Every combination; at random; or where the trials so far promise most (Optuna's TPE)."""
    points: int = Field(default=20, ge=1)
    """Of a random or TPE search; of a grid, values of each range. More of them later go on with the same sweep."""
    seeds: int = Field(default=1, ge=1)
    """Every point is trained with so many seeds: seed, seed + 1, …"""
    hr: Uri | None = None
    """URI of sharp training faces."""
    lr: Uri | None = None
    """URI of real low-resolution training faces, for a degrader."""
    pairs: Uri | None = None
    """URI of training pairs, for super-resolution; instead of --hr, of which the LR is bicubic."""
    test: Uri | None = None
    """URI of test faces, or pairs, that no trial sees: what is best is measured on them once, at the end."""
    real: Uri | None = None
    """URI of real low-resolution test faces. A degrader's test needs them and --test, which it degrades."""
    tested: Literal["best", "all"] = "best"
    """What is measured on test faces: the best point's trials; or, as nothing is chosen in an ablation, all."""
    max_steps: int | None = Field(default=None, ge=1)
    """Steps of a trial that is not stopped early; default: the training preset's."""
    early: Literal["asha", "median", "none"] = "asha"
    """Stop trials that do worse: ASHA keeps one in --reduction at each rung; median stops what is worse than the median
    of the others so far."""
    grace_steps: int = Field(default=200, ge=1)
    """No trial is stopped before this step."""
    reduction: int = Field(default=3, ge=2)
    """ASHA keeps one trial in so many at each rung: grace_steps, grace_steps x reduction, …"""
    hours: float | None = Field(default=None, gt=0)
    """Interrupt all trials after so long; the same command goes on."""
    budget_steps: int | None = Field(default=None, ge=1)
    """Interrupt all after so many steps of all trials together; the same command with more goes on."""
    workers: int = Field(default=1, ge=0)
    """Ray Train workers of each trial; 0 trains in the trial's own process."""
    cpus_per_worker: float = Field(default=1, gt=0)
    """CPUs of each worker, or of a trial without."""
    gpus_per_worker: float | None = Field(default=None, ge=0, le=1)
    """GPUs of each worker, 0 or 1; of a trial without workers, a fraction shares one. None: one if there are enough
    now, which a cluster that grows from nothing never has."""
    concurrency: int | None = Field(default=None, ge=1)
    """At most so many trials at once. None: as many as there is room for now; without workers, as many as find room,
    for which a cluster grows."""
    register_as: str | None = None
    """Name of the best trial's network in the MLflow model registry; default facelab-NETWORK."""
    alias: str = "champion"
    """What its version is called there."""

    @property
    def resumes(self) -> bool:
        return True

    @property
    def network(self) -> str:
        """That is trained."""
        return self.model or ("stylevae" if self.train == "degrader" else "attentive")

    @property
    def job(self) -> str:
        """Name of the trials' job."""
        return f"train_{self.train}"

    @property
    def selection(self) -> tuple[str, str]:
        """Metric of held-out training faces that decides, and whether "min" or "max" of it is best: the Fréchet
        distance of generated to real LR, or PSNR."""
        return DegraderStage.selection if self.train == "degrader" else SRStage.selection

    @model_validator(mode="after")
    def _inputs_given(self):
        if self.train == "degrader" and not (self.hr and self.lr):
            raise ValueError("a degrader is trained on --hr and --lr")
        if self.train == "degrader" and (self.test is None) != (self.real is None):
            raise ValueError("a degrader is tested on --test, which it degrades, and --real together")
        if self.train == "sr" and (self.pairs is None) == (self.hr is None):
            raise ValueError("give either --pairs (synthesised pairs) or --hr (bicubic LR)")
        if self.train == "sr" and self.real and not self.hr:
            raise ValueError("--real is compared with the sharp faces of --hr: give --test alone, or --hr")
        return self

    @model_validator(mode="after")
    def _whole_gpus(self):
        if self.workers and self.gpus_per_worker not in (None, 0, 1):
            raise ValueError(f"gpus_per_worker {self.gpus_per_worker:g}: Ray Train workers do not share GPUs: 0 or 1")
        return self

    def check_output(self) -> None:
        super().check_output()
        place = storage.join(self.output, "sweep.json")
        if not storage.exists(place):
            return
        was, now = json.loads(storage.read_bytes(place)), self.described()
        if differ := sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)):
            raise UsageError(
                f"{self.output}: has trials of another sweep ({', '.join(differ[:4])} differ): choose another --output"
            )

    def described(self) -> dict[str, Any]:
        """What makes a sweep itself: its settings, and what its trials train on."""
        inputs = {f"hash of {name}": fingerprint(uri) for name in ("hr", "lr", "pairs") if (uri := getattr(self, name))}
        return {name: value for name, value in self.settings().items() if value is not None} | inputs

    @property
    def training(self) -> type[TrainConfig]:
        """Config of the trials."""
        return TrainDegraderConfig if self.train == "degrader" else TrainSRConfig
