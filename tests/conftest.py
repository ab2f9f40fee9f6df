"""Tiny faces, one local Ray for the session, an S3 server, and where the real faces lie if they are there."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from facelab import storage
from facelab.data.manifest import read_manifest
from facelab.samples.faces import sample_face
from facelab.samples.nuisance import degrade
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
FACES = ROOT.parent / "shared" / "faces"
S3_KEY, S3_SECRET = "facelab-test-key", "facelab-test-secret"


def pytest_addoption(parser):
    parser.addoption(
        "--screenshots", metavar="FOLDER", help="where the browser's tests leave pictures of MLflow's pages"
    )


@pytest.fixture(autouse=True, scope="session")
def _own_home(tmp_path_factory):
    """Decoded images are not left in the user's cache, nor found there, and a token that lies in the user's folder, or
    that a job puts there meanwhile, asks nobody for one; this holds for the processes that tests start, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield


@pytest.fixture(scope="session")
def _empty_database(tmp_path_factory) -> Path:
    """MLflow takes seconds to make one, a copy none."""
    import mlflow

    place = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{place}").search_experiments()
    return place


@pytest.fixture(autouse=True, scope="module")
def _of_its_own(tmp_path_factory, _empty_database):
    """What the fixtures of a file track goes into a database of theirs; MLflow writes the last one into the environment,
    which is as before once the file is done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", _copied(_empty_database, tmp_path_factory))
        yield


@pytest.fixture(autouse=True)
def _isolated(tmp_path_factory, monkeypatch, _empty_database):
    """Each test has its own tracking database, and no setting of the machine's leaks in."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", _copied(_empty_database, tmp_path_factory))
    for name in ("RAY_ADDRESS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


def _copied(database: Path, tmp_path_factory) -> str:
    return f"sqlite:///{shutil.copy(database, tmp_path_factory.mktemp('mlflow'))}"


@pytest.fixture(scope="session")
def ray_local():
    """One Ray of its own for all tests that need it."""
    from facelab.cluster import ray_session

    os.environ.pop("RAY_ADDRESS", None)
    # Workers unpickle classes of the test modules.
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT / "tests", ROOT / "platform", ROOT)))
    with ray_session(dashboard=True):
        yield


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Of several test processes, one has all tests with Ray; elsewhere a file stays together. Files with the longest
    tests come first: at the end, one process would run them alone."""
    for item in items:
        group = "ray" if "ray_local" in item.fixturenames else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    first = {item.path for item in items if item.get_closest_marker("chaos")}
    items.sort(key=lambda item: ("ray_local" not in item.fixturenames, item.path not in first))


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup(item):
    """The tests with Ray are a process's first; those after them, in which others may take its place, find none: neither
    the Ray itself nor its address, which Ray's own commands prefer to the one that they are given."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized() and "ray_local" not in item.fixturenames:
        ray.shutdown()
        os.environ.pop("RAY_API_SERVER_ADDRESS", None)


class Notes:
    """A logger for trainings that keeps what it is told."""

    def __init__(self):
        self.values: dict[str, list[tuple[int, float]]] = {}

    def begin(self, step, total):
        pass

    def metrics(self, step, values):
        for name, value in values.items():
            self.values.setdefault(name, []).append((step, value))

    def image(self, name, picture):
        assert picture.dtype == np.uint8

    def flush(self):
        pass


@contextmanager
def dies_after(step: int):
    """A training in this process is interrupted just after its checkpoint of this step, or the next one, was written."""
    from facelab.training import loop
    from facelab.training.saving import Saver

    class Dying(Saver):
        def save(self, snapshot, first):
            super().save(snapshot, first)
            if snapshot.step >= step:
                self.__exit__(None, None, None)
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Saver", Dying)
        yield


