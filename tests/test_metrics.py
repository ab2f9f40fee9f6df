"""Metrics against scikit-image, closed forms and definitions."""

import dataclasses
import json
import math
import pickle
from dataclasses import astuple, fields

import numpy as np
import pytest
import scipy.linalg
import torch
from facelab.metrics import (
    FrechetDistance,
    degradation_distances,
    paired_difference,
    psnr,
    radial_spectrum,
    share_of_gap,
    ssim,
)
from facelab.metrics.catalogue import metric
from facelab.metrics.degradation import highpass_moments, luma
from facelab.metrics.frechet import GROUPS, NOT_FINITE, Moments, Reference, estimate
from facelab.metrics.intervals import LEAST_FACES, Bootstrap, jackknife
from facelab.metrics.kid import Sample
from facelab.metrics.number import Number
from facelab.trained.apply import in_fixed_batches
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.metrics import structural_similarity


def images(seed: int, count: int = 3, size: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def y_channel(image: np.ndarray) -> np.ndarray:
    r, g, b = image.astype(np.float64)
    return 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255


def test_psnr_of_luma_by_definition():
    x, y = images(0), images(1)
    for i in range(3):
        a, b = x[i].numpy(), y[i].numpy()
        luminance = 10 * np.log10(255**2 / np.mean((y_channel(a) - y_channel(b))[4:-4, 4:-4] ** 2))
        assert float(psnr(x, y, colour="y", crop=4)[i]) == pytest.approx(luminance, abs=1e-9)
    assert torch.isinf(psnr(x, x)).all()


def test_ssim_equals_scikit_image():
    """Its documented settings of Wang et al.; it pads and then crops 5 px, so the same valid region remains."""
    x = images(0)
    y = (x.float() * 0.8 + images(1).float() * 0.2).round().to(torch.uint8)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for i in range(3):
        rgb = structural_similarity(x[i].numpy().astype(float), y[i].numpy().astype(float), channel_axis=0, **options)
        luminance = structural_similarity(y_channel(x[i].numpy()), y_channel(y[i].numpy()), **options)
        assert float(ssim(x, y)[i]) == pytest.approx(rgb, abs=1e-9)
        assert float(ssim(x, y, colour="y")[i]) == pytest.approx(luminance, abs=1e-9)


@pytest.mark.parametrize("function", [psnr, ssim])
def test_wrong_images_are_refused(function):
    x = images(0)
    with pytest.raises(ValueError, match="uint8"):
        function(x.float(), x.float())
    with pytest.raises(ValueError, match="one shape"):
        function(x, x[:2])
    with pytest.raises(ValueError, match="colour"):
        function(x, x, colour="hsv")
    with pytest.raises(ValueError, match="crop"):
        function(x, x, crop=12)


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


@st.composite
def split_rows(draw, rows: int = 40) -> list[list[int]]:
    """The indices of some rows in any order, cut into any parts."""
    order = draw(st.permutations(range(rows)))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=6)))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, rows], strict=True)]


