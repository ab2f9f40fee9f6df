"""URI -> filesystem, for folders and S3 alike: the one place that knows endpoints and credentials.

S3 goes through s3fs, so credentials are those that boto3 finds (AWS_ACCESS_KEY_ID, profiles, instance roles), and an
endpoint other than AWS comes from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL; MLflow's artifacts obey the same variables.
pyarrow's own S3 client puts folder markers, which some stores refuse (rclone: HTTP 500).
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import pyarrow.fs as pafs
import s3fs
from botocore.exceptions import BotoCoreError

from facelab.errors import StoreError, UsageError


def normalise(uri: str) -> str:
    """A path becomes absolute, so that workers with another working directory find it; s3:// stays as it is."""
    parsed = urlparse(uri)
    if parsed.scheme in ("", "file"):
        path = parsed.path if parsed.scheme == "file" else uri
        return str(Path(path).expanduser().absolute())
    if parsed.scheme == "s3":
        if not parsed.netloc:
            raise UsageError(f"{uri}: no bucket: write s3://bucket/prefix")
        if "@" in parsed.netloc:
            raise UsageError(
                "s3:// URI with a key in it: keys come from AWS_ACCESS_KEY_ID or a profile, never from a URI"
            )
        return uri.rstrip("/")
    raise UsageError(f"{uri}: unknown scheme {parsed.scheme!r}: give a path, file:// or s3://bucket/prefix")


def join(uri: str, *parts: str) -> str:
    """`uri`/`parts`, for paths and s3:// alike."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path in it: what Ray Data, Ray Train and pyarrow take."""
    uri = normalise(uri)
    if not uri.startswith("s3://"):
        return pafs.LocalFileSystem(), uri
    return pafs.PyFileSystem(pafs.FSSpecHandler(_s3())), uri.removeprefix("s3://")


def _s3() -> s3fs.S3FileSystem:
    # Other jobs write too: a cached listing would hide what they wrote.
    return s3fs.S3FileSystem(use_listings_cache=False, config_kwargs={"connect_timeout": 10, "read_timeout": 60})


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn a store's errors into one line that names the place."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{uri}: not found") from error
    except (OSError, BotoCoreError) as error:
        hint = "check AWS_ENDPOINT_URL and the AWS credentials" if uri.startswith("s3://") else "check path and rights"
        reason = str(error).splitlines()[0][:300]
        raise StoreError(f"{uri}: cannot be reached or written ({reason}): {hint}") from error


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def is_file(uri: str) -> bool:
    filesystem, path = resolve(uri)
    with _explained(uri):
        return filesystem.get_file_info(path).type == pafs.FileType.File


def list_files(uri: str, suffixes: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(path relative to `uri`, URI) of every file below it, sorted; `suffixes` in lower case filter by name."""
    filesystem, base = resolve(uri)
    with _explained(uri):
        infos = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    scheme = "s3://" if uri.startswith("s3://") else ""
    files = []
    for info in infos:
        if info.type == pafs.FileType.File and info.path.lower().endswith(suffixes or ("",)):
            files.append((info.path[len(base) :].lstrip("/"), scheme + info.path))
    return sorted(files)


def read_bytes(uri: str) -> bytes:
    uri = normalise(uri)
    with _explained(uri):
        return _s3().cat_file(uri) if uri.startswith("s3://") else Path(uri).read_bytes()  # pyrefly: ignore


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path aside to fill, which then takes the place of `target`; nothing half-written is ever there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(uri: str, data: bytes) -> None:
    """Write one object whole or not at all: aside and renamed in a folder, a single put on S3."""
    uri = normalise(uri)
    with _explained(uri):
        if uri.startswith("s3://"):
            _s3().pipe_file(uri, data)
            return
        with _replacing(Path(uri)) as aside:
            aside.write_bytes(data)


def upload(local: Path, uri: str) -> None:
    """Copy a local file whole or not at all, without reading it into memory."""
    uri = normalise(uri)
    with _explained(uri):
        if uri.startswith("s3://"):
            _s3().put_file(str(local), uri)
            return
        with _replacing(Path(uri)) as aside:
            shutil.copyfile(local, aside)


def write_text(uri: str, text: str) -> None:
    write_bytes(uri, text.encode())


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A folder or file as a local path, downloaded for the time of the block when it lies elsewhere."""
    uri = normalise(uri)
    if not uri.startswith("s3://"):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        target = Path(folder) / Path(uri).name
        with _explained(uri):
            _s3().get(uri, str(target), recursive=True)
        yield target


def delete(uri: str) -> None:
    """Remove a file or folder if it is there."""
    uri = normalise(uri)
    with _explained(uri):
        if uri.startswith("s3://"):
            if _s3().exists(uri):
                _s3().rm(uri, recursive=True)
        elif Path(uri).is_dir():
            shutil.rmtree(uri)
        else:
            Path(uri).unlink(missing_ok=True)
