"""default < preset < YAML < command line; unknown keys are refused with the nearest known name."""

import subprocess
import sys

import pytest
import yaml
from facelab.config import build, parse, to_yaml
from facelab.data.prepare import PrepareConfig
from facelab.errors import UsageError
from facelab.evaluation.config import EvaluateConfig
from facelab.evaluation.degradation import EvaluateLRConfig
from facelab.experiments.demo import DemoConfig
from facelab.experiments.sweep import SweepConfig
from facelab.samples.sets import SampleFacesConfig
from facelab.synthesis.job import SynthesizeConfig
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.sr import TrainSRConfig

REQUIRED = {
    PrepareConfig: ["--input", "in"],
    SampleFacesConfig: [],
    DemoConfig: [],
    TrainDegraderConfig: ["--hr", "hr", "--lr", "lr"],
    SynthesizeConfig: ["--hr", "hr", "--degrader", "bicubic"],
    EvaluateConfig: ["--model", "bicubic", "--test", "t"],
    EvaluateLRConfig: ["--pairs", "p", "--real", "r"],
    SweepConfig: ["--hr", "hr", "--lr", "lr"],
}
SR = ["--output", "out", "--model", "edsr", "--hr", "hr"]


@pytest.mark.parametrize(("kind", "preset"), [(k, p) for k in REQUIRED for p in k.PRESETS])
def test_every_preset_parses(kind, preset):
    config = parse(kind, ["--output", "out", "--preset", preset, *REQUIRED[kind]], "job")
    assert config.preset == preset


def test_paper_numbers_are_the_defaults():
    config = parse(TrainDegraderConfig, ["--output", "out", "--hr", "hr", "--lr", "lr"], "job")
    w = config.weights
    assert (w.lambda_kl, w.lambda_style, w.lambda_mi, w.alpha, w.beta) == (0.01, 1, 0.1, 1, 0.1)
    assert (config.epochs, config.learning_rate, config.scale) == (10, 1e-4, 4)
    ours = parse(TrainSRConfig, [*SR, "--model", "attentive"], "job")
    assert (ours.epochs, ours.max_steps, ours.learning_rate, ours.optimiser.decay_at) == (50, None, 1e-4, ())


@pytest.mark.parametrize("preset", TrainSRConfig.PRESETS)
@pytest.mark.parametrize("model", TrainSRConfig.NETWORKS)
def test_every_method_has_every_preset(model, preset):
    config = parse(TrainSRConfig, [*SR, "--model", model, "--preset", preset], "job")
    assert build(TrainSRConfig, output="out", model=model, hr="hr", preset=preset) == config


