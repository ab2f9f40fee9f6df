"""Rows in portions: lists of so many, and Parquet files, written whole or little by little; what is read of others'."""

import hashlib
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from facelab import storage
from facelab.errors import UsageError

T = TypeVar("T")


def chunks(values: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` values each, the last perhaps of fewer."""
    left = iter(values)
    while chunk := list(islice(left, size)):
        yield chunk


def write_table(uri: str, rows: list[dict[str, Any]], schema: pa.Schema) -> tuple[int, str]:
    """Rows as one Parquet file, atomically; returns how many bytes it has, and their SHA-256."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), buffer, compression="zstd")
    data = buffer.getvalue()
    storage.write_bytes(uri, data)
    return len(data), hashlib.sha256(data).hexdigest()


def require_plain(uri: str, fields: Iterable[pa.Field]) -> None:
    """Refuse columns of types that are not Arrow's own, before a value of them is looked at: where Ray Data is loaded,
    its `ray.data.arrow_pickled_object` unpickles, and so runs, whatever a file holds.

    Raises:
        UsageError: there is such a column.
    """
    for field in fields:
        if _is_extended(field.type):
            raise UsageError(
                f"{uri}: column {field.name!r} is of type {field.type}, which may run code when it is read: write the "
                "file with plain columns"
            )


def _is_extended(kind: pa.DataType) -> bool:
    """Whether an extension type is somewhere in a type."""
    if pa.types.is_dictionary(kind):
        return _is_extended(kind.value_type)  # pyrefly: ignore
    inner = (kind.field(i).type for i in range(kind.num_fields))  # pyrefly: ignore
    return isinstance(kind, pa.BaseExtensionType) or any(map(_is_extended, inner))


class LongTable:
    """A local Parquet file of any number of rows, in memory that does not grow with it. To be closed: `with`."""

    _ROWS_PER_GROUP = 65_536  # each group costs some KB until the end

    def __init__(self, file: Path, schema: pa.Schema):
        self.schema, self.rows = schema, 0
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._waiting: list[pa.Table] = []

    def add(self, columns: dict[str, Any]) -> None:
        """Some rows, as column -> values."""
        self._waiting.append(pa.table(columns, schema=self.schema))
        self.rows += len(self._waiting[-1])
        if sum(map(len, self._waiting)) >= self._ROWS_PER_GROUP:
            self._write()

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
        self._waiting = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        self._writer.close()
