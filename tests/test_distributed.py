"""What several workers do together, in gloo processes without Ray."""

import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Notes, free_port
from facelab.config import build
from facelab.errors import UsageError
from facelab.trained import store
from facelab.training.batches import batch_indices
from facelab.training.collectives import (
    gather_from_workers,
    highest_over_workers,
    joined,
    mean_over_workers,
    summed,
    synchronise_batch_norm,
)
from facelab.training.config import ComputeConfig, TrainConfig
from facelab.training.context import LocalContext, together
from facelab.training.degrader import TrainDegraderConfig
from facelab.training.history import History
from facelab.training.launch import run_training
from facelab.training.loop import train
from facelab.training.sr import TrainSRConfig
from facelab.training.update import NonFiniteLoss, Update
from facelab.training.worker import load_stage
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.network import DegraderNetwork

STAGES = ["attentive", "vdsr", "srgan", "srgan adversarial", "bulat adversarial", "stylevae", "camera", "high_to_low"]
WEIGHTS = ["attentive", "vdsr", "srgan", "stylevae"]
BATCH = 12


def config_of(stage: str, hr: str, lr: str, output: str, **values) -> TrainConfig:
    """A small training of each kind of step. The debug preset's networks, whose styleVAE seeks mutual information."""
    network, _, adversarial = stage.partition(" ")
    values = {"preset": "debug", "hr": hr, "output": output, "batch_size": BATCH, "max_steps": 6} | values
    if network in ("stylevae", "camera", "high_to_low"):
        values |= {"lr": lr, "model": "bulat" if network == "high_to_low" else "stylevae"}
        if network == "camera":
            values["stylevae"] = {"camera": True, "blocks": 0, "style_dim": 9, "channels": 16}
            values["weights"] = {"lambda_style": 0, "lambda_mi": 0}
        return build(TrainDegraderConfig, **values)
    if adversarial:
        values["adversarial"] = {"pretrain": 0.0}
    return build(TrainSRConfig, model=network, **values)


def one_step(stage: str, hr: str, lr: str, context, **values) -> dict[str, torch.Tensor]:
    """Network's parameter -> its gradient in the first step; and what batch norm has measured. In double precision: some
    gradients are small differences of large terms, and single precision leaves them few digits."""
    config = config_of(stage, hr, lr, "/nowhere", **values)
    trained = load_stage(config, progress=False)
    trained.objective.double()
    trained.networks.double()
    batches = trained.batches
    trained.batches = lambda step: [None if x is None else x.double() for x in batches(step)]  # type: ignore
    trained.prepare(context, config.compute)
    trained.step(0, Update(context, config.compute, trained.networks, trained.optimisers, config.optimiser.clip))
    batches.close(None)
    found = {name: p.grad for name, p in trained.networks.named_parameters() if p.grad is not None}
    return found | {name: b for name, b in trained.networks.named_buffers() if "running" in name}


class GlooContext(LocalContext):
    """One of several processes."""

    def __init__(self):
        super().__init__(show_progress=False)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()

    def prepare(self, objective: nn.Module) -> nn.Module:
        synchronise_batch_norm(objective)
        return DistributedDataParallel(objective)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return mean_over_workers(value)

    def highest(self, values: torch.Tensor) -> torch.Tensor:
        return highest_over_workers(values)

    def joined(self, values: torch.Tensor) -> torch.Tensor:
        return joined(values)

    def gather(self, text: str) -> list[str]:
        return gather_from_workers(text)


def _exchanges(rank: int, folder: str, hr: str, lr: str) -> None:
    value = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert mean_over_workers(value).tolist() == [1.5, 15.0]
    assert value.tolist() == [1.0 * (rank + 1), 10.0 * (rank + 1)]  # left as it was
    assert highest_over_workers(torch.tensor([rank, -rank])).tolist() == [1, 0]
    # Of L = mean over workers of rank's own (sum of all)²: dL/dv is twice the sum, on each, after averaging.
    value = torch.tensor([rank + 1.0], requires_grad=True)
    summed(value).square().sum().backward()
    assert value.grad is not None
    assert value.grad.item() / 2 == 2 * 3.0
    assert joined(torch.tensor([rank, 10.0 + rank])).tolist() == [0, 10, 1, 11]


def _trouble(rank: int, folder: str, hr: str, lr: str) -> None:
    """What goes wrong on rank 1 alone is raised on both, and what goes well is had by both."""
    context = GlooContext()

    def act() -> int:
        if rank:
            raise UsageError("no folder on this node")
        return 1

    with pytest.raises(UsageError, match=r"^no folder on this node$"):
        together(context, act)
    assert together(context, lambda: rank) == rank


