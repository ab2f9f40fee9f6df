"""The paper's equations against independent references, and the networks' shapes, switches and published sizes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v2, vgg16, vgg19

from benchmarks.attention import Largest
from models import DEGRADERS, SR_MODELS, StyleVAE, build_degrader, build_sr, bulat, gram_matrix, kl_divergence, srgan
from models.adain import adaptive_instance_norm
from models.attention import GlobalAttention, global_attention, local_attention
from models.colour import rgb_to_ycbcr
from models.features import FEATURE_NETWORKS, FeatureNetwork
from models.losses import content_loss, discriminator_loss, generator_loss, style_loss
from models.luma import luma
from models.mutual_information import StatisticsNetwork, derangement, donsker_varadhan
from models.network import Network
from models.resize import resize, upscale
from models.stylevae import reparameterise


def small(name: str, network: type[Network]) -> dict:
    """The options of preset debug, which make every network small enough to try."""
    options = network.presets.get("debug", {}).items()
    return {key.removeprefix(f"{name}."): value for key, value in options if key.startswith(f"{name}.")}


SMALL = {name: small(name, network) for name, network in SR_MODELS.items()}
SMALL_DEGRADERS = {name: small(name, network) for name, network in DEGRADERS.items()}
TRAINABLE = [name for name in SR_MODELS if name != "bicubic"]


def rand(*shape: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_kl_equals_torch_distributions():
    mu, logvar = rand(6, 5), rand(6, 5, seed=1)
    normal = torch.distributions.Normal
    reference = torch.distributions.kl_divergence(normal(mu, (0.5 * logvar).exp()), normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(kl_divergence(mu, logvar), reference, rtol=1e-5, atol=1e-6)  # float32 round-off


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
    assert donsker_varadhan(torch.full((4,), 1e4), torch.full((4,), 1e4)) == 0


def test_donsker_varadhan_with_a_learnt_critic():
    """A small T, trained as the styleVAE's is, on batches of 256 pairs with deranged negatives: after 400 steps, its bound
    on fresh pairs is at least 80 % of the true information, and above it by no more than chance (0.05 nats)."""
    rho = 0.8
    truth = -0.5 * math.log(1 - rho**2)  # 0.51 nats
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(2, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 1))
    optimiser = torch.optim.Adam(critic.parameters(), 3e-3)

    def bound(n: int) -> torch.Tensor:
        x = torch.randn(n)
        y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n)
        joint, marginal = torch.stack([x, y], 1), torch.stack([x[derangement(n)], y], 1)
        return donsker_varadhan(critic(joint).squeeze(1), critic(marginal).squeeze(1))

    for _ in range(400):
        optimiser.zero_grad()
        (-bound(256)).backward()
        optimiser.step()
    with torch.no_grad():
        assert 0.8 * truth < float(bound(50_000)) < truth + 0.05


def test_adversarial_losses_equal_cross_entropy_and_hinge():
    real, fake = rand(7), rand(7, seed=1)
    bce = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(generator_loss(fake, "vanilla"), bce(fake, torch.ones(7)))
    both = bce(real, torch.ones(7)) + bce(fake, torch.zeros(7))
    torch.testing.assert_close(discriminator_loss(real, fake, "vanilla"), both)
    hinge = torch.stack([max(1 - r, 0 * r) + max(1 + f, 0 * f) for r, f in zip(real, fake, strict=True)]).mean()
    torch.testing.assert_close(discriminator_loss(real, fake, "hinge"), hinge)
    assert generator_loss(fake, "hinge") == -fake.mean()
    assert discriminator_loss(torch.tensor([-1e4]), torch.tensor([1e4]), "vanilla") == 2e4


@pytest.mark.parametrize("count", [2, 3, 17])
def test_derangement_has_no_fixed_point(count):
    for seed in range(30):
        order = derangement(count, torch.Generator().manual_seed(seed))
        assert sorted(order.tolist()) == list(range(count))
        assert (order != torch.arange(count)).all()
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (13, 3)])
@pytest.mark.parametrize(("inner", "channels"), [(3, 6), (8, 64), (9, 5)])
def test_global_attention_by_definition(size, inner, channels):
    q, k, v = rand(2, inner, *size), rand(2, inner, *size, seed=1), rand(2, channels, *size, seed=2)
    s = torch.einsum("bdi,bdj->bij", k.flatten(2), q.flatten(2))  # s_ij = f(x_i)ᵀ g(x_j)
    beta = s.softmax(dim=1)  # over i: for each output position j
    reference = torch.einsum("bij,bci->bcj", beta, v.flatten(2)).reshape(v.shape)
    torch.testing.assert_close(global_attention(q, k, v), reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_lean(dtype):
    """GA never holds the N x N map, nor LA the unfolded window, forward or backward."""
    size, window = (24, 25), 7
    n = size[0] * size[1]
    q, k, v = (rand(1, d, *size, dtype=dtype).requires_grad_() for d in (8, 8, 64))
    with Largest() as largest:
        global_attention(q, k, v).sum().backward()
    assert largest.elements <= 64 * n < n * n
    with Largest() as largest:
        local_attention(q, k, v, window).sum().backward()
    assert largest.elements <= 8 * window**2 * n < 64 * window**2 * n  # the weights of 8 groups


@pytest.mark.parametrize("size", [(6, 5), (7, 7), (3, 4), (11, 2), (1, 1)])
@pytest.mark.parametrize("window", [3, 5, 7, 9])
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
    q, k, v = (rand(1, d, 3, 5, seed=d, dtype=torch.float64).requires_grad_() for d in (2, 2, 4))
    assert torch.autograd.gradcheck(global_attention, (q, k, v))
    for window in (3, 5, 7):
        assert torch.autograd.gradcheck(lambda *x, w=window: local_attention(*x, w), (q, k, v))


def test_gamma_starts_at_zero():
    layer, x = GlobalAttention(16), rand(1, 16, 4, 4)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        # Counted layer by layer from each paper, weights and biases; EDSR and RDN also from the authors' code at x4.
        ("srcnn", {}, 57_281),  # Dong et al. § 4.3.2: 9-5-5 on Y
        ("srcnn", {"kernels": (9, 1, 5)}, 8_129),  # § 4.3.2: 8,032 weights, "8K", and 97 biases
        ("vdsr", {}, 665_921),  # Kim et al. § 3.1: 20 layers of 64 on Y ("665K" in later papers)
        ("srgan", {}, 1_549_462),  # Ledig et al. Fig. 4: SRResNet, 16 blocks
        ("edsr", {}, 1_517_571),  # EDSR-PyTorch baseline ("1.5M" in the paper's Table 1)
        ("edsr", {"size": "full"}, 43_089_923),  # "43M"
        ("rdn", {}, 22_271_107),  # Zhang et al., configuration B ("22.3M")
    ],
)
def test_published_parameter_counts(name, options, count):
    with torch.device("meta"):
        network = SR_MODELS[name](4, **options)
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize(("scale", "count"), [(2, 1_369_859), (3, 1_554_499)])
def test_edsr_at_its_other_scales(scale, count):
    assert sum(p.numel() for p in build_sr("edsr", scale).parameters()) == count


@pytest.mark.parametrize("name", SR_MODELS)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_sr_shapes(name, scale):
    if scale not in SR_MODELS[name].scales:
        with pytest.raises(ValueError, match=f"has no scale {scale}, only"):
            build_sr(name, scale, **SMALL[name])
        return
    network = build_sr(name, scale, **SMALL[name])
    assert network(rand(2, 3, 12, 10).tanh()).shape == (2, 3, 12 * scale, 10 * scale)


@pytest.mark.parametrize("name", DEGRADERS)
@pytest.mark.parametrize("hr_size", [64, 128])
def test_degrader_shapes(name, hr_size):
    network = build_degrader(name, 4, **SMALL_DEGRADERS[name])
    low = network.degrade(rand(2, 3, hr_size, hr_size).tanh(), rand(2, network.noise_dim(hr_size)))
    assert low.shape == (2, 3, hr_size // 4, hr_size // 4)


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_discriminators_give_one_logit_an_image(size):
    assert bulat.Discriminator(size, width_divisor=8)(rand(2, 3, size, size)).shape == (2,)
    assert srgan.Discriminator(size, width_divisor=8)(rand(2, 3, size, size)).shape == (2,)


def test_discriminators_refuse_other_sizes():
    with pytest.raises(ValueError, match="8, 16, 32"):
        bulat.Discriminator(24)
    with pytest.raises(ValueError, match="multiple of 16"):
        srgan.Discriminator(40)


def test_bulats_discriminator_is_spectrally_normalised():
    """Every layer's largest singular value is 1 after power iteration, and there is no batch norm."""
    torch.manual_seed(0)  # how fast power iteration converges depends on the weights that are drawn
    critic = bulat.Discriminator(16, width_divisor=8)
    for _ in range(300):
        critic(rand(4, 3, 16, 16))
    layers = [m for m in critic.eval().modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == 12 + 4 + 2  # six blocks of two, the four skips that change shape, two dense ones
    for layer in layers:
        assert float(torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2)) == pytest.approx(1, abs=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())


