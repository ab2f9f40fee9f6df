"""URI -> filesystem, for folders and S3 alike: the one place that knows endpoints and credentials.

Credentials are those that boto3 finds (AWS_ACCESS_KEY_ID, profiles, instance roles); an endpoint other than AWS comes
from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL. MLflow's S3 artifacts go through boto3, which reads the same variables.
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

from facelab.errors import UsageError


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
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict = {"connect_timeout": 10, "request_timeout": 60}
    if endpoint:
        parsed = urlparse(endpoint if "://" in endpoint else f"https://{endpoint}")
        options |= {"endpoint_override": parsed.netloc, "scheme": parsed.scheme}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    elif endpoint:
        options["region"] = "us-east-1"  # unused by other stores, but pyarrow would ask AWS for it
    return pafs.S3FileSystem(**options), uri.removeprefix("s3://")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Turn a store's errors into one line that names the place."""
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{uri}: not found") from error
    except OSError as error:
        hint = "check AWS_ENDPOINT_URL and the AWS credentials" if uri.startswith("s3://") else "check path and rights"
        reason = str(error).splitlines()[0][:300]
        raise UsageError(f"{uri}: cannot be reached or written ({reason}): {hint}") from error


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
    filesystem, path = resolve(uri)
    with _explained(uri), filesystem.open_input_stream(path) as stream:
        return stream.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write one object whole or not at all: aside and renamed in a folder, a single put on S3."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            target = Path(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
            try:
                aside.write_bytes(data)
                os.replace(aside, target)
            finally:
                aside.unlink(missing_ok=True)
        else:
            with filesystem.open_output_stream(path) as stream:
                stream.write(data)


def write_text(uri: str, text: str) -> None:
    write_bytes(uri, text.encode())


@contextmanager
def local_copy(uri: str) -> Iterator[Path]:
    """A folder or file as a local path, downloaded for the time of the block when it lies elsewhere."""
    filesystem, path = resolve(uri)
    if isinstance(filesystem, pafs.LocalFileSystem):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        target = Path(folder) / Path(path).name
        with _explained(uri):
            pafs.copy_files(
                path, str(target), source_filesystem=filesystem, destination_filesystem=pafs.LocalFileSystem()
            )
        yield target


def delete(uri: str) -> None:
    """Remove a file or folder if it is there."""
    filesystem, path = resolve(uri)
    with _explained(uri):
        if isinstance(filesystem, pafs.LocalFileSystem):
            if Path(path).is_dir():
                shutil.rmtree(path)
            else:
                Path(path).unlink(missing_ok=True)
            return
        kind = filesystem.get_file_info(path).type
        if kind == pafs.FileType.Directory:
            filesystem.delete_dir(path)
        elif kind == pafs.FileType.File:
            filesystem.delete_file(path)
