"""URI -> filesystem, for folders and S3 alike: the one place that knows endpoints and credentials.

S3 goes through s3fs, so credentials are those that boto3 finds (AWS_ACCESS_KEY_ID, profiles, instance roles), and an
endpoint other than AWS comes from AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL; MLflow's artifacts obey the same variables.
pyarrow's own S3 client puts folder markers, which some stores refuse (rclone: HTTP 500).
"""

import errno
import os
import re
import shutil
import tempfile
import unicodedata
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pyarrow.fs as pafs
import s3fs
from botocore.exceptions import BotoCoreError

from facelab.errors import StoreError, UsageError


def normalise(uri: str) -> str:
    """A path becomes absolute, so that workers with another working directory find it; s3:// stays as it is.

    Raises:
        UsageError: no place that can be meant.
    """
    found = re.fullmatch("([A-Za-z][A-Za-z0-9+.-]*):(.*)", _readable(uri))
    if found is None:
        try:
            return str(Path(uri).expanduser().absolute())
        except RuntimeError as error:
            raise UsageError(f"{uri}: no such user's home folder: write ./~name for a folder of that name") from error
    scheme, rest = found[1].lower(), found[2]
    if scheme == "file":
        path = re.fullmatch("(?://(?:localhost)?)?(/(?!/).*)", rest)
        if path is None:
            raise UsageError(f"{uri}: names a host or no absolute path: write file:///folder, or the plain path")
        return str(Path(_readable(unquote(path[1], errors="surrogateescape"))).absolute())
    if scheme == "s3":
        bucket, _, key = rest.removeprefix("//").partition("/")
        if not bucket or not rest.startswith("//"):
            raise UsageError(f"{uri}: no bucket: write s3://bucket/prefix")
        if "@" in bucket or ":" in bucket:
            raise UsageError(
                "s3:// URI with a key in it: keys come from AWS_ACCESS_KEY_ID or a profile, never from a URI"
            )
        if {".", ".."} & set(key.split("/")) or "?versionId=" in key:
            raise UsageError(f"{uri}: S3 knows no . and .., and versions are not chosen here: write the whole prefix")
        return f"s3://{bucket}/{key}".rstrip("/")
    raise UsageError(
        f"{uri}: unknown scheme {scheme!r}: give a path (./{found[1]}:… if it is one), file:// or s3://bucket/prefix"
    )


def _readable(uri: str) -> str:
    """Raises UsageError for what is no text: nothing, control characters, bytes that are no UTF-8."""
    if not uri or any(unicodedata.category(char) in ("Cc", "Cs") for char in uri):
        raise UsageError(f"{uri!a}: empty, or with a character that no path should have: rename it")
    return uri


def _place(uri: str) -> str:
    """A place that was normalised, or listed, is left as it is: what lies there may have any name."""
    return uri if uri.startswith(("/", "s3://")) else normalise(uri)


def within(inner: str, outer: str) -> bool:
    """Whether `inner` is `outer` or lies below it, whatever links and .. lead there."""
    inner, outer = (uri if uri.startswith("s3://") else os.path.realpath(uri) for uri in map(normalise, (inner, outer)))
    return f"{inner}/".startswith(f"{outer.rstrip('/')}/")


def join(uri: str, *parts: str) -> str:
    """`uri`/`parts`, for paths and s3:// alike."""
    return "/".join([uri.rstrip("/"), *parts])


