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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import Empty, Queue
from threading import Event
from typing import Any, BinaryIO, NamedTuple
from urllib.parse import unquote

import boto3
import pyarrow.fs as pafs
import s3fs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from s3fs.core import S3_RETRYABLE_ERRORS
from s3fs.errors import translate_boto_error

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
    """Keys as they are: in what it deletes and fetches, s3fs would take * ? [ ] for patterns of other keys.

    A request is tried again by botocore alone. s3fs would do that anew for each of its own 5 tries, and for each of 5
    more where it reads: hours before a store that is silent is told. Its tries are for a body that breaks off.
    """

    async def _expand_path(self, path, recursive=False, maxdepth=None, assume_literal=True):  # type: ignore[override]
        return await super()._expand_path(path, recursive, maxdepth, assume_literal=True)

    async def _call_s3(self, method, *akwarglist, **kwargs):
        await self.set_session()
        call = getattr(await self.get_s3(kwargs.get("Bucket")), method)
        try:
            return await call(**self._get_s3_method_kwargs(call, *akwarglist, **kwargs))
        except ClientError as error:
            raise translate_boto_error(error) from error
        except HTTPClientError as error:  # as what s3fs does not try again
            raise ConnectionError(str(error)) from error


_SETTINGS: dict[str, Any] = {
    "connect_timeout": 10,
    "read_timeout": 60,
    # 5xx, slow-down, resets and timeouts: again after 0 to 1, 2, 4, 8, 16 s.
    "retries": {"mode": "standard", "total_max_attempts": 6},
    # Some stores send the checksum of a whole object with a part of it, such as one column of a shard.
    "response_checksum_validation": "when_required",
}


def _s3() -> s3fs.S3FileSystem:
    # Other jobs write too: a cached listing would hide what they wrote. Of parts that it reads side by side, s3fs tries
    # none again.
    return _S3(use_listings_cache=False, max_concurrency=1, config_kwargs=_SETTINGS)


@cache
def _client() -> Any:
    """For listings page by page; s3fs would hold them whole."""
    return boto3.client("s3", config=Config(max_pool_connections=_LISTERS, **_SETTINGS))