def _checkpoints(rank: int, folder: str, hr: str, lr: str) -> None:
    """A node that does not see the checkpoint would begin anew, and be out of step with the other."""
    config = config_of("attentive", hr, lr, f"{folder}/weights attentive" if rank == 0 else f"{folder}/elsewhere")
    with pytest.raises(UsageError, match="steps 6, 0: give an --output that all nodes share"):
        train(load_stage(config, progress=False), config, GlooContext(), Notes())


def _history(rank: int, folder: str, hr: str, lr: str) -> None:
    notes = Notes()
    history = History(GlooContext(), batch_size=4)
    for step in range(1, 301):
        history.add(step, {"loss": torch.tensor(float(step + rank))})
    assert history.loss == 300 + rank
    assert len(history.pending) == 2
    history.add(301, {"loss": torch.tensor(0.0), "adversarial": torch.tensor(2.0 * rank)})  # another phase
    tell = history.take(segment=1, skipped=2, waited=0.0)
    tell(notes)
    tell(notes)  # again, as after a flush that failed: nothing stands twice
    assert notes.values["train/loss"] == [*((step, step + 0.5) for step in range(1, 301)), (301, 0.0)]
    assert notes.values["train/adversarial"] == [(301, 1.0)]
    assert notes.values["skipped_updates"] == [(301, 2)]
    assert notes.values["world_size"] == [(301, 2)]


