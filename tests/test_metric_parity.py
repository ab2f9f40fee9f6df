"""Our numbers against the field's own tools: pytorch-fid, torch-fidelity, lpips, piq, BasicSR's definitions.

Their pretrained weights are not to be had offline, so both sides get one file of random weights.
"""

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from conftest import he_, save_embedding
from facelab.config import build
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.run import evaluate
from facelab.images import to_float
from facelab.metrics import psnr, ssim
from facelab.metrics.features import FidInception
from facelab.metrics.identity import Identity, IdentityConfig
from facelab.metrics.kid import kid
from facelab.metrics.no_reference import Brisque, BrisqueConfig
from facelab.metrics.perceptual import Lpips, LpipsConfig
from PIL import Image
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torchvision.models import inception_v3

import models.resize


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory) -> Path:
    """A file of random weights for pytorch-fid's Inception, by the name that it looks for in its cache."""
    from pytorch_fid import inception

    torch.manual_seed(0)
    network = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    for name, block in {
        "Mixed_5b": inception.FIDInceptionA(192, 32), "Mixed_5c": inception.FIDInceptionA(256, 64),
        "Mixed_5d": inception.FIDInceptionA(288, 64), "Mixed_6b": inception.FIDInceptionC(768, 128),
        "Mixed_6c": inception.FIDInceptionC(768, 160), "Mixed_6d": inception.FIDInceptionC(768, 160),
        "Mixed_6e": inception.FIDInceptionC(768, 192), "Mixed_7b": inception.FIDInceptionE_1(1280),
        "Mixed_7c": inception.FIDInceptionE_2(2048),
    }.items():  # fmt: skip
        setattr(network, name, block)
    he_(network)
    place = tmp_path_factory.mktemp("hub") / "hub" / "checkpoints" / inception.FID_WEIGHTS_URL.rsplit("/", 1)[1]
    place.parent.mkdir(parents=True)
    torch.save(network.state_dict(), place)
    return place


def folders(tmp_path: Path, counts: dict[str, int]) -> dict[str, Path]:
    """Smooth random 64 px pictures; those of different folders differ in contrast."""
    generator = torch.Generator().manual_seed(0)
    for k, (name, count) in enumerate(counts.items()):
        (tmp_path / name).mkdir()
        coarse = torch.rand(count, 3, 6, 6, generator=generator)
        for i, image in enumerate(models.resize.resize(128 + (60 + 50 * k) * (coarse - 0.5), 64)):
            pixels = image.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(tmp_path / name / f"{i:03d}.png")
    return {name: tmp_path / name for name in counts}


def pytorch_fid(a: Path, b: Path, weights: Path, *options: str) -> float:
    """Its own command line, with `weights` in its cache."""
    command = [sys.executable, "-W", "ignore", "-m", "pytorch_fid", "--num-workers", "0", *options, str(a), str(b)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TORCH_HOME": str(weights.parents[2])}
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout.split("FID:")[1])


@pytest.mark.slow
def test_fid_equals_pytorch_fid(tmp_path, inception_weights):
    """The same number as its command line to 6 digits, on unequal numbers of finished images; also in 64 dimensions."""
    place = folders(tmp_path, {"real": 3, "outputs": 3, "reference": 4})
    config = build(
        EvaluateConfig, preset="debug", model=str(place["outputs"]), real=str(place["real"]),
        reference=str(place["reference"]), features={"network": "inception", "layer": "pool3", "weights": str(inception_weights)},
        output=str(tmp_path / "out"),
    )  # fmt: skip
    found = evaluate(config)
    theirs = pytorch_fid(place["reference"], place["outputs"], inception_weights)
    assert theirs > 1
    assert found["fid"] == pytest.approx(theirs, rel=1e-6)
    small = pytorch_fid(place["reference"], place["outputs"], inception_weights, "--dims", "64")
    assert found["fd_inception_pool1"] == pytest.approx(small, rel=1e-6)
    assert "no more than the 2048 dimensions" in found["fid_warning"]


def test_inception_is_pytorch_fids(monkeypatch, inception_weights):
    """Every layer to the last bit, also of images that are neither square nor of its size."""
    from pytorch_fid import inception

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: torch.load(inception_weights))
    images, layers = pair(count=2)[0][..., :50], ("pool1", "pool2", "aux", "pool3")
    with torch.no_grad():
        maps = inception.InceptionV3([0, 1, 2, 3]).eval()(images.float() / 255)
        found = FidInception(layers, str(inception_weights)).pooled(to_float(images))
    assert [x.shape[1] for x in found.values()] == [64, 192, 768, 2048]
    for layer, theirs in zip(layers, maps, strict=True):
        assert torch.equal(found[layer], theirs.mean(dim=(2, 3))), layer


