"""The camera of the styleVAE: each of its parts against another way to compute it, and how its settings are learnt."""

import io
import math

import numpy as np
import pytest
import torch
from facelab.images import to_float, to_uint8
from facelab.samples.faces import sample_face
from facelab.trained.weights import build_features
from PIL import Image
from scipy.linalg import expm
from torch import nn

from models import StyleVAE, kl_divergence
from models.camera import SETTINGS, START_MEAN, expose, record
from models.jpeg import jpeg
from models.losses import recognition_loss
from models.stylevae_loss import LossWeights, StyleVAELoss


def faces(count: int, size: int) -> torch.Tensor:
    drawn = [torch.from_numpy(sample_face(0, identity, size)).permute(2, 0, 1) for identity in range(count)]
    return torch.stack(drawn)


def settings(count: int = 1, **values: float) -> torch.Tensor:
    """Where the camera starts, but for what is given: no blur to speak of, no noise, the best quality."""
    clean = dict(zip(SETTINGS, START_MEAN, strict=True)) | {"noise": -20.0, "quality": 20.0} | values
    return torch.tensor([[clean[name] for name in SETTINGS]] * count)


@pytest.mark.parametrize("quality", [20, 50, 75, 95])
@pytest.mark.parametrize("size", [16, 64])
def test_jpeg_is_pillows(quality, size):
    """Within rounding, which Pillow's fixed-point arithmetic does elsewhere: 1.2 grey levels on average, where compression
    changes 3 to 15. Chroma by nearest neighbours is 1.6 to 3.4 off, tables that round halves to even 1.7."""
    images, expected = faces(20, size), []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
        expected.append(torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1))
    found = to_uint8(jpeg(to_float(images), torch.full((20,), float(quality))))
    error = (found.double() - torch.stack(expected).double()).abs().mean()
    assert error < 1.2


def test_jpeg_of_any_size_and_its_gradient():
    images = (torch.rand(2, 3, 13, 22) * 2 - 1).requires_grad_()
    found = jpeg(images, torch.tensor([30.0, 90.0]))
    assert found.shape == images.shape
    found.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "values", [{"blur": -0.2}, {"blur": -0.5, "stretch": 0.3}, {"blur": -0.6, "stretch": -0.2, "slant": 0.3}]
)
def test_the_kernels_covariance_is_the_matrix_exponential(values):
    """Second moments of the response to a point, sampled one HR pixel at a time."""
    values = {"blur": -0.3, "stretch": 0.0, "slant": 0.0} | values
    scale, side = 4, 96
    moments, mass, mean = np.zeros((2, 2)), 0.0, np.zeros(2)
    centre = side // 2
    for dy in range(scale):
        for dx in range(scale):
            hr = torch.zeros(1, 3, side, side)
            hr[..., centre + dy, centre + dx] = 1
            low = expose(hr, settings(**values, contrast=0.0), scale)[0, 0].numpy().astype(float)
            # Of each LR pixel, where the point lies as seen from its centre, LR px.
            at = (np.array([centre + dy, centre + dx]) + 0.5) / scale
            for (row, column), weight in np.ndenumerate(low):
                away = at - np.array([row + 0.5, column + 0.5])
                mass, mean = mass + weight, mean + weight * away
                moments += weight * np.outer(away[::-1], away[::-1])  # x, then y
    b, s, d = values["blur"], values["stretch"], values["slant"]
    assert mass == pytest.approx(1, abs=1e-5)
    assert mean == pytest.approx(0, abs=1e-4)  # nothing moves
    assert moments == pytest.approx(expm(2 * np.array([[b + s, d], [d, b - s]])), rel=0.02, abs=0.002)


def test_contrast_turns_around_the_mean():
    hr = to_float(faces(2, 64))
    plain, stronger = (expose(hr, settings(2, contrast=c), 4) for c in (0.0, math.log(1.5)))
    torch.testing.assert_close(stronger.mean(dim=(2, 3)), plain.mean(dim=(2, 3)))
    torch.testing.assert_close(stronger.std(dim=(2, 3)), 1.5 * plain.std(dim=(2, 3)))


@pytest.mark.parametrize(("level", "share", "shot"), [(6.0, 0.01, 0.01), (6.0, 0.99, 0.01), (12.0, 0.5, 0.99)])
def test_noise_has_the_spread_that_the_settings_say(level, share, shot):
    """On grey 128, over 64 images of 64 px and as many of JPEG's finest steps as there are: within 3 %."""
    torch.manual_seed(0)
    logit = [math.log(x / (1 - x)) for x in (share, shot)]
    given = settings(64, noise=math.log(level), colour_noise=logit[0], shot=logit[1], grain=-5.0)
    grey = torch.zeros(64, 3, 64, 64)
    found = record(grey, given, torch.randn(64, 4, 64, 64)) * 127.5
    luma = torch.einsum("bchw,c->bhw", found, torch.tensor([0.299, 0.587, 0.114]))  # JPEG averages chroma
    weights = np.array([0.299, 0.587, 0.114])
    expected = level**2 * (1 - shot / 2) * ((1 - share) + share * (weights**2).sum())
    assert float(luma.std()) == pytest.approx(math.sqrt(expected), rel=0.03)


