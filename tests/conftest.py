"""Tiny faces, one local Ray for the session, and where the real faces lie if they are there."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from facelab.data.nuisance import degrade
from facelab.data.sample_faces import sample_face
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FACES = ROOT.parent / "shared" / "faces"


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch):
    """Each test has its own tracking database, and no setting of the machine's leaks in."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
    for name in ("RAY_ADDRESS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def ray_local():
    """One Ray of its own for all tests that need it."""
    from facelab.cluster import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    # Workers unpickle classes of the test modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "platform", ROOT)))
    with ray_session(dashboard=True):
        yield


class Notes:
    """A logger for trainings that keeps what it is told."""

    def __init__(self):
        self.values: dict[str, list[tuple[int, float]]] = {}

    def metrics(self, step, values):
        for name, value in values.items():
            self.values.setdefault(name, []).append((step, value))

    def image(self, name, picture):
        assert picture.dtype == np.uint8

    def flush(self):
        pass


def write_faces(folder: Path, count: int, *, first: int = 0, size: int = 64, low: bool = False) -> Path:
    """A folder of sample faces, sharp or degraded, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        face = sample_face(7, i, size)
        if low:
            face = degrade(face, 4, np.random.default_rng(i))
        Image.fromarray(face).save(folder / f"{i:04d}.png")
    return folder


@pytest.fixture(scope="session")
def hr_folder(tmp_path_factory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces") / "hr", 60)


@pytest.fixture(scope="session")
def lr_folder(tmp_path_factory) -> Path:
    return write_faces(tmp_path_factory.mktemp("faces") / "lr", 60, first=1000, low=True)


@pytest.fixture
def real_faces() -> Path:
    if not FACES.exists():
        pytest.skip("the real faces are not beside this checkout")
    return FACES
