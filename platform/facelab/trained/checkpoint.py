"""A checkpoint folder: networks.safetensors, optimisers.pt (read with weights_only) and meta.json, written last, with
the digest of each file. Nothing is unpickled, and nothing half-written is taken for whole."""

import hashlib
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from facelab import storage
from facelab.errors import StoreError, UsageError

_FILES = ("networks.safetensors", "optimisers.pt")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Random numbers and the data position are functions of (seed, step), so `step` carries both.
    """

    step: int
    """Updates done."""
    networks: dict[str, torch.Tensor]
    """Prefixed state dicts: trained networks, their moving average, the best so far."""
    optimisers: dict[str, Any]
    """Name -> optimiser state dict."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation metrics of the best so far; empty before the first validation."""
    segment: int = 0
    """How often the run was resumed."""
    model: dict[str, Any] = field(default_factory=dict)
    """What store.py needs to build the network."""
    phase: str = ""
    """The part of the training that it is in, where that has several."""
    order: str = ""
    """What decided the order of the images beside seed and step, where something did."""


def write(folder: Path, state: Checkpoint) -> None:
    """Fill a local folder.

    Raises:
        StoreError: a full disk.
    """
    networks = {key: value.detach().cpu().contiguous() for key, value in state.networks.items()}
    meta: dict[str, Any] = {"step": state.step, "best": state.best, "segment": state.segment, "model": state.model}
    meta |= {"phase": state.phase, "order": state.order}
    # Written by Python: in the words of safetensors and torch, a full disk is a bug of theirs.
    with storage.explained(str(folder)):
        (folder / _FILES[0]).write_bytes(save(networks))
        with (folder / _FILES[1]).open("wb") as file:
            torch.save(state.optimisers, file)
        meta["sha256"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in _FILES}
        (folder / "meta.json").write_text(json.dumps(meta, indent=2))


def read(folder: Path) -> Checkpoint:
    """Read a local folder.

    Raises:
        UsageError: truncated or changed files.
    """
    meta = json.loads((folder / "meta.json").read_text())
    for name, digest in meta["sha256"].items():
        if not (folder / name).exists() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise UsageError(f"{folder / name}: damaged checkpoint")
    return Checkpoint(
        step=meta["step"],
        networks=load_file(folder / _FILES[0]),
        optimisers=torch.load(folder / _FILES[1], map_location="cpu", weights_only=True),
        best=meta["best"],
        segment=meta["segment"],
        model=meta.get("model", {}),
        phase=meta.get("phase", ""),
        order=meta.get("order", ""),
    )


def publish(folder: Path, uri: str) -> None:
    """Copy a filled folder to its place; meta.json goes last and makes it whole."""
    for name in (*_FILES, "meta.json"):
        storage.write_bytes(storage.join(uri, name), (folder / name).read_bytes())


def steps_at(place: str) -> list[tuple[int, str]]:
    """(step, URI) of every whole checkpoint below `place`, oldest first, whoever wrote it."""
    found = []
    for _, uri in storage.list_files(place, ("/meta.json",)):
        try:
            found.append((json.loads(storage.read_bytes(uri))["step"], uri.removesuffix("/meta.json")))
        except ValueError:  # torn: its writer was killed
            continue
    return sorted(found)


def newest(place: str) -> Checkpoint | None:
    """The whole checkpoint with the most steps below `place`; one whose writer was killed is passed over, aloud.

    Raises:
        UsageError: there are checkpoints, but none is whole.
    """
    damage = None
    for _, uri in reversed(steps_at(place)):
        try:
            with storage.local_copy(uri) as folder:
                return read(folder)
        except StoreError:
            raise
        except UsageError as error:
            print(f"{error}: taking the one before", file=sys.stderr)
            damage = error
    if damage:
        raise UsageError(f"{damage}, and there is no other: start anew with another --output") from damage
    return None


def prune(place: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for _, uri in steps_at(place)[:-keep]:
        storage.delete(uri)
