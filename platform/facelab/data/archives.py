"""Images inside zip, tar and Parquet files: an index of the members, and the bytes of those that are asked for.

Nothing is ever unpacked to a disk, and no archive within an archive is opened. What an archive says of itself is not
believed: a name that leads out of a folder, a link, a member that would fill the memory become items like others, which
`read` rejects with the reason.
"""

import json
import re
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from facelab import storage
from facelab.data.shards import split_of
from facelab.data.tables import require_plain
from facelab.errors import UsageError, one_line
from facelab.images import IMAGE_SUFFIXES, MAX_BYTES, BadImage

_MOST_RATIO, _FREE_BYTES = 200, 2**20
"""A member of more bytes than these is a bomb where it unpacks to more than so many times its size in the archive."""
_MOST_LABEL = 2**20
"""Bytes of a .json or .cls beside an image."""
_REFUSED = "refused "
"""What a member's place begins with where the reason follows for which the member is not read."""
_PACKERS = {b"\x1f\x8b": "gunzip -k", b"BZh": "bunzip2 -k", b"\xfd7zXZ\0": "xz -dk", b"\x28\xb5\x2f\xfd": "zstd -d"}
"""First bytes of a compressed file -> what unpacks it."""
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
"""The compressed ones are found in order to be refused."""


class Member(NamedTuple):
    """An image in an archive, as an index has it."""

    name: str
    """Its id in the archive: of no two the same, and safe as the path of a file."""
    place: str
    """What `read` finds it by, or why it will not be read."""
    size: int = 0
    """Bytes, as the archive says; 0 where it does not."""
    split: str = ""
    """train or val, where it is not the id that decides."""


class _Placed(Protocol):
    """What `read` wants of an item."""

    @property
    def uri(self) -> str: ...
    @property
    def member(self) -> str: ...


