"""Search spaces as users write them, and the points that are drawn from them."""

import math

import pytest
from facelab.errors import UsageError
from facelab.experiments.proposals import propose
from facelab.experiments.space import Choice, Range, grid, parse_space, random_points, shown
from facelab.experiments.trials import State, Trial
from facelab.training.degrader import TrainDegraderConfig

PRESET = {"weights.lambda_kl": 0.01, "weights.lambda_mi": 0.1, "stylevae.use_adain": True, "stylevae.camera": False}


def parsed(*texts: str):
    return parse_space(texts, TrainDegraderConfig, PRESET)


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("weights.beta=0.01..1:log", Range("weights.beta", 0.01, 1.0, log=True, whole=False)),
        ("--learning-rate=1e-5..1e-3:log", Range("learning_rate", 1e-5, 1e-3, log=True, whole=False)),
        ("max_skipped=0..0.5", Range("max_skipped", 0.0, 0.5, log=False, whole=False)),
        ("weights.lambda_kl=~10", Range("weights.lambda_kl", 0.001, 0.1, log=True, whole=False)),
        ("batch_size=8..32", Range("batch_size", 8.0, 32.0, log=False, whole=True)),
        ("stylevae.channels=16,32", Choice("stylevae.channels", (16, 32))),
        ("stylevae.use_adain=true,false", Choice("stylevae.use_adain", (True, False))),
        ("weights.lambda_mi=0,default", Choice("weights.lambda_mi", (0.0, 0.1))),
        ("perceptual.network=vgg16,mobilenet_v2", Choice("perceptual.network", ("vgg16", "mobilenet_v2"))),
        ("epochs=none,3", Choice("epochs", (None, 3))),
    ],
)
def test_a_dimension_is_typed_by_its_option(text, dimension):
    assert parsed(text) == [dimension]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rat=1..2", "did you mean 'learning_rate'"),
        ("seed=1,2", "no option of a training to search"),
        ("output=a,b", "no option of a training to search"),
        ("learning_rate", "write OPTION=LOW..HIGH"),
        ("learning_rate=fast", "'fast' is no value"),
        ("batch_size=1.5,2", "'1.5' is no value"),
        ("stylevae.use_adain=1..2", "is no value"),
        ("learning_rate=1e-3..1e-5", "to a larger one"),
        ("learning_rate=0..1:log", "begins above 0"),
        ("stylevae.use_adain=~10", "above 0"),
        ("weights.lambda_kl=~1", "F above 1"),
        ("batch_size=8,8", "there twice"),
        ("weights.lambda_kl=~1.2.3", "'1.2.3' is no value"),
    ],
)
def test_what_is_no_dimension_is_told_with_the_text(text, said):
    with pytest.raises(UsageError, match=said) as told:
        parsed(text)
    assert text in str(told.value)


def test_an_option_is_searched_once():
    with pytest.raises(UsageError, match="batch_size is there twice"):
        parsed("batch_size=8..16", "batch_size=4,8")


def test_a_grid_has_every_combination_and_both_ends_of_a_range():
    points = grid(parsed("weights.beta=0.01..1:log", "stylevae.use_adain=false,true"), 3)
    assert [tuple(point.values()) for point in points] == [
        (0.01, False), (0.01, True), (0.1, False), (0.1, True), (1.0, False), (1.0, True),
    ]  # fmt: skip
    assert [p["batch_size"] for p in grid(parsed("batch_size=2..4"), 9)] == [2, 3, 4]


def test_random_points_fill_a_logarithmic_range_evenly_and_depend_on_seed_and_number_alone():
    space = parsed("weights.beta=0.01..1:log", "stylevae.channels=16,32")
    points = list(random_points(space, 5, 400))
    assert points[:30] == list(random_points(space, 5, 30))
    assert points != list(random_points(space, 6, 400))
    exponents = [math.log10(point["weights.beta"]) for point in points]
    assert -2 <= min(exponents) < -1.9 < -0.1 < max(exponents) <= 0
    assert sum(e < -1 for e in exponents) == pytest.approx(200, abs=40)  # 4 standard deviations
    assert {point["stylevae.channels"] for point in points} == {16, 32}
    whole = [point["batch_size"] for point in random_points(parsed("batch_size=2..4"), 0, 600)]
    assert min(whole.count(n) for n in (2, 3, 4)) > 150  # of 200; half as many of the ends, were they rounded


def test_points_are_named_for_people():
    assert shown({"weights.beta": 0.123456, "stylevae.use_adain": True}) == "beta=0.1235 use_adain=true"


def test_tpe_goes_where_the_trials_did_best_and_not_where_they_were_lost():
    """A parabola in log β around 0.1, three states of trials among them: what is proposed lies near its bottom, far more
    often than at random."""
    space = parsed("weights.beta=0.001..10:log", "stylevae.use_adain=true,false")
    trials: list[Trial] = []
    for point in random_points(space, 1, 30):
        distance = math.log10(point["weights.beta"]) + 1
        trial = Trial(len(trials), point, 0, State.DONE, value=distance**2 + (not point["stylevae.use_adain"]))
        if abs(distance) > 1.5:
            trial.state, trial.value, trial.curve = State.STOPPED, None, [(10, distance**2)]
        trials.append(trial)
    trials[0].state, trials[1].state = State.DIVERGED, State.RUNNING
    proposals = [propose(space, seed, trials, "min") for seed in range(30)]
    near = [abs(math.log10(p["weights.beta"]) + 1) < 0.5 for p in proposals]
    assert sum(near) >= 20  # of 30; a quarter of the range at random
    assert sum(p["stylevae.use_adain"] for p in proposals) >= 20
    assert propose(space, 3, trials, "min") == proposals[3]
    away = [propose(space, seed, trials, "max") for seed in range(10)]
    assert sum(abs(math.log10(p["weights.beta"]) + 1) > 0.5 for p in away) >= 7