@pytest.mark.parametrize("name", ["srcnn", "vdsr"])
def test_luma_networks_leave_colour_bicubic(name):
    lr = rand(2, 3, 8, 8).tanh() * 0.3
    sr = build_sr(name, 4, **SMALL[name])(lr)
    bicubic = upscale(lr, 4)
    chroma = [rgb_to_ycbcr(x * 0.5 + 0.5)[:, 1:] for x in (sr, bicubic)]  # in 16..240
    torch.testing.assert_close(*chroma, atol=1e-4, rtol=0)
    assert not torch.allclose(luma(sr), luma(bicubic), atol=1e-3)


def test_luma_keeps_its_digits_under_autocast():
    images = rand(1, 3, 8, 8).tanh()
    with torch.autocast("cpu", torch.bfloat16):
        low = luma(images)
    assert torch.equal(low, luma(images))


def test_srcnns_last_layer_is_a_group_of_its_own():
    network = build_sr("srcnn")
    groups = network.parameter_groups(1e-4)
    assert sum(p.numel() for g in groups for p in g["params"]) == 57_281
    assert {id(p) for p in groups[1]["params"]} == {id(p) for p in network.reconstruct.parameters()}


def test_recipes_decay_in_fractions_of_the_run():
    edsr = SR_MODELS["edsr"].paper_recipe
    assert [edsr.optimiser.factor(step / edsr.max_steps) for step in (0, 199_999, 200_000, 299_999)] == [1, 1, 0.5, 0.5]
    gan = SR_MODELS["srgan"].paper_recipe
    rates = [gan.learning_rate * gan.optimiser.factor(step / gan.max_steps) for step in (0, 1_099_999, 1_100_000)]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5])
    assert gan.adversarial.pretrain * gan.max_steps == pytest.approx(1_000_000)
    rdn = SR_MODELS["rdn"].paper_recipe
    assert rdn.optimiser.factor(200_000 / rdn.max_steps) == 0.5