def write_faces(folder: Path, count: int, *, first: int = 0, size: int = 64, low: bool = False) -> Path:
    """A folder of sample faces, sharp or degraded, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        face = sample_face(7, i, size)
        if low:
            face = degrade(face, 4, np.random.default_rng(i))
        Image.fromarray(face).save(folder / f"{i:04d}.png")
    return folder


def write_set(uri: str, kind: str, rows: list[dict], settings: dict | None = None, per_shard: int = 0):
    """A finished shard set, without Ray, of one shard or of so many rows in each; returns its manifest."""
    from facelab.data import shards
    from facelab.data.shard_set import claimed
    from facelab.data.tables import chunks

    with claimed(uri, kind, settings or {}, {}) as target:
        units = {target.unit_name(row["id"] for row in some): some for some in chunks(rows, per_shard or len(rows))}
        for unit, some in units.items():
            shards.commit(uri, unit, some, [], target.schema)
        return target.finish(target.totals(list(units)))


def files_of(folder: Path) -> dict[str, bytes]:
    """All that a set is: shards, what was set aside, and the manifest but for the place of the input."""
    found = {file.name: file.read_bytes() for file in folder.glob("*.parquet") if file.name != "style_bank.parquet"}
    return found | {"hash": read_manifest(str(folder)).hash.encode()}


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


def save_degrader(place: Path, seed: int = 3) -> str:
    """An untrained styleVAE: what it makes is ugly, but depends on style and noise."""
    from facelab.trained import store

    from models import StyleVAE

    torch.manual_seed(seed)
    store.save_model(str(place), "degrader", "stylevae", StyleVAE(4, channels=16, blocks=1, style_dim=8), 4, 64)
    return str(place)


@pytest.fixture(scope="session")
def degrader(tmp_path_factory) -> str:
    return save_degrader(tmp_path_factory.mktemp("degrader"))


def trained_degrader(hr: str, lr: str, folder: Path, **options):
    """The demo's styleVAE, trained on these faces, as a degrader that takes its styles from `lr`."""
    from facelab.config import build
    from facelab.synthesis.job import SynthesizeConfig, load_degrader
    from facelab.training.degrader import TrainDegraderConfig
    from facelab.training.launch import run_training

    output = str(folder / "stylevae")
    run_training(build(TrainDegraderConfig, preset="demo", hr=hr, lr=lr, output=output, **options), Notes)
    return load_degrader(build(SynthesizeConfig, hr=hr, lr=lr, degrader=output, output=str(folder)))


def he_(module: nn.Module) -> None:
    """Random convolutions whose activations keep their size through the layers."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight)


class Embedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    def forward(self, x):
        return self.layers(x)


def save_embedding(kind: str, place: Path) -> nn.Module:
    torch.manual_seed(0)
    network, example = Embedding().eval(), torch.zeros(2, 3, 112, 112)
    if kind == "pt":
        torch.jit.script(network).save(place)
    elif kind == "pt2":
        dynamic = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=dynamic), place)
    else:
        onnx_embedding(network, place)
    return network


def onnx_embedding(network: nn.Module, place: Path) -> None:
    """The same network, written node by node."""
    from onnx import TensorProto, helper, numpy_helper, save

    conv = network.layers[0]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w", "b"], ["c"], strides=[4, 4]),
            helper.make_node("Relu", ["c"], ["r"]),
            # 27 px to 2: windows of 14, starting at 0 and 13, as adaptive pooling has them
            helper.make_node("AveragePool", ["r"], ["p"], kernel_shape=[14, 14], strides=[13, 13]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ],
        "embedding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 16])],
        [
            numpy_helper.from_array(conv.weight.detach().numpy(), "w"),
            numpy_helper.from_array(conv.bias.detach().numpy(), "b"),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(place))


def free_port() -> int:
    """One that stays free: neither Ray's workers (below 20,000) nor connections (Linux: from 32,768) are given it."""
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as s, suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


@contextmanager
def s3_server(folder: Path):
    """`rclone serve s3` on loopback; yields the environment that points to it."""
    (folder / "bucket").mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        "rclone",
        "serve",
        "s3",
        "--auth-key",
        f"{S3_KEY},{S3_SECRET}",
        "--addr",
        f"127.0.0.1:{port}",
        str(folder),
    ]
    rclone = Path(sys.executable).with_name("rclone")
    server = subprocess.Popen([str(rclone), *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail("rclone did not start")
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": S3_KEY,
            "AWS_SECRET_ACCESS_KEY": S3_SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.terminate()
        server.wait(10)


def forget_s3() -> None:
    """What this process remembers of a server, and of who it was to it."""
    storage._client.cache_clear()
    storage._S3.clear_instance_cache()
