"""What several workers do together, in two gloo processes without Ray."""

import socket
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import Notes
from facelab.config import build
from facelab.errors import UsageError
from facelab.trained import checkpoint
from facelab.training.config import ComputeConfig
from facelab.training.context import LocalContext, gather_from_workers, mean_over_workers, together
from facelab.training.history import History
from facelab.training.launch import run_training
from facelab.training.loop import train
from facelab.training.sr import TrainSRConfig
from facelab.training.update import Losses, NonFiniteLoss, Update
from facelab.training.worker import load_stage
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

WORLD = 2


class GlooContext(LocalContext):
    """One of two processes; checkpoints are rank 0's."""

    def __init__(self, rank: int, output: str):
        super().__init__(output, show_progress=False)
        self.rank, self.world_size = rank, WORLD

    def prepare(self, objective: nn.Module) -> nn.Module:
        return DistributedDataParallel(objective)

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return mean_over_workers(value)

    def gather(self, text: str) -> list[str]:
        return gather_from_workers(text)

    def save(self, write, step, metrics) -> None:
        if self.rank == 0:
            super().save(write, step, metrics)
        dist.barrier()


def _means(rank: int, hr: str, output: str) -> None:
    value = torch.tensor([1.0, 10.0]) * (rank + 1)
    assert mean_over_workers(value).tolist() == [1.5, 15.0]
    assert value.tolist() == [1.0 * (rank + 1), 10.0 * (rank + 1)]  # left as it was


def _trouble(rank: int, hr: str, output: str) -> None:
    """What goes wrong on rank 1 alone is raised on both, and what goes well is had by both."""
    context = GlooContext(rank, output)

    def act() -> int:
        if rank:
            raise UsageError("no folder on this node")
        return 1

    with pytest.raises(UsageError, match=r"^no folder on this node$"):
        together(context, act)
    assert together(context, lambda: rank) == rank


def _checkpoints(rank: int, hr: str, output: str) -> None:
    """A node that does not see the checkpoint would begin anew, and be out of step with the other."""
    config = sr_config(hr, output)

    class OneSees(GlooContext):
        def restore(self):
            return None if rank else checkpoint.newest(f"{output}/checkpoints")

    with pytest.raises(UsageError, match="steps 4, 0: give an --output that all nodes share"):
        train(load_stage(config, progress=False), config, OneSees(rank, output), Notes())


def _history(rank: int, hr: str, output: str) -> None:
    notes = Notes()
    history = History(GlooContext(rank, output), notes, batch_size=4)
    for step in range(1, 301):
        history.add(step, {"loss": torch.tensor(float(step + rank))})
    assert history.loss == 300 + rank
    assert len(history.pending) == 2
    history.add(301, {"loss": torch.tensor(0.0), "adversarial": torch.tensor(2.0 * rank)})  # another phase
    history.tell(301, {"psnr_rgb": 20.0} if rank == 0 else {}, segment=1)
    assert notes.values["train/loss"] == [*((step, step + 0.5) for step in range(1, 301)), (301, 0.0)]
    assert notes.values["train/adversarial"] == [(301, 1.0)]
    assert ("val/psnr_rgb" in notes.values) == (rank == 0)


def _not_finite(rank: int, hr: str, output: str) -> None:
    """A loss that is nan on rank 1 alone: both ranks refuse the update, and no weight moves on either."""
    context, layer = GlooContext(rank, output), nn.Linear(2, 1)
    update, optimiser = Update(context, ComputeConfig()), torch.optim.SGD(layer.parameters(), 0.1)
    before = layer.weight.detach().clone()
    loss = layer(torch.ones(1, 2)).sum() * (float("nan") if rank else 1.0)
    with pytest.raises(NonFiniteLoss, match="--resume"):
        update.apply(Losses(loss, {}), optimiser)
    assert torch.equal(layer.weight, before)


def sr_config(hr: str, output: str) -> TrainSRConfig:
    return build(TrainSRConfig, preset="debug", model="attentive", hr=hr, output=output)


def _train(rank: int, hr: str, output: str) -> None:
    config = sr_config(hr, output)
    result = train(load_stage(config, progress=False), config, GlooContext(rank, output), Notes())
    if rank == 0:
        torch.save(result.network.state_dict(), Path(output) / "weights.pt")


CHECKS = [_means, _trouble, _history, _not_finite, _train, _checkpoints]


def _process(rank: int, port: int, folder: str, hr: str) -> None:
    torch.set_num_threads(1)
    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", place, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    for check in CHECKS:
        try:
            check(rank, hr, folder)
            said = "passed"
        except Exception:
            said = traceback.format_exc()
        (Path(folder) / f"{check.__name__}-{rank}.txt").write_text(said)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hr_folder) -> Path:
    """Where the two processes wrote how each check ended. One pair for all: to start it is what takes time."""
    place = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_process, (port, str(place), str(hr_folder)), nprocs=WORLD)
    return place


def said(folder: Path, check) -> list[str]:
    return [(folder / f"{check.__name__}-{rank}.txt").read_text() for rank in range(WORLD)]


def test_means_are_over_both(folder):
    assert said(folder, _means) == ["passed"] * 2


def test_the_trouble_of_one_is_that_of_both(folder):
    assert said(folder, _trouble) == ["passed"] * 2


def test_both_must_see_the_same_checkpoint(folder):
    assert said(folder, _checkpoints) == ["passed"] * 2


def test_numbers_are_averaged_phase_by_phase(folder):
    assert said(folder, _history) == ["passed"] * 2


def test_a_loss_that_is_not_finite_on_one_rank_stops_both(folder):
    assert said(folder, _not_finite) == ["passed"] * 2


def test_two_processes_train_as_one(folder, tmp_path, hr_folder):
    """Halves of the same batches with averaged gradients: after 4 steps the weights are those of one process, but for
    what summing in another order changes (1e-5)."""
    assert said(folder, _train) == ["passed"] * 2
    run_training(sr_config(str(hr_folder), str(tmp_path)), Notes)
    expected = load_file(tmp_path / "model" / "model.safetensors")
    found = torch.load(folder / "weights.pt", weights_only=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5)
