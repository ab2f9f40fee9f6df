"""How a number was computed, kept beside it: numbers of different protocols are different numbers."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """Everything that a number depends on, but the model.

    What does not apply to a metric is None: no crop for a distance of sets, no weights for PSNR.
    """

    metric: str
    version: int = field(default=1, kw_only=True)
    """Raised whenever our code would give another number for the same images."""
    n: int
    """Images that it was computed from."""
    inputs: str
    """Hash of the low-resolution images and, where it is known, their truth."""
    size: str
    """Sides of the compared images, px, or "native"."""
    lr: str
    """Where the low-resolution images come from: bicubic, pairs or real."""
    resize: str = "bicubic, antialiased, a = -0.5"
    range: str = "uint8 0..255, rounded"
    colour: str | None = None
    crop: int | None = None
    """px off each border."""
    weights: str | None = None
    """SHA-256 of the weight file of the judging network."""
    reference: str | None = None
    """Hash of the images compared with, for distances of sets."""
    n_reference: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What is particular to the metric, such as the layer of a network."""

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits: equal for numbers that may stand in one column."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def library(name: str) -> dict[str, str]:
    """Settings of a metric that a library computes."""
    return {"library": f"{name} {metadata.version(name)}"}


def fingerprint_of(name: str, summary: dict[str, Any]) -> str | None:
    """The protocol of a summary's number; None if it has no such number."""
    return summary.get(f"protocol_{name}")


def metric_names(summary: dict[str, Any]) -> list[str]:
    """The numbers of an evaluation's summary that a table can show: those with a protocol, in their order."""
    return [key.removeprefix("protocol_") for key in summary if key.startswith("protocol_")]


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What two recorded protocols (as dictionaries) do not agree in, for people."""
    keys = [key for key in a | b if a.get(key) != b.get(key)]
    return [f"{key} {_short(a.get(key))} against {_short(b.get(key))}" for key in keys]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text[:12] + "…" if len(text) == 64 else text