def test_wrong_models_are_refused():
    with pytest.raises(ValueError, match="unknown SR model"):
        build_sr("esrgan")
    with pytest.raises(ValueError, match="no scale 5, only 2, 3, 4, 8"):
        build_sr("edsr", 5)
    with pytest.raises(ValueError, match="unknown degrader"):
        build_degrader("bicubic")
    for name, option in (("edsr", "size"), ("rdn", "size"), ("srgan", "size"), ("bulat", "size")):
        with pytest.raises(ValueError, match=f"{name}.size must be"):
            build_sr(name, 4, **{option: "huge"})
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
        out = network(rand(2, 3, 64, 64).tanh(), rand(2, 3, 16, 16).tanh(), rand(2, network.noise_dim(64)))
        assert out.generated.shape == (2, 3, 16, 16)
        assert out.mu.shape == out.logvar.shape == (2, 32)


def test_the_style_code_changes_the_image():
    network = StyleVAE(channels=16, blocks=1)
    content = network.encode_content(rand(1, 3, 64, 64).tanh())
    assert not torch.allclose(network.generate(content, rand(1, 32)), network.generate(content, rand(1, 32, seed=1)))


def test_reparameterise():
    mu, noise = rand(2, 3), rand(2, 3, seed=1)
    torch.testing.assert_close(reparameterise(mu, torch.full((2, 3), math.log(4.0)), noise), mu + 2 * noise)


