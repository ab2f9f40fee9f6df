"""Rows of images -> rows of numbers and features: what an actor does, or the process itself."""

import hashlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from facelab.data.faces import MIN_SIDE, training_face
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.rows import ImageSet, draw_key, draw_thresholds, is_first_variant
from facelab.evaluation.subject import Model, Subject
from facelab.images import BadImage, decode_tensor
from facelab.metrics.features import Features
from facelab.trained.apply import in_fixed_batches
from models.resize import resize

_MOST_PIXELS = 16_000_000
"""Of decoded images at a time; whole photographs of --native would otherwise fill gigabytes."""

FEATURES = "features/"
"""Prefix of a batch's feature columns; the layer follows."""


@dataclass(frozen=True)
class Face:
    """A decoded row."""

    row: int
    role: str
    id: str
    hr: torch.Tensor | None
    """(3, H, W) uint8: truth of a test face, or a reference face."""
    lr: torch.Tensor | None
    """(3, h, w) uint8; None for a reference face."""
    enlarged: bool = False
    """It was smaller than it is now."""

    @property
    def pixels(self) -> int:
        return sum(x.shape[-2] * x.shape[-1] for x in (self.hr, self.lr) if x is not None)

    @property
    def sizes(self) -> tuple:
        return self.role, *(None if x is None else tuple(x.shape) for x in (self.hr, self.lr))

    @property
    def digest(self) -> str:
        """Of the pixels, whatever their encoding."""
        return digest_of(*(x for x in (self.hr, self.lr) if x is not None))


def digest_of(*images: torch.Tensor) -> str:
    """Of pixels, whatever their encoding."""
    found = hashlib.sha256()
    for image in images:
        found.update(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes())
    return found.hexdigest()