class _NotFinite(nn.Module):
    """A loss that is nan on rank 1 alone."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm = nn.Linear(2, 3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor, broken: bool) -> tuple[torch.Tensor, dict]:
        y = self.norm(self.layer(x)[..., None, None])
        return y.square().sum() * (float("nan") if broken else 1.0), {}


def _not_finite(rank: int, folder: str, hr: str, lr: str) -> None:
    """Neither rank makes the update: weights, optimiser and what batch norm measures are as before; the next one is
    made as if there had been none. Too many, and both fail."""
    context = GlooContext()
    for optimiser in ("adam", "sgd"):
        found = []
        for broken in ([False, False], [True, False, True, False]):
            torch.manual_seed(0)
            network = _NotFinite()
            kind = torch.optim.Adam if optimiser == "adam" else torch.optim.SGD
            options = {} if optimiser == "adam" else {"momentum": 0.9}
            optimisers = {"main": kind(network.parameters(), 0.1, fused=True, **options)}
            objective = context.prepare(network)
            update = Update(context, ComputeConfig(), network, optimisers)
            for bad in broken:
                update.minimise(objective, torch.ones(4, 2) + torch.arange(4)[:, None], bad and rank == 1, by=["main"])
            found.append([*network.state_dict().values()])
        for clean, skipped in zip(*found, strict=True):
            if clean.is_floating_point():  # the count of batches is not put back
                assert torch.equal(clean, skipped)
        assert (update.made, float(update.skipped)) == (4, 2)
        update.require_finite(share=0.01, last=True)
        update.minimise(objective, torch.ones(4, 2), rank == 1, by=["main"])
        update.require_finite(share=0.01)  # there may be many good ones to come
        with pytest.raises(NonFiniteLoss, match=r"3 of the last 5 updates .*--resume"):
            update.require_finite(share=0.01, last=True)


def _gradients(rank: int, folder: str, hr: str, lr: str) -> None:
    for stage in STAGES:
        found = one_step(stage, hr, lr, GlooContext())
        if rank == 0:
            torch.save(found, Path(folder) / f"gradients {stage}.pt")


def _weights(rank: int, folder: str, hr: str, lr: str) -> None:
    for stage in WEIGHTS:
        place = f"{folder}/weights {stage}"
        config = config_of(stage, hr, lr, place)
        result = train(load_stage(config, progress=False), config, GlooContext(), Notes())
        if rank == 0:
            torch.save(result.network.state_dict(), f"{place}.pt")


def _process(rank: int, world: int, port: int, folder: str, hr: str, lr: str, checks: list) -> None:
    torch.set_num_threads(1)
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", place, rank=rank, world_size=world, timeout=timedelta(seconds=120))
    for check in checks:
        try:
            check(rank, folder, hr, lr)
            said = "passed"
        except Exception:
            said = traceback.format_exc()
        (Path(folder) / f"{check.__name__}-{rank}.txt").write_text(said)
    dist.destroy_process_group()


def spawned(folder: Path, world: int, hr: Path, lr: Path, checks: list) -> Path:
    """Where so many processes wrote how each check ended."""
    mp.spawn(_process, (world, free_port(), str(folder), str(hr), str(lr), checks), nprocs=world)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory, hr_folder, lr_folder) -> Path:
    """One pair for all: to start it is what takes time."""
    checks = [_exchanges, _trouble, _history, _not_finite, _gradients, _weights, _checkpoints]
    return spawned(tmp_path_factory.mktemp("two"), 2, hr_folder, lr_folder, checks)


def said(folder: Path, check, world: int = 2) -> list[str]:
    return [(folder / f"{check.__name__}-{rank}.txt").read_text() for rank in range(world)]


@pytest.mark.parametrize("check", [_exchanges, _trouble, _history, _not_finite, _checkpoints])
def test_two_workers(two, check):
    assert said(two, check) == ["passed"] * 2


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_two_workers_are_those_of_one(stage, two, hr_folder, lr_folder):
    """Of every network in a step, and the statistics of batch norm: within 1e-5 of the largest."""
    assert said(two, _gradients) == ["passed"] * 2
    expected = one_step(stage, str(hr_folder), str(lr_folder), LocalContext(show_progress=False))
    assert_near(torch.load(two / f"gradients {stage}.pt", weights_only=True), expected, 1e-5)


@pytest.mark.parametrize("stage", ["attentive", "vdsr", "camera"])
def test_gradients_of_parts_are_those_of_the_whole(stage, hr_folder, lr_folder):
    """By a smooth loss: the sign that L1 has for a gradient turns where a pixel is met to the last bit."""
    context, whole = LocalContext(show_progress=False), {}
    smooth = {} if stage == "camera" else {"pixel_loss": "l2"}
    for parts in (1, 3):
        found = one_step(stage, str(hr_folder), str(lr_folder), context, compute={"accumulate": parts}, **smooth)
        whole = whole or found
    assert_near(found, whole, 1e-5)


def assert_near(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    """Within `tolerance` of the largest element of each network: a bias before a batch norm has no gradient but noise."""
    assert found.keys() == expected.keys()
    assert found
    largest: dict[str, float] = {}
    for name, value in expected.items():
        network = name.partition(".")[0]
        largest[network] = max(largest.get(network, 0.0), float(value.abs().max()))
    for name, value in expected.items():
        assert float((found[name] - value).abs().max()) <= tolerance * largest[name.partition(".")[0]], name


def assert_same_weights(folder: Path, tmp_path: Path, hr: Path, lr: Path) -> None:
    """Within what summing in another order changes: 1e-4. Where a norm follows a bias, that moves by noise alone, so of
    those networks what they make of an image, in [-1, 1]: 1e-3."""
    for stage in WEIGHTS:
        run_training(config_of(stage, str(hr), str(lr), str(tmp_path / stage)), Notes)
        expected = load_file(tmp_path / stage / "model" / "model.safetensors")
        found, tolerance = torch.load(folder / f"weights {stage}.pt", weights_only=True), 1e-4
        if stage in ("srgan", "stylevae"):
            found, expected = ({"image": made_by(weights, tmp_path / stage)} for weights in (found, expected))
            tolerance = 1e-3
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            difference = float((found[name] - value).abs().max())
            assert difference <= tolerance, f"{stage} {name}: {difference}"


def made_by(weights: dict[str, torch.Tensor], place: Path) -> torch.Tensor:
    kind = "degrader" if place.name == "stylevae" else "sr"
    network = store.load_model(str(place), kind).network
    network.load_state_dict(weights)
    if kind == "sr":
        return network(torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16))
    assert isinstance(network, DegraderNetwork)
    return network.degrade(
        torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64), torch.zeros(1, network.noise_dim(64))
    )


def test_two_workers_end_with_the_weights_of_one(two, tmp_path, hr_folder, lr_folder):
    """After 6 steps."""
    assert said(two, _weights) == ["passed"] * 2
    assert_same_weights(two, tmp_path, hr_folder, lr_folder)


@pytest.mark.slow
def test_four_workers_end_with_the_weights_of_one(tmp_path, hr_folder, lr_folder):
    (tmp_path / "four").mkdir()
    folder = spawned(tmp_path / "four", 4, hr_folder, lr_folder, [_weights])
    assert said(folder, _weights, 4) == ["passed"] * 4
    assert_same_weights(folder, tmp_path, hr_folder, lr_folder)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_epoch_is_covered_exactly_once(world):
    """Whatever the number of workers, and though batches straddle epochs."""
    count, batch, steps = 30, BATCH, 10
    seen = torch.cat(
        [
            batch_indices(count, batch, step, seed=0, stream="hr", rank=rank, world_size=world)
            for step in range(steps)
            for rank in range(world)
        ]
    )
    assert torch.equal(seen.bincount(), torch.full((count,), batch * steps // count))
    first = torch.stack(
        [batch_indices(count, batch, 0, seed=0, stream="hr", rank=r, world_size=world) for r in range(world)], dim=1
    )
    assert torch.equal(first.flatten(), batch_indices(count, batch, 0, seed=0, stream="hr"))
