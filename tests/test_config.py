"""default < preset < YAML < command line; unknown keys are refused with the nearest known name."""

import subprocess
import sys

import pytest
import yaml
from facelab.config import parse, to_yaml
from facelab.data.prepare import PrepareConfig
from facelab.data.sample_set import SampleFacesConfig
from facelab.demo import DemoConfig
from facelab.errors import UsageError
from facelab.evaluation import EvaluateConfig
from facelab.synthesis import SynthesizeConfig
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.sr import TrainSRConfig
from facelab.tuning import SweepConfig

REQUIRED = {
    PrepareConfig: ["--input", "in"],
    SampleFacesConfig: [],
    DemoConfig: [],
    TrainDegraderConfig: ["--hr", "hr", "--lr", "lr"],
    TrainSRConfig: ["--model", "attentive", "--hr", "hr"],
    SynthesizeConfig: ["--hr", "hr", "--degrader", "bicubic"],
    EvaluateConfig: ["--model", "bicubic", "--test", "t"],
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
    assert parse(TrainSRConfig, SR, "job").epochs == 50


def test_precedence(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("batch_size: 8\nlearning_rate: 0.5\nattentive: {window: 3}\n")
    config = parse(TrainSRConfig, [*SR, "--preset", "debug", "--config", str(file), "--learning-rate", "0.25"], "job")
    assert config.ema_decay == 0.999  # default
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
        (["--scale", "5"], "multiple of scale"),
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


def test_unknown_yaml_key_names_the_nearest(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("attentive: {windw: 3}\n")
    with pytest.raises(UsageError, match=r"attentive\.windw.*did you mean 'attentive\.window'"):
        parse(TrainSRConfig, [*SR, "--config", str(file)], "job")


def test_passwords_are_not_shown():
    config = parse(TrainSRConfig, [*SR, "--tracking-uri", "postgresql://me:hunter2@db/mlflow"], "job")
    assert "hunter2" not in to_yaml(config)


def test_dry_run_touches_nothing(tmp_path):
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train_sr", "--model", "edsr", "--hr", "hr", "--output", str(out), "--dry-run"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "plan: train edsr" in done.stdout
    assert yaml.safe_load(done.stdout)["model"] == "edsr"
    assert list(tmp_path.iterdir()) == []