_HINTS = {
    errno.ENOSPC: "the disk is full: free some space, or choose another place",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another place",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
_DENIED = "check the AWS credentials, whether they have expired, their rights on this bucket, and this machine's clock"
_UNREACHED = "check AWS_ENDPOINT_URL, the network and the store; then run the same command again"
_NO_BUCKET = "check the bucket's name, its region and AWS_ENDPOINT_URL; then run the same command again"


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn a store's errors into one line that names the place.

    Raises:
        UsageError: not found.
        StoreError: any other; also that the whole bucket is not there.
    """
    try:
        yield
    except (OSError, BotoCoreError, ClientError, *S3_RETRYABLE_ERRORS) as error:
        code = _code(error)
        if code == "NoSuchBucket":
            raise StoreError(f"{uri}: the bucket is not there: {_NO_BUCKET}") from error
        if isinstance(error, FileNotFoundError) or code in ("404", "NoSuchKey"):
            raise UsageError(f"{uri}: not found") from error
        if uri.startswith("s3://"):
            denied = isinstance(error, PermissionError | NoCredentialsError) or code in _DENIALS
            hint = _DENIED if denied else _UNREACHED
        else:
            hint = hint_for(error) or "check path and rights"
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise StoreError(f"{uri}: cannot be reached or written ({reason}): {hint}") from error


_DENIALS = ("403", "AccessDenied", "Forbidden", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken",
            "RequestTimeTooSkewed")  # fmt: skip


def _code(error: BaseException | None) -> str:
    """What S3 calls an error, also from inside what s3fs made of it."""
    while error is not None and not isinstance(error, ClientError):
        error = error.__cause__
    return error.response.get("Error", {}).get("Code", "") if error else ""


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


@dataclass(frozen=True)
class Found:
    """A file of a listing."""

    name: str
    """Relative to the folder; of a name that is no UTF-8, and so could be no id, the bytes are spelt out."""
    uri: str
    size: int
    """Bytes."""
    stamp: str
    """Another after every change: of S3, ETag and time; of a disk, the time of the last change, ns."""


def list_files(uri: str, suffixes: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(name, URI) of what `scan` finds, sorted."""
    return sorted((found.name, found.uri) for found in scan(uri, suffixes))


def scan(uri: str, suffixes: tuple[str, ...] = ()) -> Iterator[Found]:
    """Every file below a folder, little by little, in an order that depends on the names alone; of S3, by many prefixes
    at the same time. `suffixes` in lower case filter by name.

    Each real file once, however many links lead to it; hidden files and folders (.name, __MACOSX) never.
    """
    uri = _place(uri)
    listing = _keys(uri) if uri.startswith("s3://") else _walk(uri, suffixes or ("",))
    with explained(uri):
        for place, size, stamp in listing:
            name = os.fsencode(place[len(uri) :].lstrip("/")).decode(errors="backslashreplace")
            if name and name.lower().endswith(suffixes or ("",)) and not any(map(_hidden, name.split("/"))):
                yield Found(name, place, size, stamp)


_LISTERS = 32
_PAGES_AHEAD = 4
_PIECE = 8 * 2**20
"""Bytes that are fetched at a time of a file that is read in part."""


def _keys(uri: str) -> Iterator[tuple[str, int, str]]:
    """(s3:// URI, bytes, stamp) of every key below a prefix, or of the key itself; folder markers are none."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if key:
        try:
            found = _client().head_object(Bucket=bucket, Key=key)
            yield uri, found["ContentLength"], _stamp(found)
            return
        except ClientError as error:
            if _code(error) != "404":
                raise
            # A prefix.
    prefixes = [f"{key}/" if key else ""]
    while 0 < len(prefixes) < _LISTERS:
        deeper = []
        for page in (page for each in prefixes for page in _pages(bucket, each, Delimiter="/")):
            yield from _files(bucket, page)
            deeper += [each["Prefix"] for each in page.get("CommonPrefixes", ())]
        prefixes = deeper
    queues: list[Queue[Any]] = [Queue(_PAGES_AHEAD) for _ in prefixes]
    stopped = Event()
    with ThreadPoolExecutor(_LISTERS) as pool:
        for pages, each in zip(queues, prefixes, strict=True):
            pool.submit(_list_into, pages, stopped, bucket, each)
        try:
            for pages in queues:
                while (page := pages.get()) is not None:
                    if isinstance(page, Exception):
                        raise page
                    yield from page
        finally:  # also of who needs no more: a lister that waits for room would wait for ever
            stopped.set()
            for pages in queues:
                with suppress(Empty):
                    while True:
                        pages.get_nowait()


def _pages(bucket: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
    return iter(_client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options))


def _files(bucket: str, page: dict[str, Any]) -> list[tuple[str, int, str]]:
    found = (each for each in page.get("Contents", ()) if not each["Key"].endswith("/"))
    return [(f"s3://{bucket}/{each['Key']}", each["Size"], _stamp(each)) for each in found]


def _stamp(found: dict[str, Any]) -> str:
    return f"{found.get('ETag')} {found['LastModified']}"


def _list_into(pages: "Queue[Any]", stopped: Event, bucket: str, prefix: str) -> None:
    """Pages of a prefix, then None; or what went wrong."""
    try:
        if stopped.is_set():
            return
        for page in _pages(bucket, prefix):
            pages.put(_files(bucket, page))
            if stopped.is_set():
                return
        pages.put(None)
    except Exception as error:  # told by the one who takes the pages
        pages.put(error)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _walk(base: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, int, str]]:
    """(path, bytes, stamp) of every file below a folder of such a name; links come after all that really lies there,
    and lead to nothing that was seen. A link's own name counts: what it leads to may have any, as in the stores of
    git-annex or Hugging Face. Only folders and what links lead to are remembered, so that memory does not grow with
    the files."""
    real = os.path.realpath(base)
    above = set(map(str, Path(real).parents))  # a link to one would lead to this folder's neighbours
    seen: set[str] = set()
    folders, links = [_Node(base, real)] if os.path.isdir(real) else [], []
    while folders or links:
        linked = not folders
        node = links.pop(0) if linked else folders.pop()
        place, real = node.place, node.real
        if node.is_folder():
            if real in seen or real in above:
                continue
            seen.add(real)
            try:
                entries = sorted(os.scandir(real), key=lambda entry: entry.name, reverse=True)
            except FileNotFoundError:  # deleted just now
                continue
            for entry in entries:
                if _hidden(entry.name):
                    continue
                path = f"{place.rstrip('/')}/{entry.name}"
                if entry.is_symlink():
                    links.append(_Node(path, os.path.realpath(path)))
                else:
                    folders.append(_Node(path, f"{real.rstrip('/')}/{entry.name}", entry))
        elif place.lower().endswith(suffixes) and (node.is_file() or _leads_nowhere(place)):
            if real in seen:
                continue
            if linked:
                here = os.path.dirname(real) in seen and not _hidden(Path(real).name)
                if here and node.is_file() and real.lower().endswith(suffixes):
                    continue  # met where it lies
                seen.add(real)
            found = node.stat()
            # Not the time of modification: archives and copies bring their own.
            yield (place, found.st_size, str(found.st_ctime_ns)) if found else (place, 0, "")


class _Node(NamedTuple):
    """What a walk meets."""

    place: str
    real: str
    entry: os.DirEntry[str] | None = None
    """Of what is no link: it knows what that is; across a network, each question to a disk takes a millisecond."""

    def is_folder(self) -> bool:
        return self.entry.is_dir(follow_symlinks=False) if self.entry else os.path.isdir(self.real)

    def is_file(self) -> bool:
        return self.entry.is_file(follow_symlinks=False) if self.entry else os.path.isfile(self.real)

    def stat(self) -> os.stat_result | None:
        """None of a link to nowhere, or of what cannot be looked at: its reader will tell."""
        with suppress(OSError):
            return self.entry.stat(follow_symlinks=False) if self.entry else os.stat(self.real)
        return None


def _leads_nowhere(place: str) -> bool:
    """A link that its reader will tell of; pipes and the like are no files."""
    return os.path.islink(place) and not os.path.exists(place)


def read_bytes(uri: str) -> bytes:
    uri = _place(uri)
    with explained(uri):
        return _s3().cat_file(uri) if uri.startswith("s3://") else Path(uri).read_bytes()  # pyrefly: ignore


@contextmanager
def open_input(uri: str) -> Iterator[BinaryIO]:
    """A file to read and seek in, fetched piece by piece."""
    uri = _place(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            with _s3().open(uri, "rb", block_size=_PIECE) as file:
                yield file  # pyrefly: ignore
        else:
            with Path(uri).open("rb") as file:
                yield file


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path aside to fill, which then takes the place of `target`; nothing half-written is ever there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _aside(target) as aside:
        yield aside
        os.replace(aside, target)


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield aside
    finally:
        aside.unlink(missing_ok=True)


def sweep(uri: str, names: str) -> None:
    """Delete what writers that were killed left aside in a folder. On S3, objects appear whole or not at all.

    Args:
        names: a regular expression of what they were writing.
    """
    uri = _place(uri)
    if uri.startswith("s3://") or not os.path.isdir(uri):
        return
    left = re.compile(rf"\.(?:{names})\.[0-9a-f]{{8}}")
    with explained(uri):
        for entry in os.scandir(uri):
            if left.fullmatch(entry.name):
                shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)


def write_bytes(uri: str, data: bytes) -> None:
    """Write one object whole or not at all: aside and renamed in a folder, a single put on S3."""
    uri = _place(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            _s3().pipe_file(uri, data)
            return
        with _replacing(Path(uri)) as aside:
            aside.write_bytes(data)


def create(uri: str, data: bytes) -> bool:
    """Write an object that is not there yet; False where it is. Of two that try at once, one succeeds, unless they try
    on a store that does not know conditional puts, or with equal bytes."""
    uri = _place(uri)
    with explained(uri):
        if uri.startswith("s3://"):
            return not _s3().exists(uri) and _put_new(uri, data)
        place = Path(uri)
        place.parent.mkdir(parents=True, exist_ok=True)
        with _aside(place) as aside:
            aside.write_bytes(data)
            try:
                os.link(aside, place)  # unlike a rename, it never replaces
            except FileExistsError:
                return False
    return True


def _put_new(uri: str, data: bytes) -> bool:
    try:
        _s3().pipe_file(uri, data, mode="create")
    except OSError as error:
        if _code(error) not in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise
        # It may be our own: where the answer to a put is lost, the next try meets what that wrote.
        with suppress(FileNotFoundError):
            return _s3().cat_file(uri) == data
        return False
    return True


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
            names = [key.removeprefix(uri) for key, *_ in _keys(uri)]
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
