"""What an evaluation measures, and on what."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from facelab.config import REGISTRY, ActorConfig, Uri, uri_or, with_options
from facelab.data.faces import FacesConfig
from facelab.metrics.catalogue import DEFAULT_METRICS, IMAGE_METRICS
from facelab.metrics.features import FeatureConfig
from facelab.metrics.image_metric import ImageMetric
from facelab.trained.apply import MICRO_BATCH


@with_options(**{name: kind.options for name, kind in IMAGE_METRICS.items() if kind.options})
class EvaluateConfig(FacesConfig, ActorConfig):
    """Measure a super-resolution model, or finished images of any tool, on faces with truth (--test) and on real ones
    without (--real)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"features.network": "mobilenet_v2", "features.layer": "block1", "actors": 0},
        "demo": {"features.network": "mobilenet_v2", "actors": 0},
        "paper": {},
    }

    OPERATIONAL = FacesConfig.OPERATIONAL | ActorConfig.OPERATIONAL | {"batch_size"}
    ARTIFACTS: ClassVar[tuple[str, ...]] = (
        "per_image.parquet", "examples.parquet", "protocol.json", "jackknife.json", "grid.png", "real.png",
        "rejected.parquet",
    )  # fmt: skip
    WRITES = (*FacesConfig.WRITES, *ARTIFACTS)

    model: Annotated[str, uri_or(REGISTRY, "bicubic")]
    """`bicubic`; the URI of a trained model: the --output of train_sr, one of its checkpoints, or models:/NAME/VERSION;
    or a folder of finished images from any other tool, named like the test images (subfolders test and real, where both
    are measured)."""
    test: Uri | None = None
    """URI of the test set: pair shards (their own LR) or faces, shards or folder (bicubic LR)."""
    real: Uri | None = None
    """URI of real low-resolution faces; they are super-resolved and compared with --reference."""
    reference: Uri | None = None
    """URI of sharp faces, the reference of FID, FD and KID: the HR training faces."""
    metrics: tuple[Literal[tuple(IMAGE_METRICS)], ...] = DEFAULT_METRICS  # pyrefly: ignore  (known at run time)
    """Measured on each image; FD and KID are always measured on --real."""
    crop: int = Field(default=0, ge=0)
    """px cut off each border before PSNR and SSIM; benchmarks of general images cut `scale`, face papers mostly 0."""
    scale: int = Field(default=4, ge=2)
    """Factor of `--model bicubic` and of finished images; a trained model has its own."""
    hr_size: int = Field(default=64, ge=16)
    """Side of the sharp faces, px, of `--model bicubic` and of finished images; a trained model has its own."""
    native: bool = False
    """Keep every image's own size, cut to a multiple of the scale, instead of the centre square resized to hr_size."""
    finished_suffix: str = ""
    """What a tool has added to the names of its images, such as _out or _SRx4."""
    features: FeatureConfig = FeatureConfig()
    """Network and layer of FID, FD and KID."""
    actors: int = Field(default=1, ge=0)
    """Model actors on Ray Data; the numbers do not depend on how many. 0 measures in the process itself, on all its
    threads, which may round a pixel otherwise."""
    batch_size: int = Field(default=64, ge=1)
    """Images handed to an actor at a time; the numbers do not depend on it."""

    @property
    def micro_batch(self) -> int:
        """Images that a network sees at a time; where all have sizes of their own, a padded batch would waste all but
        one."""
        return 1 if self.native else MICRO_BATCH

    def image_metrics(self) -> dict[str, ImageMetric]:
        """The chosen metrics of single images, by name and in the order of the catalogue.

        Raises:
            UsageError: one lacks its weights.
        """
        return {
            name: kind(getattr(self, name) if kind.options else None, self.crop)
            for name, kind in IMAGE_METRICS.items()
            if name in self.metrics
        }

    @model_validator(mode="after")
    def _something_to_measure(self):
        if (self.real is None) != (self.reference is None):
            raise ValueError("--real and --reference go together")
        if self.test is None and self.real is None:
            raise ValueError("give --test, or --real and --reference")
        return self
