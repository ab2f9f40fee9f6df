"""The faces of an experiment, drawn or one's own: what names them, what makes them ready, and where they then are."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pydantic import model_validator

from facelab import storage
from facelab.config import SizedConfig, Uri, build
from facelab.data.faces import FacesConfig, LimitsConfig
from facelab.data.prepare import PREPARE, PrepareConfig
from facelab.experiments.steps import Step
from facelab.job import Job
from facelab.samples.sets import SAMPLE_FACES

_SCALE, _HR_SIZE = (SizedConfig.model_fields[name].default for name in ("scale", "hr_size"))


class OwnFacesConfig(LimitsConfig):
    """An experiment on sample faces, or on one's own."""

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

    @model_validator(mode="after")
    def _all_or_none(self):
        given = [name for name in ("hr", "lr", "test", "real") if getattr(self, name)]
        if given and len(given) < 4:
            missing = ", ".join(f"--{name}" for name in ("hr", "lr", "test", "real") if name not in given)
            raise ValueError(f"own faces need all of --hr --lr --test --real; missing: {missing}")
        return self

    @property
    def source(self) -> str:
        """Where the faces come from, for a plan."""
        return f"{self.hr}, {self.lr}, {self.test} and {self.real}" if self.hr else "sample faces"


@dataclass(frozen=True)
class FaceSets:
    """URIs of the shard sets that an experiment has."""

    hr: str
    """Sharp training faces."""
    lr: str
    """Real low-resolution training faces, of other people."""
    test_hr: str
    """Sharp test faces."""
    real: str
    """Real low-resolution test faces."""
    test: str | None = None
    """Pairs of test_hr with their true LR; None of one's own faces, of which nobody knows it."""
    true: str | None = None
    """The same of hr."""


def face_sets(config: OwnFacesConfig, folder: str = "") -> FaceSets:
    """Where `face_steps` put them."""
    if config.hr is None:
        names, within = ("hr", "lr", "test_hr", "real", "test", "true"), _drawn(folder)
    else:
        names, within = ("hr", "lr", "test_hr", "real"), _prepared(folder)
    return FaceSets(**{name: storage.join(config.output, within, name) for name in names})


def face_steps(config: OwnFacesConfig, tracking_uri: str, folder: str = "", hr_size: int = _HR_SIZE) -> list[Step]:
    """Draw sample faces of `hr_size` px, or set aside those of one's own that would have to be enlarged for that.

    Args:
        folder: below the experiment's output, for faces of more than one size.
    """
    if config.hr is None:
        return [experiment_step(config, tracking_uri, _drawn(folder), SAMPLE_FACES, hr_size=hr_size)]
    low_size = hr_size // _SCALE
    own = {"hr": (config.hr, hr_size), "lr": (config.lr, low_size), "test_hr": (config.test, hr_size)}
    own |= {"real": (config.real, low_size)}
    steps = []
    for name, (uri, size) in own.items():
        least = config.least_side(size, sharp=size == hr_size)
        values = {"input": uri, "min_side": least, "max_rejected": config.max_rejected}
        steps.append(experiment_step(config, tracking_uri, f"{_prepared(folder)}/{name}", PREPARE, **values))
    return steps


def experiment_step(config: LimitsConfig, tracking_uri: str, folder: str, job: Job, **values: Any) -> Step:
    """A step in a folder below the experiment's output, with `values` over the options that all its steps share. What
    is begun there is gone on with, or replaced."""
    preset = config.preset if config.preset in job.config.PRESETS else "demo"  # mini is of trainings alone
    options: dict[str, Any] = {"preset": preset, "seed": config.seed, "experiment": config.experiment}
    options |= {"tracking_uri": tracking_uri, "output": storage.join(config.output, folder)}
    options |= {name: True for name in ("resume", "overwrite") if name in job.config.model_fields}
    if issubclass(job.config, FacesConfig):
        options["allow_enlarged"] = config.allow_enlarged
    return Step(folder, job, build(job.config, **options | values))


def _drawn(folder: str) -> str:
    return str(PurePosixPath(folder, "faces"))


def _prepared(folder: str) -> str:
    return str(PurePosixPath(folder, "prepared"))