def test_faces_keep_place_and_colours():
    """Settings of the prior, and blocks beside the camera, leave the mean of each channel within 12 grey levels, and a
    face where it is: moved by an HR pixel to any side, it is less like its LR."""
    torch.manual_seed(0)
    network = StyleVAE(4, camera=True, channels=16, blocks=1)
    nn.init.normal_(network.generator.to_rgb.weight, std=0.1)
    hr = to_float(faces(20, 72))
    low = network.degrade(hr, torch.randn(20, network.noise_dim(72)))
    pooled = {
        (dy, dx): nn.functional.avg_pool2d(hr.roll((dy, dx), (2, 3)), 4) for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    }
    assert (low - pooled[0, 0]).mean(dim=(2, 3)).abs().max() < 12 / 127.5
    inside = {shift: (low - small)[..., 1:-1, 1:-1].square().mean() for shift, small in pooled.items()}
    assert min(inside, key=inside.get) == (0, 0)


def test_the_camera_sees_no_half_precision():
    network = StyleVAE(4, camera=True, blocks=0, style_dim=len(SETTINGS))
    hr, noise = to_float(faces(2, 64)), torch.randn(2, network.noise_dim(64))
    with torch.autocast("cpu", torch.bfloat16):
        low = network.degrade(hr, noise)
    assert torch.equal(low, network.degrade(hr, noise))


def test_blocks_beside_the_camera_may_be_of_half_precision():
    """Their share of the image is small: within 6 grey levels on average, as JPEG rounds some of it elsewhere."""
    torch.manual_seed(0)
    network = StyleVAE(4, camera=True, channels=16, blocks=1)
    nn.init.normal_(network.generator.to_rgb.weight, std=0.1)
    hr, noise = to_float(faces(4, 64)), torch.randn(4, network.noise_dim(64))
    with torch.autocast("cpu", torch.bfloat16):
        low = network.degrade(hr, noise)
    assert (low - network.degrade(hr, noise)).abs().mean() < 6 / 127.5


def test_the_prior_follows_the_codes_of_real_faces():
    """What minimises KL(q ‖ prior) over the prior: mean and total spread of q."""
    torch.manual_seed(0)
    network = StyleVAE(4, camera=True, channels=8, blocks=1)
    lr = torch.rand(64, 3, 16, 16) * 2 - 1
    n = len(SETTINGS)
    with torch.no_grad():
        mu, logvar = (x[:, :n] for x in network.style_encoder(lr))
        expected = mu.mean(dim=0), (mu.var(dim=0, correction=0) + logvar.exp().mean(dim=0)).sqrt()
    optimiser = torch.optim.Adam([network.prior_mean, network.prior_log_spread], 0.02)
    for _ in range(300):
        optimiser.zero_grad()
        kl_divergence(*network.encode_style(lr)).backward()
        optimiser.step()
    torch.testing.assert_close(network.prior_mean.detach(), expected[0], atol=0.02, rtol=0.02)
    torch.testing.assert_close(network.prior_log_spread.detach().exp(), expected[1], atol=0.02, rtol=0.02)


def test_recognition_trains_the_encoder_alone():
    network = StyleVAE(4, camera=True, channels=8, blocks=1)
    recognition_loss(
        *network.recognise(torch.rand(4, 3, 64, 64) * 2 - 1, torch.randn(4, network.noise_dim(64)))
    ).backward()
    trained = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None}
    assert trained == {"style_encoder"}


@pytest.mark.parametrize("lambda_style", [0.0, 1.0])
def test_no_image_is_made_that_nobody_looks_at(monkeypatch, lambda_style):
    """Without Eq. 2 and MI, only that of recognition."""
    network = StyleVAE(4, camera=True, blocks=0, style_dim=len(SETTINGS), channels=8)
    weights = LossWeights(lambda_style=lambda_style, lambda_mi=0.0)
    layers = ("block0",)
    features = build_features("mobilenet_v2", layers, None, min_size=16) if lambda_style else None
    loss = StyleVAELoss(nn.ModuleDict({"main": network}), features, weights, layers, layers)
    made = []
    generate = network.generate
    monkeypatch.setattr(network, "generate", lambda *given: made.append(1) or generate(*given))
    lr, noise = torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(4, 2, network.noise_dim(64))
    total, terms = loss(torch.rand(4, 3, 64, 64) * 2 - 1, lr, lr, noise)
    assert len(made) == (2 if lambda_style else 1)
    assert ("style" in terms) == bool(lambda_style)
    torch.testing.assert_close(total, sum(value for name, value in terms.items() if name.startswith("weighted_")))


def test_recognition_loss_is_the_gaussian_likelihood():
    target, mu, logvar = torch.randn(5, 9), torch.randn(5, 9), torch.randn(5, 9)
    density = torch.distributions.Normal(mu, (logvar / 2).exp()).log_prob(target).sum(dim=1).mean()
    expected = -density - 9 * 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(recognition_loss(target, mu, logvar), expected)
