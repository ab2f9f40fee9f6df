"""Metrics against scikit-image, closed forms and definitions."""

import numpy as np
import pytest
import scipy.linalg
import torch
from facelab.metrics import FrechetDistance, degradation_distances, psnr, radial_spectrum, ssim
from facelab.metrics.degradation import highpass_moments, luma
from skimage.metrics import structural_similarity


def images(seed: int, count: int = 3, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def y_channel(image: np.ndarray) -> np.ndarray:
    r, g, b = image.astype(np.float64)
    return 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255


def test_psnr_by_definition():
    x, y = images(0), images(1)
    for i in range(3):
        a, b = x[i].numpy(), y[i].numpy()
        rgb = 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))
        luminance = 10 * np.log10(255**2 / np.mean((y_channel(a) - y_channel(b))[4:-4, 4:-4] ** 2))
        assert float(psnr(x, y)[i]) == pytest.approx(rgb, abs=1e-6)
        assert float(psnr(x, y, colour="y", crop=4)[i]) == pytest.approx(luminance, abs=1e-4)
    assert torch.isinf(psnr(x, x)).all()


def test_ssim_equals_scikit_image():
    """Its documented settings of Wang et al.; it pads and then crops 5 px, so the same valid region remains."""
    x = images(0)
    y = (x.float() * 0.8 + images(1).float() * 0.2).round().to(torch.uint8)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for i in range(3):
        rgb = structural_similarity(x[i].numpy().astype(float), y[i].numpy().astype(float), channel_axis=0, **options)
        luminance = structural_similarity(y_channel(x[i].numpy()), y_channel(y[i].numpy()), **options)
        assert float(ssim(x, y)[i]) == pytest.approx(rgb, abs=1e-6)
        assert float(ssim(x, y, colour="y")[i]) == pytest.approx(luminance, abs=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_images_are_refused(metric):
    x = images(0)
    with pytest.raises(ValueError, match="uint8"):
        metric(x.float(), x.float())
    with pytest.raises(ValueError, match="one shape"):
        metric(x, x[:2])
    with pytest.raises(ValueError, match="colour"):
        metric(x, x, colour="hsv")
    with pytest.raises(ValueError, match="crop"):
        metric(x, x, crop=12)


def frechet(real: np.ndarray, generated: np.ndarray) -> float:
    """The textbook form, with scipy's matrix root."""
    cov_1, cov_2 = np.cov(real.T), np.cov(generated.T)
    gap = real.mean(0) - generated.mean(0)
    return float(gap @ gap + np.trace(cov_1 + cov_2 - 2 * scipy.linalg.sqrtm(cov_1 @ cov_2).real))


def test_frechet_distance_equals_the_textbook_form():
    rng = np.random.default_rng(0)
    real, generated = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)), rng.normal(0.3, 1.4, size=(150, 6))
    whole = FrechetDistance()
    whole.update(torch.from_numpy(real), real=True)
    whole.update(torch.from_numpy(generated), real=False)
    assert whole.compute() == pytest.approx(frechet(real, generated), rel=1e-8)

    first, second = FrechetDistance(), FrechetDistance()
    for part in np.array_split(real, 7):
        (first if len(part) % 2 else second).update(torch.from_numpy(part), real=True)
    second.update(torch.from_numpy(generated), real=False)
    assert first.merge(second) is first
    assert first.compute() == pytest.approx(whole.compute(), rel=1e-9)


def test_frechet_distance_of_a_shift_is_its_square():
    features = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    distance = FrechetDistance()
    distance.update(features, real=True)
    distance.update(features + 3, real=False)
    assert distance.compute() == pytest.approx(4 * 9, rel=1e-5)


def test_frechet_distance_refuses_too_little():
    distance = FrechetDistance()
    distance.update(torch.randn(1, 4), real=True)
    with pytest.raises(ValueError, match="at least 2 real"):
        distance.compute()
    with pytest.raises(ValueError, match="dimensions"):
        distance.update(torch.randn(2, 5), real=True)


def test_radial_spectrum_by_definition():
    x = images(0, size=16)
    y = luma(x).numpy()
    power = np.log10(np.abs(np.fft.fft2(y)) ** 2 + 1)
    frequency = np.fft.fftfreq(16) * 16
    radius = np.rint(np.hypot(frequency[:, None], frequency[None]))
    reference = [np.mean([p[radius == r].mean() for p in power]) for r in range(1, 9)]
    np.testing.assert_allclose(radial_spectrum(x).numpy(), reference, rtol=1e-10)


def test_degradation_distance_sees_blur_and_noise():
    x = images(0, count=20, size=16)
    blurred = torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1).round().to(torch.uint8)
    assert degradation_distances(x, x) == {key: 0 for key in degradation_distances(x, x)}
    near, far = degradation_distances(images(1, 20, 16), x), degradation_distances(blurred, x)
    assert near["degradation_distance"] < 0.1 * far["degradation_distance"]
    assert highpass_moments(blurred)["variance"] < highpass_moments(x)["variance"]
