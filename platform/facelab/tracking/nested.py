"""What a run is to the experiment that it is a part of."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Nested:
    """Of a step, or of a sweep's trial: MLflow shows it below its parent, one level deep."""

    parent: str
    """Id of the parent's run."""
    name: str
    """By which people know it there."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """By which MLflow finds it, such as sweep, variant, seed."""
