"""Which tables and figures of the paper are made, of which faces, and at what cost."""

from typing import Annotated, Any, ClassVar, Literal

import tyro
from pydantic import Field, model_validator

from facelab.config import Uri
from facelab.experiments.faces import OwnFacesConfig

NAMES = ("table1", "table2", "table3", "table4", "fig4", "fig5")
_STEPS: dict[str, dict[str, int | None]] = {
    "debug": {"sr": 4, "degrader": 4},
    "mini": {"sr": 300, "degrader": 600},
    "paper": {"sr": None, "degrader": None},
}
"""Preset -> stage -> updates of every training, one budget for all; None: each by its paper's recipe."""


class ReproduceConfig(OwnFacesConfig):
    """Make the paper's tables and figures: train, synthesise and measure what is missing for them, and print our
    numbers beside the paper's. The same command goes on with what was interrupted."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"debug": {}, "mini": {}, "paper": {}}
    OPERATIONAL = OwnFacesConfig.OPERATIONAL | {"at_once", "estimate"}
    KEEPS_RUN = True
    WRITES = (*OwnFacesConfig.WRITES, *(f"{name}.{kind}" for name in NAMES for kind in ("md", "json")))

    what: Annotated[Literal[(*NAMES, "all")], tyro.conf.Positional] = "all"  # pyrefly: ignore  (known at run time)
    """The table or figure."""
    preset: Literal["debug", "mini", "paper"] = "mini"
    """mini: reduced networks, whose names end in _mini, and one budget for each training (about an hour for the largest
    table on 2 cores); paper: the published sizes and recipes, for a cluster; debug: seconds."""
    output: Uri = "outputs/reproduce"
    """Folder for the tables, and a folder for each step, which tables share."""
    seeds: int = Field(default=1, ge=1)
    """Every training is repeated with so many seeds: seed, seed + 1, …"""
    sr_steps: int | None = Field(default=None, ge=1)
    """Updates of every SR network; default: the preset's, 300 of mini."""
    degrader_steps: int | None = Field(default=None, ge=1)
    """The same of every degrader, 600 of mini."""
    workers: int = Field(default=0, ge=0)
    """Ray Train workers of each training; 0 trains in the step's own process."""
    gpu: bool | None = None
    """Train on GPUs, one for each worker; no-gpu: on CPUs. None: if there are enough now."""
    at_once: int = Field(default=1, ge=1)
    """Steps at the same time, of those that do not need each other: tasks of a Ray cluster, where it is more than 1."""
    estimate: bool = False
    """Measure some steps of each training here, say what all would cost, and do no more."""

    @model_validator(mode="before")
    @classmethod
    def _an_estimate_does_nothing(cls, values: dict[str, Any]) -> dict[str, Any]:
        return values | {"dry_run": True} if values.get("estimate") else values

    @property
    def resumes(self) -> bool:
        return True

    @property
    def names(self) -> tuple[str, ...]:
        """The tables and figures."""
        return NAMES if self.what == "all" else (self.what,)

    def steps_of(self, kind: str) -> int | None:
        """Updates of every training of a stage, "sr" or "degrader"; None: by its recipe."""
        return (self.sr_steps if kind == "sr" else self.degrader_steps) or _STEPS[self.preset][kind]

    @property
    def judge(self) -> dict[str, Any]:
        """Options of the evaluations: the paper's FID where there are images enough for its 2048 dimensions."""
        return {"features": {"network": "inception", "layer": "pool3"}} if self.preset == "paper" else {}

    def title(self, network: str) -> str:
        """What a trained network of the paper is called here: one that is reduced is another."""
        return network if self.preset == "paper" else f"{network}_{self.preset}"
