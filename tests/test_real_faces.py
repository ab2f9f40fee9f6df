"""Do the networks learn on real faces? Where those lie beside the checkout; minutes, so marked slow."""

import math

import numpy as np
import pytest
from conftest import Notes
from facelab.config import build
from facelab.data.tensors import load_faces
from facelab.metrics import psnr
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.launch import run_training
from facelab.training.sr import TrainSRConfig

from models.resize import resize

pytestmark = [pytest.mark.faces, pytest.mark.slow]


def test_edsr_mini_beats_bicubic(tmp_path, real_faces):
    """600 steps instead of the preset's 1200, on held-out faces, by at least 0.5 dB."""
    hr = str(real_faces / "hr" / "train")
    config = build(TrainSRConfig, preset="mini", model="edsr", hr=hr, output=str(tmp_path), max_steps=600)
    held = load_faces(hr, 64).subset("val").images
    bicubic = float(psnr(resize(resize(held, 16), 64), held).mean())
    assert run_training(config, Notes)["best_psnr_rgb"] > bicubic + 0.5


@pytest.mark.parametrize(("use_adain", "steps"), [(True, 300), (False, 400)])
def test_the_stylevae_follows_style_and_keeps_content(tmp_path, real_faces, use_adain, steps):
    """300 steps, or, without AdaIN, all of the preset's 400, as MI takes off after step 200: style loss falls, MI leaves
    zero and stays below log N, the style code is used, and generated LR is closer to real LR than at the start,
    while the face is still there."""
    notes = Notes()
    config = build(
        TrainDegraderConfig, preset="paper_mini", hr=str(real_faces / "hr" / "train"), output=str(tmp_path),
        lr=str(real_faces / "lr_wider" / "train"), stylevae={"use_adain": use_adain}, max_steps=steps,
    )  # fmt: skip
    run_training(config, lambda: notes)

    def curve(name: str) -> np.ndarray:
        return np.array([value for _, value in notes.values[name]])

    style, mi, kl = curve("train/style"), curve("train/mi"), curve("train/kl")
    assert style[-40:].mean() < 0.7 * style[0]
    assert 0.1 < mi[-40:].mean() < math.log(config.batch_size)
    assert kl[-40:].mean() > 1
    fd, kept = curve("val/fd"), curve("val/psnr_to_bicubic")
    assert fd[-1] < 0.7 * fd[0]
    assert kept[-1] > 12