def test_inception_refuses_other_weights(tmp_path, inception_weights):
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "wrong.pth")
    place = folders(tmp_path, {"real": 3, "reference": 3})
    config = build(
        EvaluateConfig, model="bicubic", real=str(place["real"]), reference=str(place["reference"]), actors=0,
        features={"network": "inception", "weights": str(tmp_path / "wrong.pth")}, output=str(tmp_path / "out"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"wrong\.pth: not the weights of pytorch-fid's Inception"):
        evaluate(config)


@pytest.mark.parametrize(("n", "m", "size"), [(60, 80, 50), (30, 30, 1000)])
def test_kid_equals_torch_fidelity(n, m, size):
    """The same subsets for the same seed; both in float64, so only the order of sums differs."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(n, 32, generator=generator, dtype=torch.float64)
    generated = 0.3 + 1.2 * torch.randn(m, 32, generator=generator, dtype=torch.float64)
    ours = kid(real, generated, subsets=20, subset_size=size, seed=5)
    theirs = kid_features_to_metric(
        real, generated, kid_subsets=20, kid_subset_size=min(size, n, m), rng_seed=5, verbose=False
    )
    assert ours.mean == pytest.approx(theirs[KEY_METRIC_KID_MEAN], rel=1e-10)
    if size < m:
        assert ours.std == pytest.approx(theirs[KEY_METRIC_KID_STD], rel=1e-10)
    else:
        assert ours.std is None  # every subset is the whole: its deviation would be 0, and say nothing
    assert ours.subset_size == min(size, n, m)


def pair(seed: int = 0, count: int = 3, size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = models.resize.resize(255 * torch.rand(count, 3, size // 4, size // 4, generator=generator), size)
    y = x + 20 * torch.randn(x.shape, generator=generator)
    return x.round().clamp(0, 255).to(torch.uint8), y.round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("network", ["alex", "vgg", "squeeze"])
def test_lpips_equals_the_lpips_package(tmp_path, network):
    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=network, pnet_rand=True, verbose=False).requires_grad_(False)
    he_(theirs.net)
    # To torchvision's own file, which has a classifier, too.
    state = {f"features.{key.split('.', 1)[1]}": value for key, value in theirs.net.state_dict().items()}
    torch.save(state | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "backbone.pth")
    ours = Lpips(LpipsConfig(network=network, weights=str(tmp_path / "backbone.pth")))
    x, y = pair()
    with torch.no_grad():
        expected = theirs(x.float() / 127.5 - 1, y.float() / 127.5 - 1).flatten()
    assert expected.min() > 0
    assert ours.columns == (f"lpips_{network}",)
    assert torch.equal(ours(x, y)[ours.columns[0]], expected)
    assert ours(x, x)[ours.columns[0]].abs().max() == 0


def test_lpips_refuses_other_weights(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "wrong.pth")
    with pytest.raises(UsageError, match="not torchvision's weights of alex"):
        Lpips(LpipsConfig(weights=str(tmp_path / "wrong.pth")))


def test_brisque_is_piqs(tmp_path, monkeypatch):
    """To the last bit, with a regression of 20 random support vectors; each image by itself, also an odd one."""
    module = importlib.import_module("piq.brisque")  # `piq.brisque` itself is the function
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(20, 1, generator=generator) * 50
    vectors = torch.rand(20, 36, generator=generator) * 2 - 1
    torch.save((coefficients, vectors), tmp_path / "svm.pt")
    x, _ = pair()
    black = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    ours = Brisque(BrisqueConfig(weights=str(tmp_path / "svm.pt")))
    # It loads for each call what it then transposes in place.
    monkeypatch.setattr(module, "load_url", lambda *_, **__: (coefficients.clone(), vectors.clone()))
    for images in (x, x[..., :37, :50]):
        theirs = [module.brisque(image[None].float(), data_range=255, reduction="none")[0, 0] for image in images]
        assert len(set(map(float, theirs))) == 3
        assert torch.equal(ours(images)["brisque"], torch.stack(theirs))
    found = ours(torch.cat([x[:1], black]))["brisque"]
    assert found.isnan().tolist() == [False, True]  # no variance: nothing to say


def test_brisque_refuses_other_weights(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "wrong.pt")
    with pytest.raises(UsageError, match="not piq's weights"):
        Brisque(BrisqueConfig(weights=str(tmp_path / "wrong.pt")))


@pytest.mark.parametrize("kind", ["pt", "pt2", "onnx"])
def test_identity_is_the_cosine_of_embeddings(tmp_path, kind):
    place = tmp_path / f"embedding.{kind}"
    network = save_embedding(kind, place)
    x, y = pair()
    trust = None if kind == "onnx" else hashlib.sha256(place.read_bytes()).hexdigest()
    found = Identity(IdentityConfig(embedding=str(place), trust_sha256=trust, colour="bgr"))(x, y)["identity"]
    inputs = [(models.resize.resize(z.float(), 112).clamp(0, 255).flip(1) - 127.5) / 127.5 for z in (x, y)]
    with torch.no_grad():
        a, b = (network(z).numpy() for z in inputs)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_identity_without_a_network_says_what_to_give(tmp_path):
    with pytest.raises(UsageError, match="needs --identity"):
        Identity(IdentityConfig())
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(UsageError, match=r"broken\.onnx: no ONNX"):
        Identity(IdentityConfig(embedding=str(tmp_path / "broken.onnx")))
    with pytest.raises(UsageError, match=r"cannot embed|not embeddings"):
        Identity(IdentityConfig(embedding=str(save_wrong(tmp_path / "wrong.onnx"))))


def save_wrong(place: Path) -> Path:
    """A network whose last layer is lacking: what it gives has four dimensions."""
    import onnx

    save_embedding("onnx", place)
    model = onnx.load(place)
    model.graph.node.pop()
    model.graph.node[-1].output[0] = "y"
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, place)
    return place


def basicsr_y(image: np.ndarray) -> np.ndarray:
    """BasicSR's bgr2ycbcr(y_only=True) on [0, 1], times 255, as its PSNR and SSIM take it; written from its definition."""
    b, g, r = (image[..., i].astype(np.float32) / 255 for i in (2, 1, 0))
    return ((np.stack([b, g, r], -1) @ np.array([24.966, 128.553, 65.481]) + 16.0) / 255.0) * 255.0


def basicsr_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Its _ssim: cv2's 11-tap Gaussian, outer product, and the valid part of a filter of the whole image."""
    from scipy.signal import convolve2d

    kernel = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(kernel / kernel.sum(), kernel / kernel.sum())
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu1, mu2 = (convolve2d(x, window, "valid") for x in (a, b))
    s11, s22, s12 = (convolve2d(x, window, "valid") for x in (a * a, b * b, a * b))
    s11, s22, s12 = s11 - mu1**2, s22 - mu2**2, s12 - mu1 * mu2
    return float((((2 * mu1 * mu2 + c1) * (2 * s12 + c2)) / ((mu1**2 + mu2**2 + c1) * (s11 + s22 + c2))).mean())


@pytest.mark.parametrize("crop", [0, 4])
@pytest.mark.parametrize("noisy", [True, False])
def test_psnr_and_ssim_equal_basicsrs(noisy, crop):
    """On noisy and on smooth images, RGB and Y, with and without border: but for the float32 of its Y, 1e-6 dB and 1e-8."""
    x, y = pair(3)
    if not noisy:
        y = models.resize.resize(models.resize.resize(x, 16), 64)
    for colour in ("rgb", "y"):
        for i in range(len(x)):
            a, b = (z[i].permute(1, 2, 0).numpy() for z in (x, y))
            cut = slice(crop, 64 - crop)
            a, b = (basicsr_y(z)[cut, cut, None] if colour == "y" else z[cut, cut].astype(np.float64) for z in (a, b))
            expected = 10 * np.log10(255.0**2 / np.mean((a - b) ** 2))
            assert float(psnr(x, y, colour=colour, crop=crop)[i]) == pytest.approx(expected, abs=1e-6)
            expected = np.mean([basicsr_ssim(a[..., c], b[..., c]) for c in range(a.shape[-1])])
            assert float(ssim(x, y, colour=colour, crop=crop)[i]) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("kind", ["pt", "pt2"])
def test_files_that_can_run_code_are_not_loaded_untrusted(tmp_path, monkeypatch, kind):
    """Refused before a byte of them is interpreted, with the hash that would trust this very file."""
    place = tmp_path / f"embedding.{kind}"
    save_embedding(kind, place)
    loaded = []
    for module, name in ((torch.export, "load"), (torch.jit, "load")):
        monkeypatch.setattr(module, name, lambda *given, **options: loaded.append(given))
    digest = hashlib.sha256(place.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match=f"can run code of whoever made it: .* --identity.trust-sha256 {digest}"):
        Identity(IdentityConfig(embedding=str(place)))
    with pytest.raises(UsageError, match="it is another file than the one you trust"):
        Identity(IdentityConfig(embedding=str(place), trust_sha256="0" * 64))
    assert not loaded