def overfit(network: nn.Module, output, target: torch.Tensor, steps: int = 80) -> tuple[float, float]:
    """Mean absolute error before and after Adam on one batch."""
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    losses = []
    for _ in range(steps):
        loss = (output() - target).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses[0], losses[-1]


@pytest.mark.parametrize("name", TRAINABLE)
def test_one_batch_can_be_overfitted(name):
    """Grey images, as srcnn and vdsr cannot mend colour."""
    torch.manual_seed(0)
    network = build_sr(name, 4, **SMALL[name])
    hr = F.interpolate(rand(2, 1, 8, 8).tanh(), scale_factor=4, mode="bilinear").expand(-1, 3, -1, -1)
    lr = resize(hr, 8).clamp(-1, 1)
    first, last = overfit(network, lambda: network(lr), hr)
    assert last < 0.5 * first


@pytest.mark.parametrize("name", DEGRADERS)
def test_degraders_can_overfit_one_batch(name):
    torch.manual_seed(0)
    network = build_degrader(name, 4, **SMALL_DEGRADERS[name])
    hr, noise = rand(2, 3, 64, 64).tanh(), rand(2, network.noise_dim(64))
    first, last = overfit(network, lambda: network.degrade(hr, noise), rand(2, 3, 16, 16, seed=5).tanh() * 0.8)
    assert last < 0.5 * first


@pytest.mark.parametrize("kind", [bulat.Discriminator, srgan.Discriminator], ids=["bulat", "srgan"])
def test_discriminators_can_overfit_one_batch(kind):
    torch.manual_seed(0)
    critic = kind(16, 8)
    real, fake = rand(4, 3, 16, 16).tanh(), rand(4, 3, 16, 16, seed=1).tanh()
    optimiser = torch.optim.Adam(critic.parameters(), 2e-3)
    for _ in range(80):
        loss = discriminator_loss(critic(real), critic(fake), "vanilla")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.5 * 2 * math.log(2)  # that of not knowing


@pytest.mark.parametrize("name", TRAINABLE)
def test_images_of_a_batch_do_not_meet(name):
    """In eval mode; batches of other sizes differ in the last bits of their sums."""
    network = build_sr(name, 4, **SMALL[name]).eval()
    x = rand(3, 3, 9, 9).tanh()
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", DEGRADERS)
def test_faces_of_a_degraded_batch_do_not_meet(name):
    network = build_degrader(name, 4, **SMALL_DEGRADERS[name]).eval()
    hr, noise, style = rand(3, 3, 64, 64).tanh(), rand(3, network.noise_dim(64)), rand(3, 3, 16, 16, seed=1).tanh()
    whole, alone = network.degrade(hr, noise, style)[1:2], network.degrade(hr[1:2], noise[1:2], style[1:2])
    torch.testing.assert_close(whole, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TRAINABLE)
