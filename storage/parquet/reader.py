"""The only module that knows pyarrow: `Rows` to Arrow and back, and how a part is laid out.

Reading is zero-copy: the arrays of a `Rows` made here are views of Arrow's buffers.

pyarrow is never asked where a column lies: on a damaged footer that ends the process
(`storage.parquet.thrift` looks it up instead).
"""
# pyarrow ships neither types nor stubs, so strict checking would say "unknown" about every line.
# pyright: basic

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from storage.errors import ConfigError, DataError, RetryError
from storage.files.place import Place
from storage.files.source import open_bytes
from storage.files.write import HashingFile
from storage.rows import Offsets, Rows
from storage.schema import BLOBS, COLUMNS, EXTRA_BITS, Array, Blobs, Column

if TYPE_CHECKING:
    from storage.parquet.pages import Footer

DAMAGE: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    pa.ArrowException,
)
"""What pyarrow raises on damaged input, depending on where the damage is."""
UNREACHABLE = (RetryError, ConfigError)
"""What an object store raises: nothing is known of the input then, so let these pass first."""
_OF_THREAD = threading.local()


class Writer:
    """Writes row groups to a sink; every `write` is one row group."""

    def __init__(self, sink: HashingFile, names: Sequence[str], blobs: Sequence[str]) -> None:
        statistics = [name for name in names if COLUMNS[name].level == "row"]
        self._parquet = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            arrow_schema(names, blobs),
            compression="zstd",
            compression_level=1,
            use_dictionary=False,
            column_encoding=dict.fromkeys(blobs, "PLAIN")
            | {
                name if COLUMNS[name].level == "row" else f"{name}.list.element": (
                    "BYTE_STREAM_SPLIT" if COLUMNS[name].split_bytes else "PLAIN"
                )
                for name in names
            },
            write_statistics=cast(Any, statistics),  # annotated bool, documented to take names
            write_page_checksum=True,
            store_schema=False,
        )

    def write(self, rows: Rows, blobs: Blobs) -> None:
        """Append one row group."""
        self._parquet.write_batch(to_arrow(rows, blobs), row_group_size=len(rows))

    def close(self, metadata: dict[bytes, bytes]) -> None:
        """Write the footer with these key-value pairs; does nothing if closed."""
        if self._parquet.is_open:
            self._parquet.add_key_value_metadata(metadata)
            self._parquet.close()


class Reader:
    """An open Parquet file; page checksums are verified. Anything in `DAMAGE` may be raised."""

    def __init__(self, path: Place, size: int | None = None) -> None:
        self.source = open_bytes(path, size)
        try:
            self._parquet = pq.ParquetFile(
                self.source.arrow,
                page_checksum_verification=True,
                pre_buffer=not isinstance(path, Path),  # columns side by side: one request
            )
        except BaseException:
            self.source.close()
            raise
        self._footer: Footer | None = None
        self.metadata: dict[bytes, bytes] = dict(self._parquet.metadata.metadata or {})
        groups = map(self._parquet.metadata.row_group, range(self._parquet.metadata.num_row_groups))
        self.rows = [int(group.num_rows) for group in groups]
        """Rows of every row group, as the Parquet metadata says."""
        schema = self._parquet.schema_arrow
        self.columns: list[str] = list(schema.names)
        self._names = [name for name in schema.names if name in COLUMNS]
        self._blobs = [name for name in schema.names if name in BLOBS]
        long = "ids" in self._names or EXTRA_BITS in self._blobs
        self._direct = long and schema.equals(arrow_schema(self._names, self._blobs))
        """Whether `storage.parquet.pages` is tried first: it pays where lists are long."""

    def read(self, group: int, columns: Sequence[str] | None) -> tuple[Rows, Blobs]:
        """One row group; `columns` None reads all."""
        if self._direct and columns is None:
            try:
                return self._read_pages(group)
            except UNREACHABLE:
                raise
            except DAMAGE:
                pass  # Arrow can read it, or tell what is wrong with it
        names = None if columns is None else list(columns)
        return from_arrow(self._parquet.read_row_group(group, columns=names, use_threads=False))

    def _read_pages(self, group: int) -> tuple[Rows, Blobs]:
        # Numba: only readers of records pay for its import.
        from storage.parquet.pages import Footer, read_blob, read_chunk

        self._footer = self._footer or Footer(self.source)
        columns: dict[str, Array] = {}
        offsets: dict[str, Offsets] = {}
        blobs: Blobs = {}
        for chunk in self._footer.chunks(self.source, group, [*self._names, *self._blobs]):
            if chunk.name in BLOBS:
                blobs[chunk.name] = read_blob(chunk, decompress)
                continue
            columns[chunk.name], own = read_chunk(chunk, decompress)
            if own is not None:
                level = COLUMNS[chunk.name].level
                _same_lengths(chunk.name, offsets.setdefault(level, own), own)
        _check_draws(offsets)
        return Rows(columns, offsets), blobs

    def close(self) -> None:
        """Close the file; rows read from it stay valid."""
        self._parquet.close()
        self.source.close()