class Measure:
    """Everything that a number depends on besides its images.

    Images of one role and size are measured together; no number depends on which others those are.
    """

    def __init__(self, config: EvaluateConfig, subject: Subject, sets: dict[str, ImageSet]):
        """
        Raises:
            UsageError: a metric's weights are missing.
        """
        self.config, self.subject, self.thresholds = config, subject, draw_thresholds(sets, config.seed)
        self.kinds = {role: images.kind for role, images in sets.items()}
        model = subject.model if isinstance(subject, Model) else None
        self.scale, self.hr_size = (model.scale, model.hr_size) if model else (config.scale, config.hr_size)
        self.features = Features(config.features) if config.real else None
        self.metrics = config.image_metrics()
        self.columns = {column: metric for metric in self.metrics.values() for column in metric.columns}
        """Whose each column of numbers is."""
        for name, metric in self.metrics.items():
            assert all(f"{column}_".startswith(f"{name}_") for column in metric.columns), f"{name}: {metric.columns}"

    def to(self, device: torch.device) -> "Measure":
        for part in (self.subject, *([self.features] if self.features else []), *self.metrics.values()):
            part.to(device)
        return self

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Columns role, id, hr, lr, rejected -> role, id, rejected, enlarged, digest, output_digest, one for each
        metric (nan where it does not apply) and, for FD and KID, the features of each layer (n, d), nan where none are
        wanted."""
        count = len(batch["id"])
        out: dict[str, Any] = {
            "role": [str(x) for x in batch["role"]],
            "id": [str(x) for x in batch["id"]],
            "rejected": [str(x) for x in batch["rejected"]],
            "digest": [""] * count,
            "output_digest": [""] * count,
            "enlarged": [False] * count,
            **{name: np.full(count, np.nan) for name in self.columns},
        }
        if self.features:
            for layer in self.features.layers:
                out[FEATURES + layer] = np.full((count, self.features.dims[layer]), np.nan, np.float32)
        groups: dict[tuple, list[Face]] = defaultdict(list)
        held = 0
        for row in range(count):
            try:
                if not out["rejected"][row]:
                    face = self.decode(row, out["role"][row], out["id"][row], batch["hr"][row], batch["lr"][row])
                    out["enlarged"][row] = face.enlarged
                    groups[face.sizes].append(face)
                    held += face.pixels
            except BadImage as error:
                out["rejected"][row] = str(error)
            if held > _MOST_PIXELS:
                self._measure_groups(groups, out)
                held = 0
        self._measure_groups(groups, out)
        return out

    def decode(self, row: int, role: str, identifier: str, hr: bytes, lr: bytes) -> Face:
        """
        Raises:
            BadImage: it cannot be used.
        """
        if role == "real":
            low, enlarged = self._image(lr, self.hr_size // self.scale, 1, sharp=False)
            return Face(row, role, identifier, None, low, enlarged)
        if role == "test" and lr:
            truth, low = self._large_enough(decode_tensor(hr)), decode_tensor(lr)
            return Face(row, role, identifier, truth, low)
        sharp, enlarged = self._image(hr, self.hr_size, self.scale, sharp=True)
        if role == "reference":
            return Face(row, role, identifier, sharp, None, enlarged)
        self._large_enough(sharp)
        low = resize(sharp[None], sharp.shape[-2] // self.scale, sharp.shape[-1] // self.scale)[0]
        return Face(row, role, identifier, sharp, low, enlarged)

    def _image(self, data: bytes, size: int, multiple: int, *, sharp: bool) -> tuple[torch.Tensor, bool]:
        if not self.config.native:
            return training_face(data, size, self.config.least_side(size, sharp=sharp))
        image = decode_tensor(data)
        height, width = (side - side % multiple for side in image.shape[-2:])
        if min(width, height) < min(size, MIN_SIDE):
            raise BadImage(f"too small for --native: {width}x{height} px, shorter side under {min(size, MIN_SIDE)}")
        return image[:, :height, :width], False

    def _large_enough(self, truth: torch.Tensor) -> torch.Tensor:
        for name in self.config.metrics:
            least = self.metrics[name].least_side
            if min(truth.shape[-2:]) < least:
                size = f"{truth.shape[-1]}x{truth.shape[-2]}"
                raise BadImage(f"too small: {size} px, but {name} needs {least} a side")
        return truth

    def outputs(self, faces: list[Face]) -> list[torch.Tensor | BadImage]:
        """The super-resolved images (3, H, W) uint8 of faces of one role and size, or why one cannot be compared."""
        lr = torch.stack([face.lr for face in faces])  # pyrefly: ignore
        found = self.subject.outputs(faces[0].role, [face.id for face in faces], lr)
        # A real face has no truth, but the same size is due: another one would be another metric.
        truth = faces[0].hr
        height, width = truth.shape[-2:] if truth is not None else (side * self.scale for side in lr.shape[-2:])
        checked: list[torch.Tensor | BadImage] = []
        for image in found:
            if isinstance(image, torch.Tensor) and image.shape[-2:] != (height, width):
                sizes = f"{image.shape[-1]}x{image.shape[-2]} px, but {width}x{height} are due"
                if isinstance(self.subject, Model):
                    raise UsageError(f"{self.config.test}: {self.subject.uri} enlarges {self.scale} times, to {sizes}")
                image = BadImage(f"finished image of {sizes}: give --hr-size, or --native with --scale")
            checked.append(image)
        return checked

    def _measure_groups(self, groups: dict[tuple, list[Face]], out: dict[str, Any]) -> None:
        for group in groups.values():
            self._measure(group, out)
        groups.clear()

    def _measure(self, faces: list[Face], out: dict[str, Any]) -> None:
        if faces[0].role == "reference":
            hr = torch.stack([face.hr for face in faces])  # pyrefly: ignore
            self._put_features([face.row for face in faces], hr, out)
            for face in faces:
                out["digest"][face.row] = face.digest
            return
        usable: list[Face] = []
        images: list[torch.Tensor] = []
        for face, image in zip(faces, self.outputs(faces), strict=True):
            if isinstance(image, BadImage):
                out["rejected"][face.row] = str(image)
            else:
                out["digest"][face.row], out["output_digest"][face.row] = face.digest, digest_of(image)
                usable.append(face)
                images.append(image)
        if usable:
            self._numbers(usable, torch.stack(images), out)

    def _numbers(self, faces: list[Face], sr: torch.Tensor, out: dict[str, Any]) -> None:
        rows = [face.row for face in faces]
        hr = None if faces[0].role == "real" else torch.stack([face.hr for face in faces])  # pyrefly: ignore
        for metric in self.metrics.values():
            if hr is not None or not metric.needs_truth:
                for column, values in metric.measure(sr, hr, self.config.micro_batch).items():
                    out[column][rows] = values.numpy()
        if hr is None:
            self._put_features(rows, sr, out)
            return
        drawn = [i for i, face in enumerate(faces) if self.is_drawn(face.id)]
        if drawn:
            self._put_features([rows[i] for i in drawn], hr[drawn], out)

    def is_drawn(self, identifier: str) -> bool:
        """Whether a test face is one of those whose truth is compared with the reference, for the floor."""
        threshold = self.thresholds.get("test")
        if self.features is None or not is_first_variant(self.kinds["test"], identifier):
            return False
        return threshold is None or draw_key(self.config.seed, identifier) <= threshold

    def _put_features(self, rows: list[int], images: torch.Tensor, out: dict[str, Any]) -> None:
        if self.features:
            for layer, found in in_fixed_batches(self.features, images, size=self.config.micro_batch).items():
                out[FEATURES + layer][rows] = found.numpy()