def resolve(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI and the path in it: what Ray Data, Ray Train and pyarrow take."""
    uri = _place(uri)
    if not uri.startswith("s3://"):
        return pafs.LocalFileSystem(), uri
    return pafs.PyFileSystem(pafs.FSSpecHandler(_s3())), uri.removeprefix("s3://")


class _S3(s3fs.S3FileSystem):
    """Keys as they are: in what it deletes and fetches, s3fs would take * ? [ ] for patterns of other keys."""

    async def _expand_path(self, path, recursive=False, maxdepth=None, assume_literal=True):  # type: ignore[override]
        return await super()._expand_path(path, recursive, maxdepth, assume_literal=True)


def _s3() -> s3fs.S3FileSystem:
    settings = {
        "connect_timeout": 10,
        "read_timeout": 60,
        # Some stores send the checksum of a whole object with a part of it, such as one column of a shard.
        "response_checksum_validation": "when_required",
    }
    # Other jobs write too: a cached listing would hide what they wrote.
    return _S3(use_listings_cache=False, config_kwargs=settings)


_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or choose another place",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another place",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a store's errors into one line that names the place.

    Raises:
        UsageError: not found.
        StoreError: any other.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UsageError(f"{uri}: not found") from error
    except (OSError, BotoCoreError) as error:
        if uri.startswith("s3://"):
            hint = "check AWS_ENDPOINT_URL, the AWS credentials, whether they have expired, and this machine's clock"
        else:
            hint = hint_for(error) or "check path and rights"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise StoreError(f"{uri}: cannot be reached or written ({reason}): {hint}") from error


def hint_for(error: BaseException) -> str | None:
    """What to do about an error of a disk."""
    return _HINTS.get(getattr(error, "errno", None) or 0)


def exists(uri: str) -> bool:
    """Whether a file or folder is there."""
    filesystem, path = resolve(uri)
    with explained(uri):
        return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def is_file(uri: str) -> bool:
    filesystem, path = resolve(uri)
    with explained(uri):
        return filesystem.get_file_info(path).type == pafs.FileType.File


def list_files(uri: str, suffixes: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(path relative to `uri`, URI) of every file below it, sorted; `suffixes` in lower case filter by name.

    Each real file once, however many links lead to it; hidden files and folders (.name, __MACOSX) never. Of a name that
    is no UTF-8, and so could be no id, the bytes are spelt out.
    """
    uri = _place(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            found = [key for key in _keys(uri) if key.lower().endswith(suffixes or ("",))]
        else:
            found = list(_walk(uri, suffixes or ("",)))
    names = (os.fsencode(place[len(uri) :].lstrip("/")).decode(errors="backslashreplace") for place in found)
    shown = zip(names, found, strict=True)
    return sorted((name, place) for name, place in shown if name and not any(map(_hidden, name.split("/"))))


def _keys(uri: str) -> list[str]:
    """s3:// URIs of every key below a prefix, or of the key itself; folder markers are none."""
    return [f"s3://{key}" for key in _s3().find(uri) if not key.endswith("/")]  # pyrefly: ignore


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _walk(base: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Every file below a folder of such a name; links come after all that really lies there, and lead to nothing that
    was seen. A link's own name counts: what it leads to may have any, as in the stores of git-annex or Hugging Face."""
    real = os.path.realpath(base)
    seen = set(map(str, Path(real).parents))  # a link to a folder above would lead to this one's neighbours
    folders, links = [(base, real)] if os.path.isdir(real) else [], []
    while folders or links:
        place, real = folders.pop() if folders else links.pop(0)
        if real in seen:
            continue
        if os.path.isdir(real):
            seen.add(real)
            try:
                entries = sorted(os.scandir(real), key=lambda entry: entry.name)
            except FileNotFoundError:  # deleted just now
                continue
            for entry in entries:
                if _hidden(entry.name):
                    continue
                path = f"{place.rstrip('/')}/{entry.name}"
                if entry.is_symlink():
                    links.append((path, os.path.realpath(path)))
                else:
                    folders.append((path, f"{real.rstrip('/')}/{entry.name}"))
        elif place.lower().endswith(suffixes) and (os.path.isfile(real) or _leads_nowhere(place)):
            seen.add(real)
            yield place


def _leads_nowhere(place: str) -> bool:
    """A link that its reader will tell of; pipes and the like are no files."""
    return os.path.islink(place) and not os.path.exists(place)


def read_bytes(uri: str) -> bytes:
    uri = _place(uri)
    with explained(uri):
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
    uri = _place(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            _s3().pipe_file(uri, data)
            return
        with _replacing(Path(uri)) as aside:
            aside.write_bytes(data)


def upload(local: Path, uri: str) -> None:
    """Copy a local file whole or not at all, without reading it into memory."""
    uri = _place(uri)
    with explained(uri):
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
    uri = _place(uri)
    if not uri.startswith("s3://"):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory(prefix="facelab-") as folder:
        target = Path(folder) / Path(uri).name
        with explained(uri):
            # Lists, as s3fs has its own idea of what a path with [ ] in it is copied to.
            names = [key.removeprefix(uri) for key in _keys(uri)]
            if not names:
                raise FileNotFoundError(uri)
            if any(".." in name.split("/") for name in names):
                raise UsageError(f"{uri}: has a key with .. in it, which would leave the folder of the copy")
            _s3().get([uri + name for name in names], [f"{target}{name}" for name in names])
        yield target


def delete(uri: str) -> None:
    """Remove a file or folder if it is there."""
    uri = _place(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            if _s3().exists(uri):
                _s3().rm(uri, recursive=True)
        elif Path(uri).is_dir() and not Path(uri).is_symlink():
            # At once: what is left of a deletion that was interrupted must not be taken for anything.
            aside = Path(uri).with_name(f".{Path(uri).name}.{uuid.uuid4().hex[:8]}")
            os.rename(uri, aside)
            shutil.rmtree(aside)
        else:
            Path(uri).unlink(missing_ok=True)
