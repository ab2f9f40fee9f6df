"""Decoded inputs on a node's own disk. Its workers build one together, map it into memory and so share one copy of it;
the next training finds it there.

An entry is a folder: a file of pixels for each column, with a fixed region for each part of the input; a receipt of
each part that is decoded; and, last of all, the index and complete.json. Locks are flock's, which end with the process
that has them, however it ends. The folder must not be one that several nodes share; docs/sets.md has more.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from facelab import storage
from facelab.data.decoding import Decoded, Decoding, Facts, in_order
from facelab.errors import StoreError, UsageError

_LOCK = re.compile(r"[0-9a-f]{64}\.lock")
_ATTEMPTS = 3


def default_folder() -> Path:
    """Of this node, for what can be made anew: facelab in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "facelab"


class Hold:
    """Keeps an entry from being deleted until it is released, or the process ends."""

    def __init__(self, place: Path):
        self.place, self.lock = place, place.with_suffix(".lock")
        while True:
            self._file = self.lock.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_SH)
            if _is_there(self._file, self.lock):
                break
            self._file.close()
        os.utime(self.lock)  # the entry was used now

    def release(self) -> None:
        self._file.close()


@dataclass(frozen=True)
class Cache:
    """Where a node keeps decoded inputs."""

    folder: Path
    limit: int
    """Bytes that an input may take; and all together, as far as those that are not in use can make room."""

    def fits(self, decoding: Decoding) -> bool:
        """Whether an input may lie here as a whole."""
        return decoding.rows * decoding.row_bytes <= self.limit

    def open(self, decoding: Decoding, *, stop: threading.Event | None = None, progress: bool = False) -> Decoded:
        """A decoded input: as it lies here, or built now, together with whoever else wants it.

        Args:
            stop: once it is set, nothing is built any more.

        Raises:
            CancelledError: stopped.
            UsageError: an input that cannot be decoded, or a disk that has no room for it.
            StoreError: a folder that cannot be written.
        """
        place = self.folder / decoding.key
        stop = stop or threading.Event()
        with storage.explained(str(self.folder)):
            self.folder.mkdir(parents=True, exist_ok=True)
            hold = Hold(place)
            try:
                return self._built(_Entry(place, decoding), hold, stop, progress)
            except BaseException as error:
                hold.release()
                if isinstance(error, CancelledError):
                    self.delete(place)
                raise

    def _built(self, entry: "_Entry", hold: Hold, stop: threading.Event, progress: bool) -> Decoded:
        for _ in range(_ATTEMPTS):
            if (facts := entry.facts()) is not None:
                return entry.mapped(facts, hold)
            with _locked(self.folder / "room.lock"):  # each counts what the one before it has taken
                entry.place.mkdir(exist_ok=True)
                if missing := entry.missing_bytes():
                    self._make_room(missing)
                    entry.reserve()
            entry.build(stop, progress)
        raise StoreError(
            f"{entry.place}: is not read back as it was written: check the disk, or give another --cache-folder"
        )

    def delete(self, place: Path) -> bool:
        """Delete an entry, unless it is held; True if it is not there afterwards."""
        lock = place.with_suffix(".lock")
        if not lock.exists():  # by hand, with the folder
            return True
        with _locked(lock, wait=False) as file:
            if file is None or not _is_there(file, lock):
                return False
            if place.exists():
                shutil.rmtree(place)
            lock.unlink()
        return True

    def _make_room(self, wanted: int) -> None:
        """Delete what was not used for longest, as far as it takes.

        Raises:
            UsageError: the disk has not so many bytes.
        """
        locks = [file for file in self.folder.iterdir() if _LOCK.fullmatch(file.name)]
        sizes = {lock: _bytes_below(lock.with_suffix("")) for lock in locks}
        taken = sum(sizes.values())
        for lock in sorted(locks, key=_used):
            if taken + wanted <= self.limit and shutil.disk_usage(self.folder).free >= wanted:
                return
            if sizes[lock] and self.delete(lock.with_suffix("")):
                taken -= sizes[lock]
        if (free := shutil.disk_usage(self.folder).free) < wanted:
            raise _no_room(self.folder, wanted, free)