def find_archives(uri: str, suffixes: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(what the ids of its members begin with, URI) of one archive, or of every archive below a folder, by name.

    Raises:
        UsageError: none there.
    """
    if storage.is_file(uri):
        if not uri.lower().endswith(suffixes):
            raise UsageError(f"{uri}: its name ends in none of {', '.join(suffixes)}: rename it, or choose its recipe")
        yield "", uri
        return
    found = storage.list_files(uri, suffixes)
    if not found:
        raise UsageError(f"{uri}: no {' or '.join(suffixes)} here: give one such file, or a folder of them")
    for name, place in found:
        yield f"{name}/", place


def read(items: Sequence[_Placed]) -> Iterator[bytes | BadImage]:
    """The bytes of each item, in their order, or why it has none. Each archive is opened once for the items of it that
    follow one another, and is read forward where they are in the order of its index.

    Raises:
        UsageError: an archive that is gone or cannot be read at all.
        StoreError: a store that cannot be reached.
    """
    for uri, part in groupby(items, lambda item: item.uri):
        with storage.open_input(uri) as file:
            archive: _Archive | None = None
            for item in part:
                result: bytes | BadImage
                try:
                    if item.member.startswith(_REFUSED):
                        raise BadImage(item.member.removeprefix(_REFUSED))
                    archive = archive or _opened(file, uri)
                    result = archive.fetch(item.member)
                except BadImage as error:
                    result = error
                yield result


class _Archive(Protocol):
    def fetch(self, member: str) -> bytes:
        """Raises BadImage where the member has no image that can be read."""
        ...


def _opened(file: BinaryIO, uri: str) -> _Archive:
    kinds = {".zip": _Zip, ".tar": _Tar, ".parquet": _Parquet}
    return kinds["." + uri.lower().rsplit(".", 1)[1]](file, uri)


def is_unsafe(name: str) -> bool:
    """Whether a name leads, on some system, out of the folder that it is below, has control characters, or is none."""
    out = not name or name.startswith("/") or "\\" in name or re.match("[A-Za-z]:", name) or ".." in name.split("/")
    return bool(out) or any(unicodedata.category(char) == "Cc" for char in name)


def _is_wanted(name: str) -> bool:
    """An image by its name, and not hidden: as storage.list_files takes files."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
    return name.lower().endswith(IMAGE_SUFFIXES) and (is_unsafe(name) or not hidden)


class _Index:
    """Gives the members of one archive their ids."""

    def __init__(self):
        self._seen: Counter[str] = Counter()

    def member(self, name: str, place: str, size: int = 0, split: str = "", *, refusal: str = "") -> Member:
        """
        Args:
            refusal: why the member will not be read, for another reason than its name.
        """
        if is_unsafe(name):
            refusal = f"unsafe name: {one_line(name)[:120]}"
            name = re.sub(r"[^\w.-]+", "_", name).lstrip("._") or "unnamed"
        unique = name = _spelt(name)
        while unique in self._seen:
            self._seen[name] += 1
            unique = f"{name}~{self._seen[name]}"
        self._seen[unique] += 1
        return Member(unique, _REFUSED + refusal if refusal else place, size, split)


def _spelt(name: str) -> str:
    """With the bytes spelt out that are no UTF-8, as in the names of files."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def index_zip(uri: str) -> Iterator[Member]:
    """Every image in a zip file, in the order of its directory.

    Raises:
        UsageError: no zip file, or a truncated one.
    """
    index = _Index()
    with storage.open_input(uri) as file:
        for number, info in enumerate(_open_zip(file, uri).infolist()):
            if _is_wanted(info.filename):
                yield index.member(info.filename, str(number), info.file_size, refusal=_zip_refusal(info))


def _zip_refusal(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):  # 0: made on a system that has no such bits
        return "no plain file: a link or a device"
    if info.flag_bits & 1:
        return "encrypted: unpack it with its password first"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression: method {info.compress_type} of zip files is not read, only store and deflate"
    return ""


def _open_zip(file: BinaryIO, uri: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise UsageError(f"{uri}: no zip file, or a truncated one ({error}): copy it again") from error


class _Zip:
    """Members by their number in the directory: names may come twice."""

    def __init__(self, file: BinaryIO, uri: str):
        self._zip = _open_zip(file, uri)
        self._members = self._zip.infolist()

    def fetch(self, member: str) -> bytes:
        info = self._members[int(member)]
        limit = min(MAX_BYTES, max(_FREE_BYTES, _MOST_RATIO * info.compress_size))
        if info.file_size > limit:
            raise BadImage(f"archive bomb: {info.compress_size} bytes that unpack to {info.file_size}")
        try:
            with self._zip.open(info) as stream:
                return stream.read(limit)  # it ends at the size it says, and then the checksum is wrong
        except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as error:
            raise BadImage(f"damaged member: {one_line(str(error))[:120]}") from error


def index_tar(uri: str) -> Iterator[Member]:
    """Every image in a tar file, in its order; the data between the headers is passed over.

    Raises:
        UsageError: no tar file, a compressed or a truncated one.
    """
    index = _Index()
    with storage.open_input(uri) as file:
        for info in _tar_members(file, uri):
            if _is_wanted(_tar_name(info)):
                yield _tar_member(index, info)


def index_webdataset(uri: str, group: str) -> Iterator[Member]:
    """The same, of a WebDataset shard: neighbours with one key are a sample, and all images of it have one split.

    Args:
        group: what keeps samples together in one split: "cls", the text of their .cls; any other text, the value of
            that key in their .json; "", nothing.

    Raises:
        UsageError: as for index_tar, or a sample says nothing of its group.
    """
    index = _Index()
    with storage.open_input(uri) as file:
        for key, members in groupby(_tar_members(file, uri), _key):
            sample = list(members)
            images = [info for info in sample if _is_wanted(_tar_name(info))]
            if images:
                split = split_of(_group(file, uri, key, sample, group) if group else key)
                yield from (_tar_member(index, info, split) for info in images)


def _key(info: tarfile.TarInfo) -> str:
    """The path up to the first dot of its last part."""
    folder, slash, name = _spelt(_tar_name(info)).rpartition("/")
    return folder + slash + name.split(".", 1)[0]


def _group(file: BinaryIO, uri: str, key: str, sample: list[tarfile.TarInfo], group: str) -> str:
    suffix = ".cls" if group == "cls" else ".json"
    texts = [info for info in sample if info.isreg() and info.name.endswith(suffix)]
    try:
        file.seek(texts[0].offset_data)
        text = file.read(min(texts[0].size, _MOST_LABEL)).decode()
        return text.strip() if group == "cls" else str(json.loads(text)[group])
    except (IndexError, KeyError, TypeError, ValueError, RecursionError) as error:
        what = "with its class" if group == "cls" else f"with the key {group!r}"
        raise UsageError(f"{uri}: sample {key} has no {suffix} {what}: give another --webdataset.group") from error


def _tar_name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


def _tar_member(index: _Index, info: tarfile.TarInfo, split: str = "") -> Member:
    refusal = "" if info.isreg() and info.sparse is None else "no plain file: a link, a device, or one with holes"
    return index.member(_tar_name(info), f"{info.offset_data}:{info.size}", info.size, split, refusal=refusal)


def _tar_members(file: BinaryIO, uri: str) -> Iterator[tarfile.TarInfo]:
    """Every member but folders. tarfile takes whatever is no header for the end: here, only zeros are one."""
    start = file.read(8)
    for magic, packer in _PACKERS.items():
        if start.startswith(magic):
            name = uri.rsplit("/", 1)[1]
            raise UsageError(f"{uri}: members of a compressed tar cannot be read apart: unpack it: {packer} {name}")
    file.seek(0)
    damaged = UsageError(f"{uri}: no tar file, or a truncated or damaged one: copy it again")
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            end = 0
            while (info := tar.next()) is not None:
                tar.members = []  # pyrefly: ignore  (it would keep all)
                if tar.offset <= end:  # a negative size leads back
                    raise damaged
                end = tar.offset
                if not info.isdir():
                    yield info
            file.seek(tar.offset)
            block = file.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError, MemoryError) as error:  # of absurd sizes
        raise damaged from error
    if block.strip(b"\0") or not block:
        raise damaged


class _Tar:
    """Members by "offset:size" of their data."""

    def __init__(self, file: BinaryIO, uri: str):
        self._file = file

    def fetch(self, member: str) -> bytes:
        offset, size = map(int, member.split(":"))
        if size > MAX_BYTES:
            raise BadImage(f"too large: a member of {size / 2**20:.0f} MiB")
        self._file.seek(offset)
        return self._file.read(size)


def index_parquet(uri: str, column: str, id_column: str = "", group_column: str = "") -> Iterator[Member]:
    """Every row of a Parquet file; of the other columns, none is read.

    Args:
        column: of images: binary, or a struct with `bytes`, as Hugging Face writes them.
        id_column: what an image is called; "": the number of its row.
        group_column: rows of one value have one split; "": each row by its id.

    Raises:
        UsageError: no Parquet file, a damaged one, or one without such columns.
    """
    index = _Index()
    with storage.open_input(uri) as file, _as_parquet(uri):
        parquet = pq.ParquetFile(file)
        leaf, labels = _leaf(parquet, uri, column), [name for name in (id_column, group_column) if name]
        if missing := set(labels) - set(parquet.schema_arrow.names):
            raise UsageError(f"{uri}: no column {sorted(missing)[0]!r}: it has {', '.join(parquet.schema_arrow.names)}")
        require_plain(uri, (parquet.schema_arrow.field(name) for name in labels))
        number = 0
        for group in range(parquet.num_row_groups):
            for row, values in enumerate(_rows(parquet, group, labels)):
                name = str(values[id_column]) if id_column else f"{number:08d}"
                split = split_of(str(values[group_column])) if group_column else ""
                yield index.member(name, f"{group}:{row}:{leaf}", 0, split)
                number += 1


def _rows(parquet: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
    """The rows of a row group, little by little."""
    if not columns:
        yield from ({} for _ in range(parquet.metadata.row_group(group).num_rows))
        return
    for batch in parquet.iter_batches(row_groups=[group], columns=columns, use_threads=False):
        yield from batch.to_pylist()


def _leaf(parquet: pq.ParquetFile, uri: str, column: str) -> str:
    """The path of the column that holds the bytes."""
    schema = parquet.schema_arrow
    field = schema.field(column) if column in schema.names else None
    for leaf, kind in ((column, field and field.type), (f"{column}.bytes", field and _bytes_of(field.type))):
        if kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return leaf
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise UsageError(f"{uri}: no column {column!r} of images (binary, or a struct with `bytes`): it has {columns}")


def _bytes_of(kind: pa.DataType) -> pa.DataType | None:
    index = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1  # pyrefly: ignore
    return kind.field(index).type if index >= 0 else None  # pyrefly: ignore


@contextmanager
def _as_parquet(uri: str) -> Iterator[None]:
    """Turn what pyarrow says of a damaged file into one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if type(error) is OSError and error.errno is not None:  # the store's
            raise
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UsageError(f"{uri}: no Parquet file, or a damaged one ({reason}): copy it again") from error


class _Parquet:
    """Members by "row group:row:path of the column"; rows that follow one another are read in one pass."""

    _ROWS = 32

    def __init__(self, file: BinaryIO, uri: str):
        self._uri = uri
        with _as_parquet(uri):
            self._file = pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20)
        self._place: tuple[str, str] | None = None

    def fetch(self, member: str) -> bytes:
        group, row, leaf = member.split(":", 2)
        if self._place != (group, leaf) or int(row) < self._first:
            self._start(group, leaf)
        with _as_parquet(self._uri):
            while int(row) >= self._first + len(self._values):
                self._first += len(self._values)
                self._values = next(self._batches).column(0)
        value = self._values[int(row) - self._first]
        if leaf.endswith(".bytes") and pa.types.is_struct(value.type):
            value = value["bytes"] if value.is_valid else value
        if not value.is_valid:
            raise BadImage("no bytes: the row has none, or only the path of a file elsewhere")
        if value.as_buffer().size > MAX_BYTES:
            raise BadImage(f"too large: a value of {value.as_buffer().size / 2**20:.0f} MiB")
        return value.as_py()

    def _start(self, group: str, leaf: str) -> None:
        schema = self._file.schema_arrow
        require_plain(self._uri, (field for field in schema if field.name in (leaf, leaf.removesuffix(".bytes"))))
        self._place, self._first, self._values = (group, leaf), 0, pa.array([])
        self._batches = self._file.iter_batches(self._ROWS, row_groups=[int(group)], columns=[leaf], use_threads=False)