def features(seed: int, rows: int = 40, dims: int = 6, offset: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
    return torch.randn(rows, dims, generator=generator, dtype=torch.float64) @ mixing + offset


@given(split_rows(), split_rows(), st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 1e4]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_merging_any_split_in_any_order_gives_the_same_distance(real, generated, seed, offset, random):
    """To 1e-6, also where the mean is 10 000 times the spread."""
    x, y = features(seed, offset=offset), features(seed + 1, offset=offset) * 1.5
    whole = FrechetDistance()
    whole.update(x, real=True)
    whole.update(y, real=False)
    parts = []
    for rows, source, is_real in [(r, x, True) for r in real] + [(r, y, False) for r in generated]:
        part = FrechetDistance()
        part.update(source[rows], real=is_real)
        parts.append(part)
    random.shuffle(parts)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert merged.compute() == pytest.approx(whole.compute(), rel=1e-6)


def test_sums_of_squares_would_lose_the_digits():
    """The textbook way to stream a covariance, kept to show that the test above has power."""
    x = features(0, offset=1e7)
    naive = (x.T @ x - len(x) * torch.outer(x.mean(0), x.mean(0))) / (len(x) - 1)
    assert not torch.allclose(naive, torch.cov(x.T), rtol=1e-3)
    streamed = Moments().add(x[:13]).merge(Moments().add(x[13:])).scatter / (len(x) - 1)
    np.testing.assert_allclose(np.tril(streamed), torch.cov(x.T).tril().numpy(), rtol=1e-6)


@pytest.mark.parametrize(("n", "m"), [(12, 20), (64, 30), (40, 200)])
def test_frechet_distance_of_singular_covariances(n, m):
    """Fewer images than dimensions: the trace of the root is the nuclear norm of the product of the centred features, an
    n x m matrix whose singular values need no root of a singular matrix."""
    x, y = features(1, n, 64), features(2, m, 64) + 0.2
    a, b = ((z - z.mean(0)) / np.sqrt(len(z) - 1) for z in (x, y))
    root = torch.linalg.svdvals(a @ b.T).sum()
    expected = float((x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * root)
    distance = FrechetDistance()
    distance.update(x, real=True)
    distance.update(y, real=False)
    assert distance.compute() == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_with_dead_channels():
    """More images than dimensions, of which two are always 0 on one side or both: Σ has no plain Cholesky factor."""
    x, y = features(1, 200, 12).clone(), features(2, 150, 12).clone()
    x[:, 3] = y[:, 3] = x[:, 7] = 0
    for a, b in ((x, y), (y, x)):
        distance = FrechetDistance()
        distance.update(a, real=True)
        distance.update(b, real=False)
        assert distance.compute() == pytest.approx(frechet(x.numpy(), y.numpy()), rel=1e-6)


def groups_of(x: torch.Tensor) -> list[Moments]:
    return [Moments().add(x[i::GROUPS]) for i in range(GROUPS)]


def test_interval_and_extrapolation_of_the_distance():
    """Of 60 draws of 200 rows in 16 dimensions, some 95 % of the intervals hold the mean distance at 200 (at least 89 %,
    two standard errors below, and not all), and the extrapolated distance is three times nearer to that of 200 000 rows
    than the plain one."""
    mixing = features(9, 16, 16) / 16
    generator = torch.Generator().manual_seed(0)

    def rows(count: int) -> torch.Tensor:
        return torch.randn(count, 16, generator=generator, dtype=torch.float64)

    reference = Reference(Moments().add(rows(5000)))
    limit = reference.distance(Moments().add(rows(200_000) @ mixing))
    draws = [rows(200) @ mixing for _ in range(60)]
    found = [estimate(reference, groups_of(draw)) for draw in draws]
    mean = np.mean([f.value for f in found])
    assert 0.89 <= np.mean([f.low <= mean <= f.high for f in found]) < 1
    assert abs(np.mean([f.infinity for f in found]) - limit) < abs(mean - limit) / 3
    assert all(f.warning is None for f in found)


def test_a_jackknife_of_a_mean_is_the_interval_that_scipy_gives_it():
    """Of equal groups: Student's t over the groups' means."""
    groups = np.random.default_rng(0).normal(3, 1, (10, 7))
    without = np.array([np.delete(groups, i, axis=0).mean() for i in range(10)])
    error = stats.sem(groups.mean(axis=1))
    expected = stats.t.interval(0.95, 9, loc=groups.mean(), scale=error)
    assert jackknife(groups.mean(), without) == pytest.approx(expected)


def test_an_estimate_says_when_there_are_too_few():
    reference = Reference(Moments().add(features(3, 5000, 16)))
    few = estimate(reference, groups_of(features(4, 15, 16)))
    assert few.warning == "15 images are no more than the 16 dimensions: comparable at this N only"
    assert few.infinity is None
    left = torch.cat([features(4, 15, 16)[i::GROUPS] for i in range(1, GROUPS)])
    assert few.without[0] == pytest.approx(reference.distance(Moments().add(left)))
    two = estimate(reference, groups_of(features(4, 2, 16)))
    assert two.low is None


@given(split_rows(), st.integers(1, 50), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_sample_is_the_same_in_any_order_and_parts(parts, capacity, random):
    rows = features(0)
    keys = np.random.default_rng(0).permutation(40).astype(np.uint64)
    expected = rows[np.argsort(keys)[:capacity]]
    samples = [Sample(capacity).add(keys[part], rows[part]) for part in parts]
    random.shuffle(samples)
    merged = samples[0]
    for sample in samples[1:]:
        merged.merge(sample)
    assert torch.equal(merged.rows(), expected)


@given(split_rows(), st.randoms())
@settings(max_examples=20, deadline=None)
def test_a_bootstrap_is_the_same_in_any_order_and_parts(parts, random):
    values = features(0).numpy()
    whole = Bootstrap(6)
    for i, row in enumerate(values):
        whole.add(str(i), row)
    bootstraps = []
    for part in parts:
        bootstraps.append(Bootstrap(6))
        for i in part:
            bootstraps[-1].add(str(i), values[i])
    random.shuffle(bootstraps)
    merged = bootstraps[0]
    for bootstrap in bootstraps[1:]:
        merged.merge(bootstrap)
    for found, expected in zip(merged.intervals(), whole.intervals(), strict=True):
        assert astuple(found) == pytest.approx(astuple(expected), rel=1e-9, abs=1e-12)


def test_bootstrap_intervals_are_those_of_the_mean():
    """Half-width 1.96 standard errors, within the noise of 1000 replicates (7 %); nan and infinities are left out."""
    values = np.random.default_rng(1).normal(3, 2, 500)
    bootstrap = Bootstrap(2)
    for i, value in enumerate(values):
        bootstrap.add(str(i), np.array([value, (np.nan, np.inf, -np.inf)[i % 3] if i < 100 else value]))
    both, some = bootstrap.intervals()
    assert both.mean == pytest.approx(values.mean())
    assert (both.high - both.low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(500), rel=0.07)
    assert (some.n, some.mean) == (400, pytest.approx(values[100:].mean()))


def test_paired_difference_sees_what_two_intervals_do_not():
    """Faces differ by 3 dB, the models by 0.2 on each: the difference is certain, the intervals of the means overlap."""
    rng = np.random.default_rng(0)
    faces = rng.normal(25, 3, 200)
    gain = rng.normal(0.2, 0.3, 200)
    a = {str(i): value for i, value in enumerate(faces)}
    b = {str(i): value + more for i, (value, more) in enumerate(zip(faces, gain, strict=True))}
    difference = paired_difference(b, a | {"of another set": 1.0})
    assert difference.mean == pytest.approx(gain.mean(), abs=1e-12)
    assert 0 < difference.low < difference.mean < difference.high
    assert (difference.high - difference.low) / 2 == pytest.approx(1.96 * gain.std() / np.sqrt(200), rel=0.07)
    assert difference.n == 200
    means = [Bootstrap(), Bootstrap()]
    for i in range(200):
        for bootstrap, values in zip(means, (a, b), strict=True):
            bootstrap.add(str(i), np.array([values[str(i)]]))
    (alone_a,), (alone_b,) = (m.intervals() for m in means)
    assert alone_a.high > alone_b.low
    assert paired_difference({"1": 1.0}, {"2": 1.0}) is None
    # Four variants of each face say no more than one.
    four = [{f"{i}#{k}": value for i, value in v.items() for k in range(4)} for v in (b, a)]
    variants = paired_difference(*four, face_of=lambda i: i.rpartition("#")[0])
    assert (variants.low, variants.high) == pytest.approx((difference.low, difference.high))


def three_models(gap: float, count: int = 200, closed: float = 0.6) -> list[dict[str, float]]:
    """Values of s, b and a ceiling that is `gap` dB above b, of which s has closed a part: faces differ by 3 dB, models
    by less."""
    rng = np.random.default_rng(3)
    b = rng.normal(25, 3, count)
    gaps = rng.normal(gap, 0.4, count)
    s = b + closed * gaps + rng.normal(0, 0.3, count)
    return [{str(i): float(value) for i, value in enumerate(values)} for values in (s, b, b + gaps)]


def bootstrapped_shares(s: np.ndarray, b: np.ndarray, ceiling: np.ndarray) -> np.ndarray:
    """The plain bootstrap: as many faces, drawn with replacement, 20 000 times."""
    drawn = np.random.default_rng(0).integers(len(s), size=(20_000, len(s)))
    return (s - b)[drawn].sum(1) / (ceiling - b)[drawn].sum(1)


@pytest.mark.parametrize(("gap", "closed"), [(1.0, 0.6), (0.5, -0.3), (0.15, 1.2)])
def test_the_share_of_a_gap_is_a_plain_bootstraps(gap, closed):
    """Within the noise of 1000 replicates; models differ far less than faces, and the interval knows."""
    models = three_models(gap, closed=closed)
    s, b, ceiling = (np.array(list(model.values())) for model in models)
    share = share_of_gap(*models)
    assert share.mean == pytest.approx((s.mean() - b.mean()) / (ceiling.mean() - b.mean()))
    assert share.n == 200
    low, high = np.quantile(bootstrapped_shares(s, b, ceiling), (0.025, 0.975))
    assert share.low < share.mean < share.high
    assert (share.low, share.high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_the_share_of_a_gap_pairs_images_and_faces():
    models = three_models(1.0)
    share = share_of_gap(*models)
    assert share_of_gap(models[1], *models[1:]) == dataclasses.replace(share, mean=0, low=0, high=0)
    assert share_of_gap(models[2], *models[1:]) == dataclasses.replace(share, mean=1, low=1, high=1)
    more = [model | {f"of {k} alone": 99.0, "infinite": math.inf} for k, model in enumerate(models)]
    assert share_of_gap(*more) == share
    # Four variants of each face say no more than one.
    four = [{f"{i}#{k}": value for i, value in model.items() for k in range(4)} for model in models]
    variants = share_of_gap(*four, face_of=face_of)
    assert (variants.low, variants.high, variants.n) == (pytest.approx(share.low), pytest.approx(share.high), 800)
    assert share_of_gap(*models, seed=1).low != share.low
    assert share_of_gap({}, {}, {}) is None


def test_a_gap_that_may_be_none_has_no_finite_share():
    """About 0: a share without an interval; below 0: none, though two negatives would make a positive one."""
    assert share_of_gap(*three_models(-1.0)) is None
    models = three_models(0.02)  # 0.7 standard errors
    assert sum(models[2].values()) > sum(models[1].values())
    share = share_of_gap(*models)
    assert (share.low, share.high) == (None, None)
    same = dict.fromkeys(models[0], 1.0)
    assert share_of_gap(models[0], same, same) is None
    # Near the edge, where some replicates have no gap: wide, never inverted.
    widths = []
    for gap in (0.2, 0.1, 0.08):
        share = share_of_gap(*three_models(gap))
        assert share.low < share.mean < share.high
        widths.append(share.high - share.low)
    assert widths == sorted(widths)


def face_of(identifier: str) -> str:
    return identifier.rpartition("#")[0]


@pytest.mark.parametrize("faces", [1, LEAST_FACES - 1, LEAST_FACES])
def test_a_handful_of_faces_has_no_interval(faces):
    """However many variants they have, in one column or in another, in one part or in two: the faces count."""
    values = {f"{i}#{k}": float(i + k) for i in range(faces) for k in range(3)}
    whole, parts = Bootstrap(2), [Bootstrap(2), Bootstrap(2)]
    for index, (identifier, value) in enumerate(values.items()):
        row = np.array([value, np.nan if face_of(identifier) == "0" else value])
        whole.add(face_of(identifier), row)
        parts[index % 2].add(face_of(identifier), row)
    for bootstrap in (whole, parts[0].merge(parts[1])):
        all_faces, one_less = bootstrap.intervals()
        assert (all_faces.n, all_faces.low is None) == (3 * faces, faces < LEAST_FACES)
        assert one_less is None or one_less.low is None
    difference = paired_difference(values, dict.fromkeys(values, 0.0), face_of=face_of)
    assert (difference.low is None, difference.high is None) == (faces < LEAST_FACES,) * 2
    less, more = ({i: value + k for i, value in values.items()} for k in (-1, 1))
    share = share_of_gap(values, less, more, face_of=face_of)
    assert (share.mean, share.low is None, share.high is None) == (0.5, *(faces < LEAST_FACES,) * 2)


def test_a_bootstrap_does_not_grow():
    bootstrap, other = Bootstrap(), Bootstrap()
    for i in range(300):
        bootstrap.add(f"{i:05d}", np.ones(1))
        other.add(f"{i + 300:05d}", np.ones(1))
        if i == LEAST_FACES:
            size = len(pickle.dumps(bootstrap))
    assert len(pickle.dumps(bootstrap.merge(other))) == size


@given(st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_an_image_does_not_depend_on_its_neighbours(count, size):
    """A convolution differs in the last bits with the size of its batch; in fixed batches it must not."""
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 8, 3)
    x = torch.randn(40, 3, 8, 8)
    with torch.no_grad():
        whole = in_fixed_batches(network, x, size=size)
        assert torch.equal(in_fixed_batches(network, x[:count], size=size), whole[:count])
        pair = in_fixed_batches(lambda a, b: {"sum": network(a) + network(b)}, x[:count], x[:count], size=size)
        assert torch.equal(pair["sum"], 2 * whole[:count])


OPTIONAL = {
    **dict.fromkeys(
        ("low", "high", "infinity", "std", "floor", "at_floor"), st.floats(allow_nan=False, allow_infinity=False)
    ),
    **dict.fromkeys(("infinite", "dims", "subset_size", "floor_n", "at_floor_n", "undefined"), st.integers(1)),
    **dict.fromkeys(("warning", "layer"), st.text()),
}


@given(
    st.builds(Number, st.floats(allow_nan=False, min_value=-1e300), **{k: st.none() | v for k, v in OPTIONAL.items()})
)
@settings(deadline=None)
def test_a_summary_keeps_a_number(number):
    """Flattened and read back it is itself, also through JSON as summary.json is written, beside a number whose name
    begins alike."""
    assert OPTIONAL.keys() | {"value"} == {field.name for field in fields(Number)}
    assume(number.value < math.inf or number.infinite)  # infinite images alone make it so
    summary = number.flat("fd_vgg16") | Number(1.5, low=1.0, layer="relu1_2").flat("fd_vgg16_relu1_2")
    assert Number.of("fd_vgg16", summary) == number
    written = json.loads(json.dumps({k: None if v == math.inf else v for k, v in summary.items()}, allow_nan=False))
    assert Number.of("fd_vgg16", written) == number
    assert all(value is not None for value in summary.values())


def test_a_number_that_json_has_not_is_infinite_only_if_images_are():
    assert Number.of("psnr_y", {"psnr_y": None, "psnr_y_infinite": 2}).value == math.inf
    assert math.isnan(Number.of("fid", {"fid": None, "fid_warning": NOT_FINITE}).value)


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("psnr_y", "PSNR Y, dB"), ("brisque_real", "BRISQUE real"), ("fid", "FID"),
        ("fd_inception_pool1", "FD inception_pool1"),
    ],
)  # fmt: skip
def test_titles(name, title):
    assert metric(name).title == title


def test_a_metric_of_nobody_has_no_title():
    with pytest.raises(KeyError):
        metric("vmaf_y")


def test_frechet_distance_of_a_shift_is_its_square():
    x = features(0, 300, 4)
    distance = FrechetDistance()
    distance.update(x, real=True)
    distance.update(x + 3, real=False)
    assert distance.compute() == pytest.approx(4 * 9, rel=1e-9)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("count", [4, 200])
def test_features_that_are_not_finite_give_no_distance(value, count):
    """On either side, fewer rows than dimensions or more; with the reason."""
    x, y = features(0, count, 6), features(1, 200, 6)
    x[1, 2] = value
    good, bad = Moments().add(y), Moments().add(x)
    assert math.isnan(Reference(good).distance(bad))
    assert math.isnan(Reference(bad).distance(good))
    found = estimate(Reference(good), groups_of(torch.cat((x, y))))
    assert math.isnan(found.value)
    assert (found.low, found.high, found.infinity, found.warning) == (None, None, None, NOT_FINITE)


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


def test_degradation_distance_sees_blur():
    x = images(0, count=20, size=16)
    blurred = torch.nn.functional.avg_pool2d(x.float(), 3, 1, 1).round().to(torch.uint8)
    assert degradation_distances(x, x) == {key: 0 for key in degradation_distances(x, x)}
    near, far = degradation_distances(images(1, 20, 16), x), degradation_distances(blurred, x)
    assert near["degradation_distance"] < 0.1 * far["degradation_distance"]


def test_highpass_moments_by_scipy():
    y = luma(images(0, count=5, size=16)).numpy()
    blurred = np.stack([ndimage.gaussian_filter(image, 1, truncate=2, mode="mirror") for image in y])
    residual = (y - blurred).ravel()
    reference = {
        "mean": residual.mean(),
        "variance": residual.var(),
        "kurtosis": stats.kurtosis(residual, fisher=False),
    }
    assert highpass_moments(images(0, count=5, size=16)) == pytest.approx(reference, rel=1e-9, abs=1e-9)
