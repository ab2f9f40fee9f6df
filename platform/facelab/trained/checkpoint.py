"""A checkpoint: a folder with networks.safetensors, optimisers.pt (read with weights_only) and, written last, meta.json
with the digest of each file; the best network so far lies beside the folders, once for all that share it. Nothing is
unpickled, and nothing half-written is taken for whole."""

import hashlib
import io
import json
import sys
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from facelab import storage
from facelab.errors import StoreError, UsageError

_NETWORKS, _OPTIMISERS, _META = "networks.safetensors", "optimisers.pt", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Random numbers and the data position are functions of (seed, step), so `step` carries both.
    """

    step: int
    """Updates done."""
    networks: dict[str, torch.Tensor]
    """Prefixed state dicts: trained networks, and their moving average."""
    optimisers: dict[str, Any]
    """Name -> state dict, of optimisers and of fp16's loss scale."""
    best_network: dict[str, torch.Tensor] = field(default_factory=dict)
    """State dict of the best network so far; empty before the first validation."""
    best: dict[str, float] = field(default_factory=dict)
    """Its validation metrics, with "step"."""
    judged: int = 0
    """Updates done at the last validation."""
    segment: int = 0
    """How often the run was resumed."""
    skipped: float = 0
    """Updates that were not made, as they were not finite."""
    model: dict[str, Any] = field(default_factory=dict)
    """What store.py needs to build the network."""
    phase: str = ""
    """The part of the training that it is in, where that has several."""
    images: dict[str, str] = field(default_factory=dict)
    """What decided which images each step saw: seed, batch size, their hashes."""


def place_of(place: str, step: int) -> str:
    """Where the checkpoint of a step lies below `place`."""
    return storage.join(place, f"step-{step:09d}")


def write(place: str, state: Checkpoint) -> None:
    """Write a checkpoint below `place`, each file whole or not at all.

    Raises:
        StoreError: a full disk, a store that is away.
    """
    uri = place_of(place, state.step)
    buffer = io.BytesIO()
    torch.save(state.optimisers, buffer)
    files = {_NETWORKS: save(state.networks), _OPTIMISERS: buffer.getvalue()}
    digests = {name: _digest(data) for name, data in files.items()}
    meta: dict[str, Any] = {"step": state.step, "best": state.best, "judged": state.judged}
    meta |= {"segment": state.segment, "skipped": state.skipped, "phase": state.phase, "images": state.images}
    meta |= {"model": state.model, "sha256": digests}
    if state.best_network:
        data = save(state.best_network)
        meta["best_sha256"] = _digest(data)
        if not storage.exists(_best(place, meta)):
            storage.write_bytes(_best(place, meta), data)
    for name, data in files.items():
        storage.write_bytes(storage.join(uri, name), data)
    storage.write_text(storage.join(uri, _META), json.dumps(meta, indent=2))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _best(place: str, meta: dict[str, Any]) -> str:
    return storage.join(place, f"best-{meta['best_sha256'][:16]}.safetensors")


def read(uri: str) -> Checkpoint:
    """Read the checkpoint in a folder.

    Raises:
        UsageError: truncated or changed files, or another program's.
    """
    try:
        meta = json.loads(storage.read_bytes(storage.join(uri, _META)))
        found = {name: _whole(storage.join(uri, name), meta["sha256"][name]) for name in (_NETWORKS, _OPTIMISERS)}
        best = _whole(_best(uri.rpartition("/")[0], meta), meta["best_sha256"]) if "best_sha256" in meta else None
        return Checkpoint(
            step=meta["step"],
            networks=load(found[_NETWORKS]),
            optimisers=torch.load(io.BytesIO(found[_OPTIMISERS]), map_location="cpu", weights_only=True),
            best_network=load(best) if best is not None else {},
            best=meta["best"],
            judged=meta["judged"],
            segment=meta["segment"],
            skipped=meta["skipped"],
            model=meta["model"],
            phase=meta["phase"],
            images=meta["images"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UsageError(
            f"{uri}: no checkpoint of this version of facelab, or a damaged one ({error!r:.200})"
        ) from error


def _whole(uri: str, digest: str) -> bytes:
    data = storage.read_bytes(uri)
    if _digest(data) != digest:
        raise UsageError(f"{uri}: damaged checkpoint: its bytes are not those that were written")
    return data


def steps_at(place: str) -> list[tuple[int, str]]:
    """(step, URI) of every checkpoint below `place` that came to its end, oldest first."""
    found = []
    for _, uri in storage.list_files(place, (f"/{_META}",)):
        try:
            found.append((json.loads(storage.read_bytes(uri))["step"], uri.removesuffix(f"/{_META}")))
        except StoreError:
            raise
        except (UsageError, KeyError, TypeError, ValueError):  # deleted just now, or no checkpoint's
            continue
    return sorted(found)


def newest_step(place: str) -> int:
    """Of the checkpoints below `place`; 0 where there are none."""
    return max([step for step, _ in steps_at(place)], default=0)


def newest(place: str) -> Checkpoint | None:
    """The whole checkpoint with the most steps below `place`; a damaged one is passed over, aloud.

    Raises:
        UsageError: there are checkpoints, but none is whole.
    """
    damage = None
    for _, uri in reversed(steps_at(place)):
        try:
            return read(uri)
        except StoreError:
            raise
        except UsageError as error:
            print(f"{error}: taking the one before", file=sys.stderr)
            damage = error
    if damage:
        raise UsageError(f"{damage}, and there is no other: start anew with another --output") from damage
    return None


def prune(place: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, what writers that died have left of theirs, and the best networks
    that none of these has."""
    kept = [uri for _, uri in steps_at(place)[-keep:]]
    folders = {name.partition("/")[0] for name, _ in storage.list_files(place) if "/" in name}
    for uri in sorted(storage.join(place, folder) for folder in folders if folder.startswith("step-")):
        if uri not in kept:
            storage.delete(uri)
    metas = (json.loads(storage.read_bytes(storage.join(uri, _META))) for uri in kept)
    used = {_best(place, meta) for meta in metas if "best_sha256" in meta}
    for name, uri in storage.list_files(place, (".safetensors",)):
        if name.startswith("best-") and uri not in used:
            storage.delete(uri)