def test_sr_networks_stay_finite_in_bf16(name):
    """Forward and backward under autocast, and within 2 % of float32: 8 bits of mantissa through a dozen layers."""
    torch.manual_seed(0)
    network = build_sr(name, 4, **SMALL[name]).eval()
    lr = rand(2, 3, 8, 8).tanh()
    with torch.autocast("cpu", torch.bfloat16):
        sr = network(lr)
    sr.float().abs().mean().backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    with torch.no_grad():
        wide = network(lr)
    assert (sr - wide).abs().mean() < 0.02 * wide.abs().mean()


def test_losses_run_in_float32_under_autocast():
    """Features whose squares overflow half precision: every loss is finite, and float32."""
    large = {"l": (rand(2, 4, 8, 8) * 300).half()}
    other = {"l": (rand(2, 4, 8, 8, seed=1) * 300).half()}
    mu = torch.full((2, 3), 200.0).half()
    q, v = large["l"].bfloat16(), rand(2, 4, 8, 8, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        losses = [
            content_loss(large, other),
            style_loss(large, other),
            kl_divergence(mu, torch.full((2, 3), 8.0).half()),
            discriminator_loss(mu[0], mu[1], "vanilla"),
            generator_loss(mu[0], "vanilla"),
        ]
        attended = [global_attention(q, q, v), local_attention(q, q, v, 3)]
        normalised = adaptive_instance_norm(large["l"], torch.ones(2, 4), torch.zeros(2, 4))
    for loss in losses:
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
    # In the dtype that came in, and as float64 has it but for bfloat16's rounding of the weights and of the result, 2⁻⁸
    # relative each, and for half precision's of the result, 2⁻¹¹.
    wide = [
        global_attention(q.double(), q.double(), v.double()),
        local_attention(q.double(), q.double(), v.double(), 3),
    ]
    for ours, reference in zip(attended, wide, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), reference, rtol=1e-2, atol=1e-2)
    reference = adaptive_instance_norm(large["l"].double(), torch.ones(2, 4), torch.zeros(2, 4))
    torch.testing.assert_close(normalised.double(), reference, rtol=2**-11, atol=2**-11)


def test_bf16_autocast_stays_finite():
    network, score = StyleVAE(channels=16, blocks=1), StatisticsNetwork(8)
    with torch.autocast("cpu", torch.bfloat16):
        lr = rand(4, 3, 16, 16).tanh()
        out = network(rand(4, 3, 64, 64).tanh(), lr, rand(4, network.noise_dim(64)))
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


@pytest.mark.parametrize(("name", "build", "known"), [
    ("vgg16", vgg16, {"relu1_1": 1, "relu4_1": 18, "relu5_3": 29, "pool5": 30}),
    ("vgg19", vgg19, {"relu1_1": 1, "relu4_1": 20, "conv5_4": 34, "relu5_4": 35, "pool5": 36}),
])  # fmt: skip
def test_vgg_layer_tables(name, build, known):
    """Every name stands at a layer of its kind, in blocks that end with a pooling."""
    with torch.device("meta"):
        layers = build(weights=None).features
    table = FEATURE_NETWORKS[name].layers
    kinds = {"conv": nn.Conv2d, "relu": nn.ReLU, "pool": nn.MaxPool2d}
    assert len(table) == len(layers)
    for layer, index in table.items():
        assert isinstance(layers[index], kinds[layer[:4]]), layer
    assert known.items() <= table.items()


def test_feature_network_is_calibrated_and_frozen():
    weights = {f"features.{k}": v for k, v in _random_mobilenet().items()}
    network = FeatureNetwork("mobilenet_v2", ("block0", "block1"), weights, min_size=32)
    images = rand(8, 3, 16, 16).tanh().requires_grad_()
    network.calibrate(images.detach())
    features = network(images)
    for f in features.values():
        assert float(f.detach().square().mean().sqrt()) == pytest.approx(1, abs=1e-5)
    features["block1"].square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in network.parameters())
    assert not network.train().network.training
    with pytest.raises(ValueError, match="no layer"):
        FeatureNetwork("mobilenet_v2", ("relu1_1",), weights)


def _random_mobilenet() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return mobilenet_v2(weights=None).features.state_dict()
