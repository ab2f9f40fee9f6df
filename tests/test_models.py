"""The paper's equations against independent references, and the networks' shapes, switches and published sizes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2

from models import SR_MODELS, StyleVAE, build_sr, gram_matrix, kl_divergence
from models.adain import adaptive_instance_norm
from models.attention import GlobalAttention, global_attention, local_attention
from models.features import FeatureNetwork
from models.losses import content_loss, style_loss
from models.mutual_information import StatisticsNetwork, derangement, donsker_varadhan
from models.resize import resize
from models.stylevae import reparameterise


def rand(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_kl_equals_torch_distributions():
    mu, logvar = rand(6, 5), rand(6, 5, seed=1)
    normal = torch.distributions.Normal
    reference = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_divergence(mu, logvar), reference, rtol=1e-5, atol=1e-6)  # float32 round-off
    assert kl_divergence(torch.zeros(2, 3), torch.zeros(2, 3)) == 0
    assert kl_divergence(mu, logvar) > 0


def test_adain_equals_instance_norm():
    x, scale, bias = rand(3, 4, 5, 7), rand(3, 4, seed=1), rand(3, 4, seed=2)
    reference = F.instance_norm(x, eps=1e-5) * scale[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(adaptive_instance_norm(x, scale, bias), reference, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="must be"):
        adaptive_instance_norm(x, scale[:, :2], bias)


def test_gram_by_definition():
    x = rand(2, 3, 4, 5)
    reference = torch.zeros(2, 3, 3)
    for b in range(2):
        for i in range(3):
            for j in range(3):
                reference[b, i, j] = (x[b, i] * x[b, j]).sum() / (3 * 4 * 5)
    torch.testing.assert_close(gram_matrix(x), reference, rtol=1e-5, atol=1e-6)


def test_content_and_style_loss():
    a, b = {"l": rand(2, 3, 4, 4)}, {"l": rand(2, 3, 4, 4, seed=1)}
    assert content_loss(a, a) == 0
    assert style_loss(a, a) == 0
    torch.testing.assert_close(content_loss(a, b), F.mse_loss(a["l"], b["l"]))
    shuffled = {"l": a["l"].flatten(2)[..., torch.randperm(16)].reshape(2, 3, 4, 4)}
    assert style_loss(a, shuffled) < 1e-10  # a Gram matrix has no places …
    assert content_loss(a, shuffled) > 0.1  # … content has
    with pytest.raises(ValueError, match="layers differ"):
        content_loss(a, {"k": b["l"]})


def test_donsker_varadhan_with_the_optimal_critic():
    """Correlated Gaussians: I = −½ log(1 − ρ²) is known, and so is the optimal T, the log density ratio. With 200 000
    pairs the bound lies within 0.02 nats (five standard errors)."""
    rho, n = 0.8, 200_000
    x, e = rand(n, dtype=torch.float64), rand(n, seed=1, dtype=torch.float64)
    y = rho * x + math.sqrt(1 - rho**2) * e

    def ratio(a, b):
        joint = -(a**2 - 2 * rho * a * b + b**2) / (2 * (1 - rho**2)) - 0.5 * math.log(1 - rho**2)
        return joint + (a**2 + b**2) / 2

    bound = donsker_varadhan(ratio(x, y), ratio(x[derangement(n)], y))
    assert abs(float(bound) + 0.5 * math.log(1 - rho**2)) < 0.02


def test_donsker_varadhan_does_not_overflow():
    assert torch.isfinite(donsker_varadhan(torch.full((4,), 1e4), torch.full((4,), 1e4)))


@pytest.mark.parametrize("count", [2, 3, 17])
def test_derangement_has_no_fixed_point(count):
    for seed in range(30):
        order = derangement(count, torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(count))
        assert (order != torch.arange(count)).all()
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_global_attention_by_definition(size):
    q, k, v = rand(2, 3, *size), rand(2, 3, *size, seed=1), rand(2, 6, *size, seed=2)
    s = torch.einsum("bdi,bdj->bij", k.flatten(2), q.flatten(2))  # s_ij = f(x_i)ᵀ g(x_j)
    beta = s.softmax(dim=1)  # over i: for each output position j
    reference = torch.einsum("bij,bci->bcj", beta, v.flatten(2)).reshape(v.shape)
    torch.testing.assert_close(global_attention(q, k, v), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "window"), [((6, 5), 3), ((7, 7), 7), ((3, 4), 9)])
def test_local_attention_by_definition(size, window):
    """A loop over positions; windows larger than the map; what is outside is invisible."""
    q, k, v = rand(2, 2, *size), rand(2, 2, *size, seed=1), rand(2, 6, *size, seed=2)
    height, width = size
    reference, r = torch.zeros_like(v), window // 2
    for c in range(6):
        g = c // 3
        for y in range(height):
            for x in range(width):
                rows, columns = slice(max(y - r, 0), y + r + 1), slice(max(x - r, 0), x + r + 1)
                scores = -((q[:, g, y, x, None, None] - k[:, g, rows, columns]) ** 2)
                weights = scores.flatten(1).softmax(1)
                reference[:, c, y, x] = (weights * v[:, c, rows, columns].flatten(1)).sum(1)
    torch.testing.assert_close(local_attention(q, k, v, window), reference, rtol=1e-5, atol=1e-5)


def test_attention_gradients():
    q, k, v = (rand(1, d, 3, 4, seed=d, dtype=torch.float64).requires_grad_() for d in (2, 2, 4))
    assert torch.autograd.gradcheck(global_attention, (q, k, v))
    assert torch.autograd.gradcheck(lambda *x: local_attention(*x, 3), (q, k, v))


def test_gamma_starts_at_zero():
    layer, x = GlobalAttention(16), rand(1, 16, 4, 4)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("srcnn", {}, 57_281),  # field-notes 5b, 9-5-5 on Y
        ("srcnn", {"kernels": (9, 1, 5)}, 8_129),
        ("edsr", {}, 1_517_571),  # EDSR-PyTorch baseline x4
        ("edsr", {"size": "full"}, 43_089_923),
    ],
)
def test_published_parameter_counts(name, options, count):
    with torch.device("meta"):
        network = SR_MODELS[name](4, **options)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", SR_MODELS)
@pytest.mark.parametrize("scale", [2, 4])
def test_sr_shapes(name, scale):
    network = build_sr(name, scale, **({"size": "mini"} if name == "edsr" else {}))
    assert network(rand(2, 3, 12, 10).tanh()).shape == (2, 3, 12 * scale, 10 * scale)


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="unknown SR model"):
        build_sr("esrgan")
    with pytest.raises(ValueError, match="scale 5"):
        build_sr("edsr", 5)
    with pytest.raises(ValueError, match="odd"):
        build_sr("attentive", 4, window=4)
    with pytest.raises(TypeError):
        build_sr("attentive", 4, windw=3)


def names(network: nn.Module) -> set[str]:
    return {name for name, _ in network.named_parameters()}


def test_attention_switches_remove_the_attention_and_nothing_else():
    small = {"channels": 16, "global_blocks": 1, "local_blocks": 1}
    whole = names(build_sr("attentive", **small))
    for switch, block in (("use_global", "body.0"), ("use_local", "body.1")):
        gone = whole - names(build_sr("attentive", **small, **{switch: False}))
        assert gone == {name for name in whole if name.startswith(f"{block}.attention.")}
        assert gone


def test_adain_switch_keeps_depth_and_width():
    on, off = StyleVAE(channels=16, blocks=2), StyleVAE(channels=16, blocks=2, use_adain=False)
    assert names(on) - names(off) == {f"generator.blocks.{i}.affine.{p}" for i in range(2) for p in ("weight", "bias")}
    assert off.generator.blocks[0].first.in_channels == 16 + 32
    for network in (on, off):
        out = network(rand(2, 3, 64, 64).tanh(), rand(2, 3, 16, 16).tanh())
        assert out.generated.shape == (2, 3, 16, 16)
        assert out.mu.shape == out.logvar.shape == (2, 32)


def test_the_style_code_changes_the_image():
    network = StyleVAE(channels=16, blocks=1)
    content = network.encode_content(rand(1, 3, 64, 64).tanh())
    assert not torch.allclose(network.generate(content, rand(1, 32)), network.generate(content, rand(1, 32, seed=1)))


def test_reparameterise():
    mu, noise = rand(2, 3), rand(2, 3, seed=1)
    torch.testing.assert_close(reparameterise(mu, torch.full((2, 3), math.log(4.0)), noise), mu + 2 * noise)


@pytest.mark.parametrize("name", ["srcnn", "edsr", "attentive"])
def test_one_batch_can_be_overfitted(name):
    torch.manual_seed(0)
    options = {
        "edsr": {"size": "mini"},
        "attentive": {"channels": 16, "global_blocks": 1, "local_blocks": 1},
        "srcnn": {},
    }
    network = build_sr(name, 2, **options[name])
    hr = F.interpolate(rand(2, 3, 6, 6).tanh(), scale_factor=4, mode="bilinear")
    lr = resize(hr, 12)
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(60):
        loss = (network(lr) - hr).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["srcnn", "edsr", "attentive"])
def test_images_of_a_batch_do_not_meet(name):
    network = build_sr(name, 2, **({"size": "mini"} if name == "edsr" else {})).eval()
    x = rand(3, 3, 9, 9).tanh()
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-4, atol=1e-5)


def test_bf16_autocast_stays_finite():
    network, score = StyleVAE(channels=16, blocks=1), StatisticsNetwork(8)
    with torch.autocast("cpu", torch.bfloat16):
        lr = rand(4, 3, 16, 16).tanh()
        out = network(rand(4, 3, 64, 64).tanh(), lr)
        mi = donsker_varadhan(score(lr, out.generated), score(lr[derangement(4)], out.generated))
        terms = [kl_divergence(out.mu, out.logvar), gram_matrix(out.generated).sum(), mi]
    for term in terms:
        assert term.dtype == torch.float32
        assert torch.isfinite(term)


def test_resize_is_antialiased_bicubic():
    """A stored row (PIL's bicubic of a step edge, 16 to 4 px), and PIL itself on noise within one grey level, as PIL
    rounds between its two passes. Middle greys only: PIL also clips between them, which on full range costs it 17."""
    step = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    step[..., 7:] = 200
    assert resize(step, 4)[0, 0, 0].tolist() == [0, 51, 204, 200]
    noise = torch.randint(80, 176, (3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.permute(1, 2, 0).numpy())
    for size in (16, 23, 96):
        reference = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
        ours = resize(noise[None], size)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(ours - reference).max() <= 1


def test_feature_network_is_calibrated_and_frozen():
    weights = {f"features.{k}": v for k, v in _random_mobilenet().items()}
    network = FeatureNetwork("mobilenet_v2", ("block0", "block1"), weights, min_size=32)
    images = rand(8, 3, 16, 16).tanh().requires_grad_()
    network.calibrate(images.detach())
    features = network(images)
    for f in features.values():
        assert float(f.detach().square().mean().sqrt()) == pytest.approx(1, abs=1e-5)
    features["block1"].square().sum().backward()
    assert images.grad is not None
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().network.training
    with pytest.raises(ValueError, match="no layer"):
        FeatureNetwork("mobilenet_v2", ("relu1_1",), weights)


def _random_mobilenet() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return mobilenet_v2(weights=None).features.state_dict()
