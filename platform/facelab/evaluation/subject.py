"""What is evaluated: a network that super-resolves, or a folder of images that some other tool has finished."""

from dataclasses import dataclass
from pathlib import PurePosixPath

import torch

from facelab import storage
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.rows import ImageSet
from facelab.images import IMAGE_SUFFIXES, BadImage, decode_tensor
from facelab.trained import store
from facelab.trained.apply import super_resolve


@dataclass
class Model:
    """A super-resolution network."""

    model: store.TrainedModel
    uri: str
    micro_batch: int

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def version(self) -> str | None:
        """First digits of the weights' hash."""
        return self.model.digest[:16]

    def to(self, device: torch.device) -> "Model":
        self.model.network.to(device)
        return self

    def outputs(self, role: str, ids: list[str], lr: torch.Tensor) -> list[torch.Tensor | BadImage]:
        """(B, 3, h, w) uint8 of one size -> (3, scale·h, scale·w) uint8 each."""
        return list(super_resolve(self.model.network, lr, self.micro_batch))


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
            return decode_tensor(storage.read_bytes(uri))
        except BadImage as error:
            return BadImage(f"finished image {uri}: {error}")


Subject = Model | FinishedImages


def load_subject(config: EvaluateConfig, sets: dict[str, ImageSet]) -> Subject:
    """What --model names.

    Raises:
        UsageError: neither a trained super-resolution model nor finished images of these sets.
    """
    if config.model == "bicubic":
        model = store.bicubic_model(config.scale, config.hr_size)
    elif (finished := _finished(config, sets)) is not None:
        return finished
    else:
        model = store.load_model(config.model, "sr")
    return Model(model, config.model, config.micro_batch)


def _finished(config: EvaluateConfig, sets: dict[str, ImageSet]) -> FinishedImages | None:
    uri = config.model
    if store.holds_model(uri):
        return None
    found = storage.list_files(uri, IMAGE_SUFFIXES)
    if not found:
        return None  # store.load_model tells what is missing
    roles = [role for role in ("test", "real") if role in sets]
    own = {role: {n.removeprefix(f"{role}/"): u for n, u in found if n.startswith(f"{role}/")} for role in roles}
    if len(roles) == 1:
        own[roles[0]] = own[roles[0]] or dict(found)
    elif not all(own.values()):
        raise UsageError(f"{uri}: --test and --real need their finished images in its subfolders test and real")
    files = {}
    for role in roles:
        files[role] = {_stem(name): place for name, place in own[role].items()}
        if len(files[role]) < len(own[role]):
            raise UsageError(f"{uri}: some images differ in their ending alone: keep one image for each face")
        _require_finished(config, sets[role], files[role])
    return FinishedImages(uri, config.finished_suffix, files)


def _require_finished(config: EvaluateConfig, images: ImageSet, files: dict[str, str]) -> None:
    """Refuse what would be found out after hours: wrong names, or faces that one finished image would stand for."""
    stems: dict[str, str] = {}
    missing = []
    for identifier in images.ids():
        stem = _stem(identifier)
        if stem in stems:
            raise UsageError(f"{images.uri}: {stems[stem]} and {identifier} differ in their ending alone: rename one")
        stems[stem] = identifier
        if stem + config.finished_suffix not in files:
            missing.append(stem + config.finished_suffix)
    if len(missing) > config.max_rejected * len(stems):
        raise UsageError(
            f"--model {config.model}: no trained model there, and {len(missing)} of {len(stems)} finished images of "
            f"{images.uri} are missing, such as {missing[0]} with any ending (see --finished-suffix)"
        )


def _stem(name: str) -> str:
    """A path without the ending of an image; the #k of a pair's id stays."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name
