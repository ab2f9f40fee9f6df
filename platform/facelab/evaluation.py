"""A model on a test set: PSNR and SSIM where truth exists, else a Fréchet distance over a named network."""

import io
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field, model_validator

from facelab import model_store, storage
from facelab.config import Config, JobConfig, ModelUri, Uri
from facelab.data.faces import load_faces, load_pairs
from facelab.data.shards import read_manifest
from facelab.errors import UsageError
from facelab.images import encode_png, grid
from facelab.metrics.frechet import frechet_distance
from facelab.metrics.psnr_ssim import psnr, ssim
from facelab.seeding import generator_for
from facelab.weights import build_features
from models.features import FEATURE_NETWORKS, FeatureNetwork
from models.resize import resize

if TYPE_CHECKING:  # MLflow takes seconds to import
    from facelab.tracking import JobRun


class FeatureConfig(Config):
    """Features of the Fréchet distance: channels of one layer, averaged over positions."""

    network: Literal["vgg16", "mobilenet_v2"] = "vgg16"
    """Named in the metric: fd_vgg16, fd_mobilenet_v2."""
    layer: str = "relu2_2"
    """Its channels are the dimensions; keep them well below the number of images (relu2_2: 128, block10: 64)."""
    weights: Uri | None = None
    """URI of the weight file; default: torchvision's download, or the installed package."""

    @model_validator(mode="after")
    def _layer_exists(self):
        if self.layer not in (known := FEATURE_NETWORKS[self.network].layers):
            raise ValueError(f"layer {self.layer!r} is not one of {self.network}'s: {', '.join(known)}")
        return self

    def build(self) -> FeatureNetwork:
        """The network up to its layer, with resolved weights."""
        return build_features(self.network, (self.layer,), self.weights)


class EvaluateConfig(JobConfig):
    """Measure a super-resolution model on faces with truth (--test) and on real ones without (--real)."""

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "debug": {"features.network": "mobilenet_v2", "features.layer": "block1"},
        "demo": {"features.network": "mobilenet_v2", "features.layer": "block10"},
        "paper": {},
    }

    model: ModelUri
    """`bicubic`, or the URI of a trained model: the --output of train_sr, or models:/NAME/VERSION."""
    test: Uri
    """URI of the test set: pair shards (their own LR) or faces, shards or folder (bicubic LR)."""
    real: Uri | None = None
    """URI of real low-resolution faces; they are super-resolved and compared with --reference."""
    reference: Uri | None = None
    """URI of sharp faces, the reference of the Fréchet distance: the HR training faces."""
    scale: int = Field(default=4, ge=2)
    """Factor of `--model bicubic`; a trained model has its own."""
    hr_size: int = Field(default=64, ge=16)
    """Side of the sharp faces, px; a trained model has its own."""
    features: FeatureConfig = FeatureConfig()
    """Network and layer of the Fréchet distance."""

    @model_validator(mode="after")
    def _both_or_none(self):
        if (self.real is None) != (self.reference is None):
            raise ValueError("--real and --reference go together")
        return self


def evaluate_and_log(config: EvaluateConfig, run: "JobRun") -> dict[str, Any]:
    """Run the job; its table and pictures also go to its MLflow run."""
    summary = evaluate(config)
    for name in ("per_image.parquet", "grid.png", *(["real.png"] if config.real else [])):
        with storage.local_copy(storage.join(config.output, name)) as file:
            run.artifact(file)
    return summary


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """OUTPUT/per_image.parquet, grid.png, real.png; returns the means.

    Raises:
        UsageError: unusable model or sets.
    """
    if config.model == "bicubic":
        model = model_store.bicubic_model(config.scale, config.hr_size)
    else:
        model = model_store.load_model(config.model, "sr")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    summary = _with_truth(config, model, device)
    if config.real and config.reference:
        summary |= _without_truth(config, model, device)
    return {"model": f"{model.name}@{model.digest[:16]}"} | summary


def _with_truth(config: EvaluateConfig, model: model_store.TrainedModel, device: torch.device) -> dict[str, Any]:
    manifest = read_manifest(config.test) if storage.exists(config.test) else None
    if manifest and manifest.kind == "pairs":
        pairs = load_pairs(config.test, progress=True)
        ids, hr, lr, kind, rejected, data = pairs.ids, pairs.hr, pairs.lr, "pairs", 0, pairs.hash
    else:
        faces = load_faces(config.test, model.hr_size, progress=True)
        ids, hr, kind, rejected, data = faces.ids, faces.images, "bicubic", faces.rejected, faces.hash
        lr = resize(hr, model.hr_size // model.scale)
    if lr.shape[-1] * model.scale != hr.shape[-1]:
        raise UsageError(
            f"{config.test}: pairs are {lr.shape[-1]} -> {hr.shape[-1]} px, but {config.model} enlarges "
            f"{model.scale} times"
        )
    sr = model_store.super_resolve(model.network, lr, device)
    columns: dict[str, list] = {"id": ids}
    for colour in ("rgb", "y"):
        for name, metric in (("psnr", psnr), ("ssim", ssim)):
            parts = zip(sr.split(64), hr.split(64), strict=True)
            columns[f"{name}_{colour}"] = torch.cat([metric(a, b, colour=colour) for a, b in parts]).tolist()
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    storage.write_bytes(storage.join(config.output, "per_image.parquet"), buffer.getvalue())
    shown = slice(0, 12)
    picture = grid([lr[shown], resize(lr[shown], hr.shape[-1]), sr[shown], hr[shown]], cell=96)
    storage.write_bytes(storage.join(config.output, "grid.png"), encode_png(picture))
    means = {name: float(np.mean(values)) for name, values in columns.items() if name != "id"}
    return means | {"n": len(ids), "lr_kind": kind, "n_rejected": rejected, "data_hash": data[:16]}


def _without_truth(config: EvaluateConfig, model: model_store.TrainedModel, device: torch.device) -> dict[str, Any]:
    f = config.features
    network = f.build().to(device)
    real = load_faces(str(config.real), model.hr_size // model.scale, progress=True)
    reference = load_faces(str(config.reference), model.hr_size, progress=True)
    sr = model_store.super_resolve(model.network, real.images, device)
    # At equal N, as the distance falls with N; a draw, as neighbours by id may be alike.
    count = min(len(real), len(reference))
    if count < 2:
        raise UsageError(f"{config.real}, {config.reference}: a Fréchet distance needs 2 images on each side")
    chosen_sr, chosen = (
        images[torch.randperm(len(images), generator=generator_for(config.seed, "fd"))[:count]]
        for images in (sr, reference.images)
    )
    distance = frechet_distance(network, chosen, chosen_sr, progress=True)
    dims = next(iter(network(torch.zeros(1, 3, 64, 64, device=device)).values())).shape[1]
    picture = grid([real.images[:12], resize(real.images[:12], model.hr_size), sr[:12]], cell=96)
    storage.write_bytes(storage.join(config.output, "real.png"), encode_png(picture))
    summary = {f"fd_{f.network}": distance, "fd_layer": f.layer, "fd_dims": dims}
    summary |= {"fd_n": count, "n_real": len(real), "n_reference": len(reference), "n_rejected_real": real.rejected}
    if count < dims:
        summary["fd_warning"] = f"fewer images than the {dims} dimensions: only comparable at equal N"
    return summary