def test_paper_recipes_are_those_of_the_papers():
    """Each from its own paper or its authors' code; the files in models/ say where."""

    def recipe(model):
        return parse(TrainSRConfig, [*SR, "--model", model], "job")

    edsr = recipe("edsr")
    assert (edsr.pixel_loss, edsr.learning_rate, edsr.max_steps, edsr.lr_patch_size) == ("l1", 1e-4, 300_000, 48)
    assert (edsr.edsr.size, edsr.batch_size, edsr.rotate, edsr.ema_decay) == ("baseline", 16, True, 0)
    srcnn = recipe("srcnn")
    assert (srcnn.optimiser.name, srcnn.optimiser.momentum, srcnn.learning_rate) == ("sgd", 0.9, 1e-4)
    assert (srcnn.srcnn.init, srcnn.srcnn.kernels, srcnn.batch_size * srcnn.max_steps) == ("paper", (9, 5, 5), 8e8)
    vdsr = recipe("vdsr")
    assert (vdsr.optimiser.weight_decay, vdsr.learning_rate, vdsr.epochs, vdsr.batch_size) == (1e-4, 0.1, 80, 64)
    assert [vdsr.optimiser.factor(epoch / 80) for epoch in (19, 20, 40, 60)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert vdsr.optimiser.clip > 0
    gan = recipe("srgan")
    assert (gan.adversarial.weight, gan.adversarial.feature_scale) == (1e-3, 12.75)
    assert (gan.adversarial.network, gan.adversarial.layer, gan.pixel_loss) == ("vgg19", "relu5_4", "l2")
    bulat = recipe("bulat")
    assert (bulat.adversarial.weight, bulat.adversarial.loss, bulat.adversarial.pretrain) == (0.05, "hinge", 0)
    assert (bulat.optimiser.beta1, bulat.optimiser.beta2, bulat.batch_size, bulat.epochs) == (0, 0.9, 32, 50)
    degrader = ["--output", "out", "--hr", "hr", "--lr", "lr", "--model", "bulat"]
    assert parse(TrainDegraderConfig, degrader, "job").adversarial == bulat.adversarial


@pytest.mark.parametrize("model", TrainSRConfig.NETWORKS)
def test_every_method_has_its_paper_recipe_at_every_scale(model):
    whole = parse(TrainSRConfig, [*SR, "--model", model, "--hr-size", "192"], "job")
    for scale in TrainSRConfig.NETWORKS[model].scales:
        config = parse(TrainSRConfig, [*SR, "--model", model, "--scale", str(scale), "--hr-size", "192"], "job")
        assert config == whole.model_copy(update={"scale": scale})


def test_high_to_low_refuses_what_it_would_not_use():
    degrader = ["--output", "out", "--hr", "hr", "--lr", "lr", "--model", "bulat"]
    for option in (["weight", "0"], ["pretrain", "0.5"], ["perceptual-weight", "1"]):
        with pytest.raises(UsageError, match="bulat's degrader needs a weight"):
            parse(TrainDegraderConfig, [*degrader, f"--adversarial.{option[0]}", option[1]], "job")


def test_precedence(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: 8\nlearning_rate: 0.5\nattentive: {window: 3}\n")
    config = parse(TrainSRConfig, [*SR, "--preset", "debug", "--config", str(file), "--learning-rate", "0.25"], "job")
    assert config.keep_checkpoints == 2  # default
    assert config.ema_decay == 0.98  # the small recipe beside the network
    assert config.max_steps == 4  # preset
    assert config.batch_size == 8  # YAML over preset
    assert config.learning_rate == 0.25  # command line over YAML
    assert (config.attentive.window, config.attentive.channels) == (3, 16)


def test_preset_may_stand_in_the_yaml_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("preset: debug\n")
    config = parse(TrainSRConfig, [*SR, "--config", str(file)], "job")
    assert (config.preset, config.max_steps) == ("debug", 4)
    assert parse(TrainSRConfig, [*SR, "--config", str(file), "--preset", "demo"], "job").preset == "demo"


def test_resolved_yaml_can_be_read_again(tmp_path):
    config = parse(TrainSRConfig, [*SR, "--preset", "demo", "--seed", "3"], "job")
    values = {k: v for k, v in yaml.safe_load(to_yaml(config)).items() if v is not None}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    again = parse(TrainSRConfig, ["--config", str(file)], "job")
    assert again.model_copy(update={"config": None}) == config  # the file names itself


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--learnin-rate", "1"], "learning-rate"),
        (["--preset", "demi"], "did you mean 'demo'"),
        (["--batch-size", "many"], "batch-size"),
        (["--batch-size", "1"], "batch_size"),
        (["--seed", "-1"], "seed"),
        (["--model", "edsrr"], "edsrr"),
        (["--scale", "5"], "scale 5: edsr has 2, 3, 4, 8"),
        (["--scale", "3"], "multiple of scale"),
        (["--model", "bulat", "--scale", "2"], "scale 2: bulat has 4"),
        (["--adversarial.weight", "0.1"], "edsr has no discriminator"),
        (["--lr", "lr"], "without a discriminator"),
        (["--optimiser.beta1", "2"], "beta1 must be"),
        (["--optimiser.decay", "0"], "decay must be above 0"),
        (["--adversarial.perceptual-weight", "1"], "needs adversarial.weight"),
        (["--adversarial.pixel-weight", "1"], "without which the pixel loss stays"),
        (["--optimiser.decay-at", "2"], "between 0 and 1"),
        (["--workers", "3"], "multiple of 3 workers"),
        (["--attentive.window", "4"], "odd"),
        (["--pairs", "p"], "either --pairs"),
        (["--output", "gs://bucket"], "unknown scheme"),
        (["--output", "s3://key:secret@bucket/x"], "never from a URI"),
        (["--config", "no-such.yaml"], "not found"),
    ],
)
def test_wrong_options_are_one_line(arguments, says):
    with pytest.raises(UsageError) as caught:
        parse(TrainSRConfig, [*SR, *arguments], "jobs.train_sr")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_something_trains_the_generators_blocks():
    """Eq. 2 or MI; a camera alone has no use for them."""
    given = [
        "--output",
        "out",
        *REQUIRED[TrainDegraderConfig],
        "--weights.lambda-style",
        "0",
        "--weights.lambda-mi",
        "0",
    ]
    with pytest.raises(UsageError, match="nothing trains the generator's blocks"):
        parse(TrainDegraderConfig, given, "job")
    camera = ["--stylevae.camera", "--stylevae.blocks", "0", "--stylevae.style-dim", "9"]
    assert parse(TrainDegraderConfig, [*given, *camera], "job").stylevae.camera
    with pytest.raises(UsageError, match="there are none"):
        parse(TrainDegraderConfig, [*given, *camera, "--weights.lambda-mi", "0.1"], "job")
    with pytest.raises(UsageError, match="below 1"):
        parse(TrainDegraderConfig, [*given, *camera, "--weights.kl-from", "30"], "job")
    with pytest.raises(UsageError, match="paper_mini is the styleVAE's"):
        parse(TrainDegraderConfig, [*given, "--preset", "paper_mini", "--model", "bulat"], "job")


def test_unknown_yaml_key_names_the_nearest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("attentive: {windw: 3}\n")
    with pytest.raises(UsageError, match=r"attentive\.windw.*did you mean 'attentive\.window'"):
        parse(TrainSRConfig, [*SR, "--config", str(file)], "job")


def test_switches_without_a_default_are_flags_like_others():
    for options, gpu in (
        ([], None), (["--compute.gpu"], True), (["--compute.no-gpu"], False), (["--compute.gpu", "None"], None),
        (["--compute.gpu", "--seed", "3"], True), (["--compute.gpu=False"], False),
    ):  # fmt: skip
        assert parse(TrainSRConfig, [*SR, *options], "job").compute.gpu is gpu


def test_passwords_are_not_shown():
    config = build(
        TrainSRConfig, model="srcnn", hr="hr", output="out", tracking_uri="postgresql://me:hunter2@db/mlflow"
    )
    assert "hunter2" not in to_yaml(config)
    with pytest.raises(UsageError, match=r"postgresql://\*\*\*@db/mlflow: what is on a command line stands in `ps`"):
        parse(TrainSRConfig, [*SR, "--tracking-uri", "postgresql://me:hunter2@db/mlflow"], "job")


def test_dry_run_touches_nothing(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train_sr", "--model", "edsr", "--hr", "hr", "--output", str(out), "--dry-run"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "plan: train edsr" in done.stdout
    assert yaml.safe_load(done.stdout)["model"] == "edsr"
    assert list(tmp_path.iterdir()) == []
