"""Identity similarity: the cosine of two faces' embeddings, by whatever recognition network the user names."""

import hashlib
import io
import tempfile
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field

from facelab import storage
from facelab.config import Config, Uri
from facelab.errors import UsageError
from facelab.images import centre_square
from facelab.metrics.image_metric import ImageMetric
from facelab.metrics.number import Metric
from models.resize import resize

_RUN_CODE = (".pt", ".ts", ".pt2")
"""torch.export unpickles what it loads, and loads compiled code; TorchScript has operators that map any file to write
into it, also while it is loaded."""


class IdentityConfig(Config):
    """Recognition network of the identity similarity."""

    # The defaults fit ArcFace's as InsightFace publishes them.

    embedding: Uri | None = None
    """URI of the network, an ONNX file: (B, 3, S, S) -> (B, D). TorchScript (.pt, .ts) and torch.export (.pt2), which
    can run code, need trust_sha256."""
    trust_sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """SHA-256 of a file of embedding that may run code here; any other file is refused."""
    size: int = Field(default=112, ge=16)
    """Side S of its input, px; faces are resized to it whole, not aligned by landmarks."""
    colour: Literal["rgb", "bgr"] = "rgb"
    """Order of its input channels."""
    mean: float = 127.5
    """Subtracted from 0..255."""
    std: float = Field(default=127.5, gt=0)
    """Then divided by."""


class Identity(ImageMetric):
    """A cosine in [-1, 1]; of faces that are not square, the centre counts."""

    shown = Metric("identity", 1, ".3f")
    options = IdentityConfig
    is_network = True
    columns = ("identity",)

    def __init__(self, options: IdentityConfig, crop: int = 0):
        """
        Raises:
            UsageError: no network given, or one that is not trusted, cannot be read or gives no embeddings.
        """
        super().__init__(options, crop)
        if options.embedding is None:
            raise UsageError(
                "metric identity: needs --identity.embedding, the URI of a face-recognition network as ONNX file, such "
                "as an ArcFace of 112 px; none comes with facelab"
            )
        self.config, self.device = options, torch.device("cpu")
        self.data = storage.read_bytes(options.embedding)
        self.digest = hashlib.sha256(self.data).hexdigest()
        _require_trust(options, self.digest)  # before any of it is loaded; actors are sent these very bytes
        self._network: Any = None
        found = self.embed(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        if found.ndim != 2 or len(found) != 2:
            raise UsageError(f"{options.embedding}: gives {tuple(found.shape)} for 2 faces, not embeddings (2, D)")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_network": None}  # neither kind of network can be pickled: workers load the bytes

    def to(self, device: torch.device) -> Self:
        self.device, self._network = device, None
        return self

    @torch.no_grad()
    def embed(self, faces: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) uint8 -> (B, D), of any length."""
        c = self.config
        x = (resize(centre_square(faces).float(), c.size).clamp(0, 255) - c.mean) / c.std
        x = x.flip(1) if c.colour == "bgr" else x
        if self._network is None:
            self._network = self._load()
        try:
            return torch.as_tensor(self._network(x)).cpu().float()
        except Exception as error:  # whatever a foreign network raises: most often a fixed batch or another size
            reason = str(error).strip().splitlines()[-1][:200]
            raise UsageError(
                f"{c.embedding}: cannot embed {tuple(x.shape)} ({reason}): export it with a dynamic batch, and give "
                "its --identity.size"
            ) from error

    def __call__(self, images: torch.Tensor, truth: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        assert truth is not None
        return {"identity": F.cosine_similarity(self.embed(images), self.embed(truth))}

    def record(self, column: str) -> dict[str, Any]:
        settings = self.config.model_dump(exclude={"embedding", "trust_sha256"})
        return {"colour": self.config.colour, "weights": self.digest, "settings": settings}

    def _load(self) -> Any:
        uri = str(self.config.embedding)
        try:
            if not uri.endswith(_RUN_CODE):
                return _onnx(self.data, self.device)
            if uri.endswith(".pt2"):
                module = torch.export.load(io.BytesIO(self.data)).module().to(self.device)
            else:
                module = torch.jit.load(io.BytesIO(self.data), map_location=self.device).eval()
        except UsageError:
            raise
        except Exception as error:  # damaged files raise a dozen types
            reason = str(error).strip().splitlines()[0][:200]
            kind = "TorchScript or torch.export (.pt2)" if uri.endswith(_RUN_CODE) else "ONNX"
            raise UsageError(f"{uri}: no {kind} file ({reason}): export it again") from error
        return lambda x: module(x.to(self.device))


def _require_trust(options: IdentityConfig, digest: str) -> None:
    """Raises UsageError for a file that is not the trusted one, and for one that runs code and is not trusted."""
    if options.trust_sha256 is not None:
        if options.trust_sha256.lower() != digest:
            raise UsageError(
                f"{options.embedding}: its SHA-256 is {digest}, not that of --identity.trust-sha256: it is another "
                "file than the one you trust"
            )
    elif str(options.embedding).endswith(_RUN_CODE):
        raise UsageError(
            f"{options.embedding}: a TorchScript or torch.export file can run code of whoever made it: export it as "
            f"ONNX, or, if you trust this very file, give --identity.trust-sha256 {digest}"
        )


def _onnx(data: bytes, device: torch.device) -> Any:
    try:
        import onnxruntime  # an extra, which a user without such a network need not install
    except ImportError as error:
        raise UsageError("an ONNX network needs onnxruntime: pip install 'facelab[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    # Weights may lie in other files, which a model that was read as bytes would find in the working folder: no hash
    # would speak for them.
    with tempfile.TemporaryDirectory(prefix="facelab-") as empty:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", empty)
        session = onnxruntime.InferenceSession(data, options, providers=[provider])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})[0]
