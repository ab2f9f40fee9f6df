"""The one loop: resume equals the uninterrupted run, bad updates are refused, two real workers, models taken away."""

import dataclasses
import json
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import ray.train
import torch
from conftest import Notes, dies_after, write_set
from facelab.config import build
from facelab.data.shards import PAIR_SCHEMA, split_of
from facelab.data.tensors import load_faces, load_pairs
from facelab.errors import StoreError, UsageError
from facelab.images import encode_png
from facelab.metrics import frechet_distance, psnr
from facelab.samples.nuisance import degrade
from facelab.tracking.registry import fetched_model
from facelab.trained import checkpoint, store
from facelab.trained.apply import super_resolve
from facelab.training.context import LocalContext
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.job import TRAIN_DEGRADER, TRAIN_SR
from facelab.training.launch import run_training
from facelab.training.loop import train
from facelab.training.sr import SRStage, TrainSRConfig
from facelab.training.stylevae import StyleVAEStage
from facelab.training.update import Update
from safetensors.torch import load_file

from models import build_sr
from models.resize import resize


def degrader_config(hr, lr, out, **values) -> TrainDegraderConfig:
    return build(TrainDegraderConfig, **dict(preset="debug", hr=str(hr), lr=str(lr), output=str(out)) | values)


CAMERA = {
    "stylevae": {"camera": True, "blocks": 0, "style_dim": 9, "channels": 16},
    "weights": {"lambda_style": 0, "lambda_mi": 0, "kl_from": 0.6},
}


def sr_config(hr, out, **values) -> TrainSRConfig:
    return build(TrainSRConfig, **dict(preset="debug", hr=str(hr), output=str(out), model="attentive") | values)


