"""What is evaluated: a network that super-resolves, or a folder of images that some other tool has finished."""

from dataclasses import dataclass
from pathlib import PurePosixPath

import torch

from facelab import model_store, storage
from facelab.batching import MICRO_BATCH, in_fixed_batches
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.images import IMAGE_SUFFIXES, BadImage, decode, to_float, to_uint8


@dataclass
class Model:
    """A super-resolution network."""

    model: model_store.TrainedModel
    uri: str
    micro_batch: int
    device: torch.device

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def version(self) -> str | None:
        """First digits of the weights' hash."""
        return self.model.digest[:16]

    def to(self, device: torch.device) -> "Model":
        self.device = device  # pyrefly: ignore  (takes torch.device for a descriptor)
        self.model.network.to(device)
        return self

    @torch.no_grad()
    def outputs(self, role: str, ids: list[str], lr: torch.Tensor) -> list[torch.Tensor | BadImage]:
        """(B, 3, h, w) uint8 of one size -> (3, scale·h, scale·w) uint8 each."""

        def enlarge(images: torch.Tensor) -> torch.Tensor:
            return to_uint8(self.model.network(to_float(images.to(self.device))))

        return list(in_fixed_batches(enlarge, lr, size=self.micro_batch))


@dataclass
class FinishedImages:
    """A folder of images, one for each face, of the same name without its ending."""

    uri: str
    suffix: str
    files: dict[str, dict[str, str]]
    """Role -> name without ending -> URI."""
    version = None  # what the images are is known when all were read

    @property
    def name(self) -> str:
        return PurePosixPath(self.uri).name

    def to(self, device: torch.device) -> "FinishedImages":
        return self

    def outputs(self, role: str, ids: list[str], lr: torch.Tensor) -> list[torch.Tensor | BadImage]:
        """(3, H, W) uint8 for each id, or why there is none."""
        return [self._read(role, identifier) for identifier in ids]

    def _read(self, role: str, identifier: str) -> torch.Tensor | BadImage:
        uri = self.files[role].get(_stem(identifier) + self.suffix)
        if uri is None:
            return BadImage(f"no finished image: {_stem(identifier)}{self.suffix} with any ending in {self.uri}")
        try:
            return torch.from_numpy(decode(storage.read_bytes(uri))).permute(2, 0, 1)
        except BadImage as error:
            return BadImage(f"finished image {uri}: {error}")


Subject = Model | FinishedImages


def load_subject(config: EvaluateConfig) -> Subject:
    """What --model names.

    Raises:
        UsageError: neither a trained super-resolution model nor images.
    """
    if config.model == "bicubic":
        model = model_store.bicubic_model(config.scale, config.hr_size)
    elif (finished := _finished(config)) is not None:
        return finished
    else:
        model = model_store.load_model(config.model, "sr")
    # Of images that all have sizes of their own, a padded batch would waste all but one.
    return Model(model, config.model, 1 if config.native else MICRO_BATCH, torch.device("cpu"))


def _finished(config: EvaluateConfig) -> FinishedImages | None:
    uri = config.model
    if uri.startswith("models:/") or any(
        storage.exists(storage.join(place, "model.json")) for place in (uri, storage.join(uri, "model"))
    ):
        return None
    found = storage.list_files(uri, IMAGE_SUFFIXES)
    if not found:
        return None  # model_store tells what is missing
    roles = [role for role, given in (("test", config.test), ("real", config.real)) if given]
    files: dict[str, dict[str, str]] = {}
    for role in roles:
        own = {name.removeprefix(f"{role}/"): place for name, place in found if name.startswith(f"{role}/")}
        chosen = own or dict(found)
        files[role] = {_stem(name): place for name, place in chosen.items()}
        if len(files[role]) < len(chosen):
            raise UsageError(f"{uri}: some images differ in their ending alone: keep one image for each face")
    return FinishedImages(uri, config.finished_suffix, files)


def _stem(name: str) -> str:
    """A path without the ending of an image; the #k of a pair's id stays."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name