class _Entry:
    """One decoded input in its folder."""

    def __init__(self, place: Path, decoding: Decoding):
        self.place, self.decoding = place, decoding
        self.files = {name: place / f"{name}.u8" for name in decoding.shapes}

    def _size(self, name: str) -> int:
        return self.decoding.rows * int(np.prod(self.decoding.shapes[name]))

    def facts(self) -> Facts | None:
        """What complete.json tells; None where the entry is not whole, or not as it was when that was written."""
        try:
            told = json.loads((self.place / "complete.json").read_bytes())
            with (self.place / "index.arrow").open("rb") as file:
                same = hashlib.file_digest(file, "sha256").hexdigest() == told["index"]
            whole = same and told["files"] == self._stamps() and not self.missing_bytes()
            return Facts(**told["facts"]) if whole else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _stamps(self) -> dict[str, list[int]]:
        """Size and time of each file of pixels: whoever writes to one afterwards is found out."""
        found = {name: file.stat() for name, file in self.files.items()}
        return {name: [each.st_size, each.st_mtime_ns] for name, each in found.items()}

    def missing_bytes(self) -> int:
        """What the files of pixels lack in size."""
        found = {name: file.stat().st_size if file.exists() else 0 for name, file in self.files.items()}
        return sum(self._size(name) for name, size in found.items() if size != self._size(name))

    def reserve(self) -> None:
        """Give the files of pixels their size, and have the disk's word for it: without that, a full disk would end a
        process that writes to a mapped file.

        Raises:
            UsageError: the disk is full.
        """
        try:
            for name, file in self.files.items():
                with file.open("ab") as opened:
                    if hasattr(os, "posix_fallocate"):  # not on macOS
                        os.posix_fallocate(opened.fileno(), 0, self._size(name))
                    os.truncate(file, self._size(name))
        except OSError as error:
            for file in self.files.values():  # what was given is of no use to anybody
                file.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            wanted, free = sum(map(self._size, self.files)), shutil.disk_usage(self.place).free
            raise _no_room(self.place.parent, wanted, free) from error

    def build(self, stop: threading.Event, progress: bool) -> None:
        """Decode what nobody has decoded, wait for what others are at, and complete the entry if all of it is good."""
        waiting = set(range(len(self.decoding.parts)))
        title, rows = f"decoding {self.decoding.source.uri}", self.decoding.rows
        with tqdm(desc=title, unit="row", total=rows, disable=not progress, leave=False) as shown:
            for patiently in (False, True):
                for number in sorted(waiting):
                    if stop.is_set():
                        raise CancelledError
                    if self._done(number, patiently):
                        waiting.remove(number)
                        shown.update(self.decoding.starts[number + 1] - self.decoding.starts[number])
        with _locked(self.place / "build.lock"):
            if self.facts() is None:
                self._complete()

    def _receipt(self, number: int) -> Path:
        return self.place / f"part-{number:06d}.json"

    def _regions(self, number: int, mode: Any) -> dict[str, np.memmap]:
        """A part of the pixels, mapped: column -> (its rows, 3, H, W)."""
        start, end = self.decoding.starts[number : number + 2]
        return {
            name: np.memmap(file, np.uint8, mode, start * int(np.prod(shape)), (end - start, *shape))
            for (name, file), shape in zip(self.files.items(), self.decoding.shapes.values(), strict=True)
        }

    def _done(self, number: int, patiently: bool) -> bool:
        """Whether a part is decoded, by another, or now. False if another is at it, who is not to be waited for."""
        receipt = self._receipt(number)
        if receipt.exists():
            return True
        with _locked(receipt.with_suffix(".lock"), wait=patiently) as file:
            if file is None:
                return False
            if not receipt.exists():
                self._decode(number)
        return True

    def _decode(self, number: int) -> None:
        regions = self._regions(number, "r+")
        rows = _arrow(self.decoding.decode(number, dict(regions)))
        for region in regions.values():
            region.flush()
        storage.write_bytes(str(self._receipt(number).with_suffix(".arrow")), rows)
        told = {"rows": _sha256(rows), "pixels": {name: zlib.crc32(region.data) for name, region in regions.items()}}
        storage.write_text(str(self._receipt(number)), json.dumps(told))

    def _is_good(self, number: int) -> bool:
        """Whether a part's rows and pixels are those of its receipt."""
        try:
            told = json.loads(self._receipt(number).read_bytes())
            rows = self._receipt(number).with_suffix(".arrow").read_bytes()
            pixels = {name: zlib.crc32(region.data) for name, region in self._regions(number, "r").items()}
            return told == {"rows": _sha256(rows), "pixels": pixels}
        except (FileNotFoundError, ValueError):
            return False

    def _complete(self) -> None:
        """Write the index and complete.json, if every part reads back as it was decoded; else, those that do not are to
        be decoded again."""
        (self.place / "complete.json").unlink(missing_ok=True)
        numbers = range(len(self.decoding.parts))
        with ThreadPoolExecutor(4) as pool:
            good = list(pool.map(self._is_good, numbers))
        for number in numbers:
            if not good[number]:
                self._receipt(number).unlink(missing_ok=True)
        if not all(good):
            return
        parts = [pa.ipc.open_file(self._receipt(number).with_suffix(".arrow")).read_all() for number in numbers]
        index, facts = in_order(self.decoding, parts)
        rows = _arrow(index)
        storage.write_bytes(str(self.place / "index.arrow"), rows)
        told = {"files": self._stamps(), "index": _sha256(rows), "facts": vars(facts)}
        storage.write_text(str(self.place / "complete.json"), json.dumps(told))

    def mapped(self, facts: Facts, hold: Hold) -> Decoded:
        """The entry, of which nothing is in memory that is not read."""
        index = pa.ipc.open_file(pa.memory_map(str(self.place / "index.arrow"))).read_all()
        pixels = {
            name: np.asarray(np.memmap(file, np.uint8, "r", shape=(self.decoding.rows, *self.decoding.shapes[name])))
            for name, file in self.files.items()
        }
        return Decoded(index, pixels, facts, hold)


@contextmanager
def _locked(place: Path, wait: bool = True) -> Iterator[BinaryIO | None]:
    """The file, alone among processes and threads for the time of the block; None where another is there and `wait` is
    not."""
    with place.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield file


def _is_there(file: BinaryIO, place: Path) -> bool:
    """Whether an open file is still the one that lies there: it may have been deleted before it was locked."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    return False


def _arrow(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, table.schema) as file:
        file.write_table(table)
    return buffer.getvalue().to_pybytes()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _bytes_below(place: Path) -> int:
    total = 0
    with suppress(FileNotFoundError):  # another deletes it just now
        for file in os.scandir(place):
            with suppress(FileNotFoundError):
                total += file.stat().st_size
    return total


def _used(lock: Path) -> float:
    with suppress(FileNotFoundError):
        return lock.stat().st_mtime
    return 0.0


def _no_room(folder: Path, wanted: int, free: int) -> UsageError:
    return UsageError(
        f"{folder}: decoded images need {wanted / 2**30:.3g} GiB, and its disk has {free / 2**30:.3g} GiB free: free "
        "some, give another --cache-folder, or a --cache so small that the set is read shard by shard"
    )