def weights_of(output) -> dict[str, torch.Tensor]:
    return load_file(output / "model" / "model.safetensors")


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(
    ("stage", "stop"),
    [
        ("stylevae", 3),
        ("camera", 3),
        ("camera", 5),
        ("attentive", 3),
        ("srgan", 5),
        pytest.param("srgan", 3, marks=pytest.mark.slow),
        pytest.param("bulat", 3, marks=pytest.mark.slow),
        pytest.param("vdsr", 3, marks=pytest.mark.slow),
    ],
)
def test_resume_equals_the_uninterrupted_run(stage, stop, tmp_path, hr_folder, lr_folder):
    """Killed after some of 6 steps, in the middle of an epoch, then resumed: bit for bit the same weights. For srgan and
    for the camera, the second phase begins after step 4, so one run resumes before it and one inside it."""

    def config(out, **values):
        if stage in ("attentive", "srgan", "vdsr"):
            return sr_config(hr_folder, out, model=stage, **values)
        if stage == "camera":
            return degrader_config(hr_folder, lr_folder, out, **CAMERA, **values)
        return degrader_config(hr_folder, lr_folder, out, model=stage, **values)

    run_training(config(tmp_path / "whole", max_steps=6), Notes)
    with dies_after(stop), pytest.raises(KeyboardInterrupt):
        run_training(config(tmp_path / "parts", max_steps=6, checkpoint_every=stop), Notes)
    assert not (tmp_path / "parts" / "model").exists()
    with pytest.raises(UsageError, match="--resume"):
        run_training(config(tmp_path / "parts", max_steps=6), Notes)
    resumed = run_training(config(tmp_path / "parts", max_steps=6, resume=True), Notes)
    assert resumed["steps"] == 6
    whole, parts = (checkpoint.newest(str(tmp_path / name / "checkpoints")) for name in ("whole", "parts"))
    assert_equal(whole.networks, parts.networks)
    for name, state in whole.optimisers.items():
        if name == "scaler":
            continue
        for index, values in state["state"].items():
            assert_equal(values, parts.optimisers[name]["state"][index])
    assert_equal(weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts"))
    assert (whole.segment, parts.segment) == (0, 1)
    phase = {"stylevae": "whole", "camera": "whole", "bulat": "", "srgan": "adversarial"}.get(stage, "pixel")
    assert whole.phase == parts.phase == phase


@pytest.mark.parametrize("model", ["attentive", "srgan"])
def test_a_run_wrapped_up_at_its_checkpoint_gives_the_weights_of_that(model, tmp_path, hr_folder):
    """Stopped inside an epoch, and not trained on: the average at the checkpoint is validated and saved; not the initial
    weights, nor, where the last ones are wanted, those of the epoch before."""

    # Two updates of 54 faces are no epoch; sixteen are one and two more.
    for stop in (2, 16):
        out = tmp_path / str(stop)
        with dies_after(stop), pytest.raises(KeyboardInterrupt):
            run_training(sr_config(hr_folder, out, model=model, max_steps=50, checkpoint_every=2), Notes)
        saved, notes = checkpoint.newest(str(out / "checkpoints")), Notes()
        assert saved.step == stop
        found = run_training(sr_config(hr_folder, out, model=model, max_steps=stop, resume=True), lambda: notes)  # noqa: B023
        average = {k.removeprefix("average."): v for k, v in saved.networks.items() if k.startswith("average.")}
        assert notes.values["val/psnr_rgb"][-1][0] == stop
        if stop == 2 or model == "srgan":
            assert found["best_step"] == stop
            assert_equal(weights_of(out), average)


def write_pairs(place: Path, faces: Path, side: int = 64, rough: bool = False) -> str:
    """Pairs of these faces, by bicubic or by a rougher camera."""
    sharp, rows = load_faces(str(faces), side), []
    for i, (name, digest, hr) in enumerate(zip(sharp.ids, sharp.digests, sharp.images, strict=True)):
        pixels = degrade(hr.permute(1, 2, 0).numpy(), 4, np.random.default_rng(i))
        lr = encode_png(pixels if rough else resize(hr[None], side // 4)[0])
        known = {"id": f"{name}#0", "hr_id": name, "hr_sha256": digest, "split": split_of(name)}
        rows.append(dict.fromkeys(PAIR_SCHEMA.names) | known | {"hr": encode_png(hr), "lr": lr})
    write_set(str(place), "pairs", rows)
    return str(place)


def test_watched_pairs_are_logged_and_change_nothing(tmp_path, hr_folder):
    """The same weights and the same best epoch with and without them; wrong ones are told before training."""
    pairs = [
        write_pairs(tmp_path / "train", hr_folder),
        write_pairs(tmp_path / "watched", hr_folder, rough=True),
        write_pairs(tmp_path / "large", hr_folder, side=32),
    ]
    notes, found = {name: Notes() for name in ("alone", "watching")}, {}
    for name, options in (("alone", {}), ("watching", {"watch": pairs[1]})):
        options |= {"preset": "debug", "model": "attentive", "pairs": pairs[0], "max_steps": 16}
        config = build(TrainSRConfig, output=str(tmp_path / name), **options)
        found[name] = run_training(config, lambda: notes[name])  # noqa: B023
    assert (config.inputs(), config.watched()) == ([(pairs[0], "pairs")], [(pairs[1], "pairs")])
    assert_equal(weights_of(tmp_path / "alone"), weights_of(tmp_path / "watching"))
    assert found["alone"].items() <= found["watching"].items()
    values = notes["watching"].values
    assert {name for name in values if "watch" in name} == {"watch/psnr_rgb", "watch/ssim_y"}
    assert [step for step, _ in values["watch/ssim_y"]] == [step for step, _ in values["val/psnr_rgb"]] == [13, 16]
    assert "watch/psnr_rgb" not in notes["alone"].values
    last = checkpoint.newest(str(tmp_path / "watching" / "checkpoints"))
    network = build_sr("attentive", 4, **config.network_options).eval()
    network.load_state_dict(
        {k.removeprefix("average."): v for k, v in last.networks.items() if k.startswith("average.")}
    )
    truth = load_pairs(pairs[1])
    expected = float(psnr(super_resolve(network, truth.lr), truth.hr).mean())
    assert values["watch/psnr_rgb"][-1][1] == pytest.approx(expected, abs=1e-9)
    with pytest.raises(UsageError, match="large: pairs are 8 -> 32 px"):
        run_training(sr_config(hr_folder, tmp_path / "no", watch=pairs[2]), Notes)


def test_step_at_zero_is_balanced(tmp_path, hr_folder, lr_folder):
    """Preset paper_mini: content and style are within a factor of 100 at step 0. KL and MI start near 0 by construction."""
    config = degrader_config(hr_folder, lr_folder, tmp_path, preset="paper_mini")
    stage = StyleVAEStage(config, load_faces(config.hr, 64), load_faces(config.lr, 16))
    context = LocalContext(show_progress=False)
    stage.prepare(context, config.compute)
    terms = {
        k: float(v.detach())
        for k, v in stage.step(0, Update(context, config.compute, stage.networks, stage.optimisers)).items()
    }
    assert 0.01 < terms["weighted_style"] / terms["weighted_content"] < 100
    assert 0 < terms["kl"] < 0.1
    assert abs(terms["mi"]) < 0.01


def test_losses_fall(tmp_path, hr_folder, lr_folder):
    notes = Notes()
    config = sr_config(hr_folder, tmp_path / "sr", model="edsr", max_steps=40, learning_rate=2e-3)
    train(SRStage(config, load_faces(config.hr, 64)), config, LocalContext(show_progress=False), notes)
    losses = [value for _, value in notes.values["train/loss"]]
    assert len(losses) == 40
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])

    notes = Notes()
    config = degrader_config(hr_folder, lr_folder, tmp_path / "d", max_steps=40, learning_rate=2e-3)
    stage = StyleVAEStage(config, load_faces(config.hr, 64), load_faces(config.lr, 16))
    train(stage, config, LocalContext(show_progress=False), notes)
    style = [value for _, value in notes.values["train/style"]]
    assert np.mean(style[-8:]) < 0.5 * np.mean(style[:8])
    mi = [value for _, value in notes.values["train/mi"]]
    assert max(mi) < np.log(config.batch_size) + 0.5  # it means nothing above log N


def test_a_degrader_is_judged_by_so_many_real_faces_whose_moments_are_computed_once(tmp_path, hr_folder, lr_folder):
    hr, lr = load_faces(str(hr_folder), 64), load_faces(str(lr_folder), 16)
    values = {}
    for count in (2, 100):
        config = degrader_config(hr_folder, lr_folder, tmp_path, validation_images=count)
        stage = StyleVAEStage(config, hr, lr)
        stage.prepare(LocalContext(show_progress=False), config.compute)
        seen, pooled = [], stage.judge.pooled
        stage.judge.pooled = lambda images: seen.append(len(images)) or pooled(images)  # noqa: B023
        values[count] = [stage.validate(stage.networks["main"]) for _ in range(2)]
        real = min(count, len(lr.subset("val")))
        generated = min(count, 4 * max(len(hr.subset("val")), real))
        assert seen == [real, generated, generated]
        assert values[count][0] == values[count][1]
    held = lr.subset("val").images
    _, _, made = stage._generate(stage.networks["main"].eval(), generated)
    assert values[100][0]["fd"] == frechet_distance(stage._judged, held, made)
    assert values[2][0]["fd"] != values[100][0]["fd"]


def test_switches_build_what_they_name(tmp_path, hr_folder, lr_folder):
    hr, lr = load_faces(str(hr_folder), 64), load_faces(str(lr_folder), 16)
    without_mi = StyleVAEStage(degrader_config(hr_folder, lr_folder, tmp_path, weights={"lambda_mi": 0}), hr, lr)
    assert set(without_mi.networks) == {"main"}
    assert set(StyleVAEStage(degrader_config(hr_folder, lr_folder, tmp_path), hr, lr).networks) == {
        "main",
        "statistics",
    }


def sr_stage(hr_folder, out, **values) -> tuple[SRStage, Update]:
    """A stage that is ready to step, and its update."""
    config = sr_config(hr_folder, out, **values)
    real_lr = load_faces(config.lr, config.lr_size) if config.lr else None
    stage = SRStage(config, load_faces(config.hr, config.hr_size), real_lr)
    context = LocalContext(show_progress=False)
    stage.prepare(context, config.compute)
    return stage, Update(context, config.compute, stage.networks, stage.optimisers, config.optimiser.clip)


def copies(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


@pytest.mark.parametrize(("model", "options"), [("srgan", {}), ("attentive", {"weight": 1e-3, "pretrain": 0.5})])
def test_adversarial_training_has_two_phases(tmp_path, hr_folder, model, options):
    """The pixel loss alone, D untouched; then perceptual and adversarial loss, both learning, Adam anew."""
    options |= {"perceptual_weight": 1.0, "network": "mobilenet_v2", "layer": "block1", "feature_scale": 0}
    stage, update = sr_stage(hr_folder, tmp_path, model=model, adversarial=options)
    generator, critic = stage.networks["main"], stage.networks["discriminator"]
    before = copies(critic)
    update.progress = 0.0
    assert set(stage.step(0, update)) == {"loss", "gradient_norm"}
    assert_equal(before, copies(critic))
    update.progress = 0.9
    first = copies(generator)
    terms = stage.step(1, update)
    assert {"perceptual", "adversarial", "discriminator_loss", "discriminator_real_score"} <= set(terms)
    assert any(not torch.equal(a, b) for a, b in zip(first.values(), copies(generator).values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before.values(), copies(critic).values(), strict=True))
    adam = stage.optimisers["main"].state
    assert {int(state["step"]) for state in adam.values()} == {1}  # a fresh Adam: one update of this phase
    stage.step(2, update)
    assert {int(state["step"]) for state in adam.values()} == {2}
    assert stage.selection == ("psnr_rgb", "last")


def test_the_generators_loss_is_what_it_says(tmp_path, hr_folder, lr_folder):
    """Bulat: MSE + 0.05 of minus the mean score of super-resolved faces, of paired and, with --lr, real LR alike."""
    stage, _ = sr_stage(hr_folder, tmp_path, model="bulat", lr=str(lr_folder))
    network, critic = stage.networks["main"], stage.networks["discriminator"]
    lr, hr = stage._batch(0)
    real_lr = stage._real_lr(0)
    critic.eval()  # else spectral norm would iterate at every pass, and no two agree
    losses = stage.objective(lr, hr, real_lr, True)
    terms = losses.terms
    assert len(losses.generated) == len(lr) + len(real_lr)
    torch.testing.assert_close(terms["pixel"], (network(lr) - hr).square().mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(losses.total, terms["pixel"] + 0.05 * terms["adversarial"])
    expected = -critic(torch.cat([network(lr), network(real_lr)])).mean()
    torch.testing.assert_close(terms["adversarial"], expected, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in critic.parameters())


def test_a_perceptual_loss_may_keep_some_of_the_pixels(tmp_path, hr_folder):
    adversarial = {"weight": 0.5, "perceptual_weight": 2.0, "pixel_weight": 3.0, "network": "mobilenet_v2"}
    adversarial |= {"layer": "block1", "feature_scale": 0}
    stage, _ = sr_stage(hr_folder, tmp_path, model="attentive", adversarial=adversarial)
    lr, hr = stage._batch(0)
    losses = stage.objective(lr, hr, None, True)
    terms = losses.terms
    expected = 2 * terms["perceptual"] + 3 * terms["pixel"] + 0.5 * terms["adversarial"]
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(terms["pixel"], (stage.networks["main"](lr) - hr).abs().mean(), rtol=1e-5, atol=1e-6)


def test_a_generators_update_leaves_the_discriminator_alone(tmp_path, hr_folder):
    """After the generator's update, before D's, no weight of D has a gradient; afterwards D learns again."""
    stage, update = sr_stage(hr_folder, tmp_path, model="bulat")
    critic = stage.networks["discriminator"]
    step, seen = stage.optimisers["main"].step, []

    def spy():
        seen.append([p.grad for p in critic.parameters()])
        step()

    stage.optimisers["main"].step = spy
    stage.step(0, update)
    assert seen == [[None] * len(list(critic.parameters()))]
    assert all(p.grad is not None and p.requires_grad for p in critic.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["srgan", "bulat"])
def test_adversarial_training_in_bf16_stays_finite(tmp_path, hr_folder, model):
    options = {"compute": {"precision": "bf16"}, "adversarial": {"pretrain": 0}, "batch_size": 4, "max_steps": 2}
    assert run_training(sr_config(hr_folder, tmp_path, model=model, **options), Notes)["steps"] == 2


def test_gradients_are_clipped_to_theta_over_the_learning_rate(tmp_path, hr_folder):
    """By the loop itself: one update moves the weights by θ at most, but for the rounding of weights of 0.1 (7e-9)."""
    options = {"clip": 1e-6, "name": "sgd", "weight_decay": 0.0}
    stage, _ = sr_stage(hr_folder, tmp_path, model="vdsr", optimiser=options, max_steps=1)
    before = copies(stage.networks["main"])
    train(stage, stage.config, LocalContext(show_progress=False), Notes())
    moved = [(a - b).abs().max() for a, b in zip(before.values(), copies(stage.networks["main"]).values(), strict=True)]
    assert float(max(moved)) == pytest.approx(1e-6, abs=1.5e-8)
    gradients = torch.cat([p.grad.flatten() for p in stage.networks["main"].parameters()])
    assert float(gradients.abs().max()) == pytest.approx(1e-6 / stage.config.learning_rate)


def test_srcnns_optimiser_takes_its_two_rates(tmp_path, hr_folder):
    stage, _ = sr_stage(hr_folder, tmp_path, model="srcnn", learning_rate=1e-4)
    rates = [group["initial_lr"] for group in stage.optimisers["main"].param_groups]
    assert rates == [1e-4, pytest.approx(1e-5)]


def test_a_longer_resumed_run_stays_in_the_adversarial_phase(tmp_path, hr_folder):
    """6 of 6 steps, then on to 30: at 6 of 30 the pre-training would not be over, but D has begun to learn."""
    run_training(sr_config(hr_folder, tmp_path, model="srgan", max_steps=6), Notes)
    notes = Notes()
    run_training(sr_config(hr_folder, tmp_path, model="srgan", max_steps=30, resume=True), lambda: notes)
    assert len(notes.values["train/discriminator_loss"]) == 24


def test_another_optimiser_is_refused_at_resume(tmp_path, hr_folder):
    run_training(sr_config(hr_folder, tmp_path), Notes)
    with pytest.raises(UsageError, match="another optimiser"):
        run_training(sr_config(hr_folder, tmp_path, resume=True, max_steps=6, optimiser={"name": "sgd"}), Notes)
    run_training(sr_config(hr_folder, tmp_path, resume=True, max_steps=5, optimiser={"weight_decay": 0.5}), Notes)
    group = checkpoint.newest(str(tmp_path / "checkpoints")).optimisers["main"]["param_groups"][0]
    assert group["weight_decay"] == 0.5


def test_real_lr_faces_are_cropped_as_pairs_are(tmp_path, hr_folder, lr_folder):
    stage, update = sr_stage(hr_folder, tmp_path, model="bulat", lr=str(lr_folder), lr_patch_size=8)
    assert stage._real_lr(0).shape[-2:] == (8, 8)
    assert torch.isfinite(stage.step(0, update)["adversarial"])


@pytest.mark.parametrize("model", ["srcnn", "vdsr"])
def test_luma_networks_are_judged_on_luma(tmp_path, hr_folder, model):
    """Half the sum of squares of Y in [0, 1] per image for Caffe's loss; colour, which they cannot mend, does not count."""
    stage, _ = sr_stage(hr_folder, tmp_path, model=model, pixel_loss="sse")
    lr, hr = stage._batch(0)
    sr = stage.networks["main"](lr)
    weights = torch.tensor([65.481, 128.553, 24.966])[:, None, None] / 219
    y = ((sr - hr) / 2 * weights).sum(1)
    torch.testing.assert_close(stage.objective(lr, hr).total, 0.5 * y.square().sum() / len(y), rtol=1e-6, atol=1e-6)


def test_patches_of_hr_and_lr_show_the_same_place(tmp_path, hr_folder):
    stage, _ = sr_stage(hr_folder, tmp_path, lr_patch_size=8, rotate=True)
    lr, hr = stage._batch(0)
    assert (lr.shape[-2:], hr.shape[-2:]) == ((8, 8), (32, 32))
    inner = slice(2, -2)  # at its border, a resized patch differs from a patch of the resized face
    again = resize(hr, 8)
    assert (again - lr)[..., inner, inner].abs().mean() < 0.02
    assert (again - lr.flip(-1))[..., inner, inner].abs().mean() > 0.05


def test_training_starts_from_another_scale(tmp_path, hr_folder, capsys):
    """EDSR x4 from x2, as its authors train it: body and head come along, the second upsampling is fresh."""
    run_training(sr_config(hr_folder, tmp_path / "x2", model="edsr", scale=2), Notes)
    config = sr_config(hr_folder, tmp_path / "x4", model="edsr", init_from=str(tmp_path / "x2"))
    own = SRStage(config, load_faces(config.hr, 64)).networks["main"].state_dict()
    given = weights_of(tmp_path / "x2")
    assert "fresh are upsampler.2.bias, upsampler.2.weight" in capsys.readouterr().out
    assert all(torch.equal(own[name], value) for name, value in given.items())
    values = {"model": "edsr", "edsr": {"size": "baseline"}, "init_from": str(tmp_path / "x2")}
    with pytest.raises(UsageError, match="has other options"):
        run_training(sr_config(hr_folder, tmp_path / "y", **values), Notes)
    with pytest.raises(UsageError, match="is a edsr model"):
        run_training(sr_config(hr_folder, tmp_path / "x", model="rdn", init_from=str(tmp_path / "x2")), Notes)


@pytest.mark.parametrize("model", TrainSRConfig.NETWORKS)
def test_every_method_trains_and_can_be_loaded(tmp_path, hr_folder, model):
    notes = Notes()
    summary = run_training(sr_config(hr_folder, tmp_path, model=model), lambda: notes)
    assert summary["steps"] == 4
    assert len(notes.values["train/loss"]) == 4
    loaded = store.load_model(str(tmp_path), "sr")
    assert (loaded.name, loaded.digest) == (model, summary["model_sha256"])


@pytest.mark.parametrize("model", ["stylevae", "bulat"])
def test_compiling_without_a_compiler_is_said_and_survived(tmp_path, hr_folder, lr_folder, monkeypatch, capsys, model):
    monkeypatch.setenv("CXX", "no-such-compiler")
    config = degrader_config(hr_folder, lr_folder, tmp_path, model=model, compute={"compile": True}, max_steps=1)
    assert run_training(config, Notes)["steps"] == 1
    assert "running uncompiled" in capsys.readouterr().err


def test_damaged_checkpoints_are_refused(tmp_path, hr_folder):
    """A truncated checkpoint is passed over for the one before; when none is whole, the run does not start anew."""
    run_training(sr_config(hr_folder, tmp_path, checkpoint_every=2), Notes)
    before, newest = sorted((tmp_path / "checkpoints").glob("step-*"))

    def truncate(place: Path) -> None:
        file = place / "networks.safetensors"
        file.write_bytes(file.read_bytes()[:-10])

    truncate(newest)
    found = checkpoint.newest(str(tmp_path / "checkpoints"))
    assert found is not None
    assert found.step == 2
    truncate(before)
    with pytest.raises(UsageError, match="damaged checkpoint"):
        run_training(sr_config(hr_folder, tmp_path, resume=True), Notes)


def test_resume_takes_the_new_learning_rate_and_no_other_network(tmp_path, hr_folder):
    run_training(sr_config(hr_folder, tmp_path), Notes)
    run_training(sr_config(hr_folder, tmp_path, resume=True, max_steps=5, learning_rate=3e-5), Notes)
    after = checkpoint.newest(str(tmp_path / "checkpoints"))
    group = after.optimisers["main"]["param_groups"][0]
    assert group["initial_lr"] == 3e-5
    assert group["lr"] == pytest.approx(3e-5 * 0.25)  # 4 of 5 updates done, the rate was halved at 0.5 and 0.75
    with pytest.raises(UsageError, match="another network"):
        run_training(sr_config(hr_folder, tmp_path, resume=True, max_steps=6, model="edsr"), Notes)


def test_damaged_models_are_refused(tmp_path, hr_folder):
    run_training(sr_config(hr_folder, tmp_path), Notes)
    with pytest.raises(UsageError, match="a degrader model is wanted"):
        store.load_model(str(tmp_path), "degrader")
    file = tmp_path / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UsageError, match="damaged model"):
        store.load_model(str(tmp_path), "sr")
    with pytest.raises(UsageError, match="no trained model"):
        store.load_model(str(tmp_path / "checkpoints"), "sr")


def test_too_few_faces_are_refused(tmp_path, hr_folder):
    with pytest.raises(UsageError, match="smaller batch"):
        run_training(sr_config(hr_folder, tmp_path, batch_size=200), Notes)


@pytest.mark.slow
def test_two_workers_train_the_stylevae_between_one(ray_local, tmp_path, hr_folder, lr_folder):
    """2 Ray workers go on where one process stopped, and the other way round."""
    run_training(degrader_config(hr_folder, lr_folder, tmp_path, max_steps=2), Notes)
    run_training(degrader_config(hr_folder, lr_folder, tmp_path, workers=2, max_steps=4, resume=True), Notes)
    run_training(degrader_config(hr_folder, lr_folder, tmp_path, max_steps=5, resume=True), Notes)
    state = checkpoint.newest(str(tmp_path / "checkpoints"))
    assert (state.step, state.segment) == (5, 2)
    assert all(torch.isfinite(value).all() for value in state.networks.values())


@pytest.mark.slow
def test_two_workers_train_a_gan(ray_local, tmp_path, hr_folder):
    """Generator and discriminator are both wrapped for two workers, in both phases."""
    run_training(sr_config(hr_folder, tmp_path, model="srgan", workers=2), Notes)
    state = checkpoint.newest(str(tmp_path / "checkpoints"))
    assert (state.step, state.phase) == (4, "adversarial")
    assert all(torch.isfinite(value.float()).all() for value in state.networks.values())
    assert any(key.startswith("networks.discriminator.") for key in state.networks)
    assert set(state.optimisers) == {"main", "discriminator", "scaler"}


def test_workers_that_find_no_room_are_refused(ray_local, tmp_path, hr_folder):
    with pytest.raises(UsageError, match="needs 40 CPU"):
        run_training(sr_config(hr_folder, tmp_path, batch_size=40, workers=40), Notes)


class OneRankConfig(TrainSRConfig):
    """A training with one worker that is not like the other."""

    trouble: str = "blind"

    def least_side(self, size: int, *, sharp: bool) -> int:
        if ray.train.get_context().get_world_rank() == 1:
            if self.trouble == "slow":
                time.sleep(15)  # a cold store
            else:
                raise {"blind": UsageError, "store": StoreError}[self.trouble](f"{self.trouble} on this node")
        return super().least_side(size, sharp=sharp)


def one_rank_config(hr, out, **values) -> OneRankConfig:
    return build(OneRankConfig, preset="debug", hr=str(hr), output=str(out), model="srcnn", workers=2, **values)


@pytest.mark.slow
def test_the_trouble_of_one_worker_reaches_the_user(ray_local, tmp_path, hr_folder):
    """At once, in its own words: the other does not wait for it in a collective until that times out."""
    with pytest.raises(UsageError, match=r"^blind on this node$"):
        run_training(one_rank_config(hr_folder, tmp_path), Notes)
    assert not list(tmp_path.rglob("meta.json"))


class HangsOnce(Notes):
    """Rank 0 never comes to its first exchange of gradients."""

    def __init__(self, sign: Path):
        super().__init__()
        self.sign = sign

    def begin(self, step, total):
        if not self.sign.exists():
            self.sign.touch()
            time.sleep(3600)


@pytest.mark.slow
def test_two_workers_equal_one_though_one_loads_slowly_and_the_other_hangs(
    ray_local, tmp_path, hr_folder, monkeypatch, capsys
):
    """Who loads its data for longer than an exchange of gradients may take is waited for; an exchange that hangs ends, and
    the training goes on. After 4 steps on halves of the same batches, the weights are those of one process within 1e-5,
    which is what summing in another order may change; and one process goes on from there."""
    monkeypatch.setattr("facelab.training.ray_train._COLLECTIVE_TIMEOUT_S", 10)
    config = one_rank_config(hr_folder, tmp_path / "two", trouble="slow")
    assert run_training(config, partial(HangsOnce, tmp_path / "hung"))["steps"] == 4
    assert (tmp_path / "hung").exists()
    assert capsys.readouterr().err.count("workers were lost") == 1
    run_training(sr_config(hr_folder, tmp_path / "one", model="srcnn"), Notes)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-5, atol=1e-5)
    on = sr_config(hr_folder, tmp_path / "two", model="srcnn", max_steps=6, resume=True)
    assert run_training(on, Notes)["steps"] == 6


@pytest.mark.slow
def test_a_store_that_stays_away_from_one_worker_is_told(ray_local, tmp_path, hr_folder, monkeypatch):
    monkeypatch.setattr("facelab.training.ray_train.PATIENCE_S", 0)
    config = one_rank_config(hr_folder, tmp_path, trouble="store", compute={"max_failures": 0})
    with pytest.raises(StoreError, match=r"^store on this node$"):
        run_training(config, Notes)


def test_a_gpu_that_is_not_there_or_not_wanted(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no GPU that torch can use"):
        LocalContext(gpu=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    devices = [LocalContext(gpu=gpu).device.type for gpu in (None, True, False)]
    assert devices == ["cuda", "cuda", "cpu"]


def test_a_job_is_one_run_and_its_model_can_be_taken_away(tmp_path, hr_folder, lr_folder, monkeypatch):
    uri = os.environ["MLFLOW_TRACKING_URI"]
    summary = TRAIN_DEGRADER.run(degrader_config(hr_folder, lr_folder, tmp_path / "d"))
    assert json.loads((tmp_path / "d" / "summary.json").read_text()) == summary
    client = mlflow.MlflowClient(uri)
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params["weights.lambda_mi"] == "0.1"
    assert run.data.tags["preset"] == "debug"
    assert {"code_hash", "data_hash", "hr_hash", "lr_hash", "seed"} <= run.data.tags.keys()
    assert "best/fd" in run.data.metrics
    assert [m.step for m in client.get_metric_history(run.info.run_id, "train/style")] == [1, 2, 3, 4]
    artifacts = {a.path for a in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.txt", "summary.json", "samples"} <= artifacts

    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the model's own code first, also for later processes
    model = mlflow.pyfunc.load_model(summary["registered_model"])
    low = model.predict(np.zeros((3, 3, 64, 64), np.uint8))
    assert (low.shape, low.dtype) == ((3, 3, 16, 16), np.uint8)
    styles = [model.predict(np.zeros((1, 3, 64, 64), np.uint8), params={"seed": s}) for s in (0, 0, 1)]
    assert np.array_equal(styles[0], styles[1])
    local = mlflow.artifacts.download_artifacts(summary["registered_model"])
    suffixes = {f.suffix for f in Path(local).rglob("*") if f.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth"}
    with fetched_model(uri, summary["registered_model"]) as place:
        assert store.load_model(place, "degrader").digest == summary["model_sha256"]
    assert not Path(place).exists()


def test_a_registered_model_leaves_no_copy_and_must_be_ours(tmp_path, hr_folder, monkeypatch):
    """A job that is given one downloads it, uses it, and leaves nothing in the temporary folder."""
    summary = TRAIN_SR.run(sr_config(hr_folder, tmp_path / "sr", model="srcnn"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    config = sr_config(hr_folder, tmp_path / "on", model="srcnn", init_from=summary["registered_model"])
    assert TRAIN_SR.run(config)["steps"] == 4
    assert not list((tmp_path / "tmp").rglob("model*"))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "weights.bin").write_bytes(b"weights")
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    client.create_registered_model("theirs")
    client.create_model_version("theirs", str(tmp_path / "theirs"))
    for uri, said in (
        ("models:/theirs/1", "was not registered by facelab"),
        ("models:/nobodys/1", "not in the registry"),
    ):
        with pytest.raises(UsageError, match=said):
            TRAIN_SR.run(config.model_copy(update={"init_from": uri, "output": str(tmp_path / "no")}))


def test_a_failed_job_is_a_failed_run(tmp_path, hr_folder):
    def fail(config, run):
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        dataclasses.replace(TRAIN_SR, work=fail).run(sr_config(hr_folder, tmp_path))
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("facelab")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["FAILED"]