def decompress(frame: Array, size: int) -> memoryview:
    """The `size` bytes of one zstd frame.

    Frames are small: most of the time would go into setting up a decompressor for each of them, as
    Arrow's codec does, so every thread keeps one.

    Raises:
        ValueError: the frame is damaged, or holds another number of bytes.
    """
    if not hasattr(_OF_THREAD, "zstd"):
        _OF_THREAD.zstd = zstandard.ZstdDecompressor()
    try:
        data = frame.data
        if zstandard.frame_content_size(data) != size:  # read first: it decides what is allocated
            raise ValueError(f"a frame of other than {size} bytes")
        return memoryview(_OF_THREAD.zstd.decompress(data))
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def column_bytes(path: Place) -> dict[str, int]:
    """Compressed bytes of every column of a file; anything in `DAMAGE` may be raised."""
    from storage.parquet.pages import Footer

    with closing(Reader(path)) as reader:
        footer, names = Footer(reader.source), reader.columns
        sizes = [footer.columns(group, len(names))[:, 1] for group in range(len(reader.rows))]
        return dict(zip(names, np.sum(sizes, axis=0).tolist(), strict=True)) if sizes else {}


def arrow_schema(names: Sequence[str], blobs: Sequence[str] = ()) -> pa.Schema:
    """Arrow schema of a part: everything required, one level of lists."""
    kinds = {name: _arrow_type(COLUMNS[name]) for name in names} | dict.fromkeys(blobs, pa.binary())
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


def _arrow_type(column: Column) -> pa.DataType:
    element = pa.from_numpy_dtype(column.dtype)
    if column.level == "row":
        return element
    return pa.list_(pa.field("element", element, nullable=False))


def to_arrow(rows: Rows, blobs: Blobs) -> pa.RecordBatch:
    """The rows as one Arrow batch; values are shared, not copied."""
    schema = arrow_schema(tuple(rows.columns), tuple(blobs))
    lists = {level: _from_numpy(value.astype(np.int32)) for level, value in rows.offsets.items()}
    arrays: list[Any] = []
    for name, values in rows.columns.items():
        level, flat = COLUMNS[name].level, _from_numpy(values)
        if level == "row":
            arrays.append(flat)
        else:
            kind = schema.field(name).type
            arrays.append(pa.ListArray.from_arrays(lists[level], flat, type=kind))
    for data, off in blobs.values():
        ends, flat = pa.py_buffer(off.astype(np.int32)), pa.py_buffer(data)
        arrays.append(pa.Array.from_buffers(pa.binary(), len(rows), [None, ends, flat]))
    return pa.record_batch(arrays, schema=schema)


def from_arrow(table: pa.Table) -> tuple[Rows, Blobs]:
    """Rows and blobs that view the buffers of `table`.

    Raises:
        DataError: an unknown column or type, list columns of one level whose lengths differ, or
            draws that are not the same number at every position.
    """
    columns: dict[str, Array] = {}
    offsets: dict[str, Offsets] = {}
    blobs: Blobs = {}
    for name, chunked in zip(table.column_names, table.columns, strict=True):
        one = chunked.num_chunks == 1
        array = chunked.chunk(0) if one else pa.concat_arrays(chunked.chunks)
        if name in BLOBS:
            if array.type != pa.binary():
                raise DataError(f"column {name!r} has type {array.type}, not {pa.binary()}")
            _, ends, data = array.buffers()
            off = np.frombuffer(ends, np.int32)[array.offset : array.offset + len(array) + 1]
            flat = np.frombuffer(data or b"", np.uint8)[off[0] : off[-1]]
            blobs[name] = flat, off.astype(np.int64) - int(off[0])
            continue
        if name not in COLUMNS:
            raise DataError(f"column {name!r} is not part of the format")
        column = COLUMNS[name]
        if array.type != _arrow_type(column):
            raise DataError(f"column {name!r} has type {array.type}, not {_arrow_type(column)}")
        if column.level == "row":
            columns[name] = _to_numpy(array, column.dtype)
            continue
        ends = _to_numpy(array.offsets, np.dtype(np.int32)).astype(np.int64)
        columns[name] = _to_numpy(array.values, column.dtype)[ends[0] : ends[-1]]
        own = ends - ends[0]
        _same_lengths(name, offsets.setdefault(column.level, own), own)
    _check_draws(offsets)
    return Rows(columns, offsets), blobs


def _from_numpy(values: Array) -> pa.Array:
    """The numbers as Arrow sees them, not copied.

    `pa.array` would do, and so would `to_numpy` for the way back; but both import pandas where it
    is installed, which takes a second.
    """
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, data])


def _to_numpy(array: pa.Array, dtype: np.dtype[Any]) -> Array:
    """The numbers of an array of that type, not copied and not to be written to.

    Raises:
        ValueError: some are missing, which no part has.
    """
    if array.null_count:
        raise ValueError(f"{array.null_count} values are missing")
    _, data = array.buffers()
    if not len(array):
        return np.empty(0, dtype)
    values = np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
    values.flags.writeable = False
    return values


def _same_lengths(name: str, known: Offsets, own: Offsets) -> None:
    if known.tobytes() != own.tobytes():  # both int64; faster than comparing numbers one by one
        raise DataError(f"column {name!r}: its lengths differ from others at {COLUMNS[name].level}")


def _check_draws(offsets: dict[str, Offsets]) -> None:
    """Offsets of level `draw` are not in the checksum: they follow from those of `position`."""
    if "draw" not in offsets or "position" not in offsets:
        return
    draw, position = offsets["draw"], offsets["position"]
    copies = int(draw[-1]) // max(int(position[-1]), 1)
    if not np.array_equal(draw, copies * position):
        raise DataError("column 'nu': not the same number of values at every position")
