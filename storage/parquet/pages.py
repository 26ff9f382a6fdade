"""Column chunks as `storage.parquet.reader.Writer` lays them out, decoded without Arrow.

A chunk is a run of Parquet data pages, version 1: a Thrift header, then one zstd frame that holds
repetition levels, definition levels and values. A general reader walks over the levels value by
value. Ours are known beforehand (everything required, at most one level of lists), so it is enough
to find the zeros among them: a list starts where the repetition level is 0, and it is empty where
the definition level is. That halves the time of reading a part.

Whatever is not exactly of this form raises `Unusual`, damage included; the caller then lets Arrow
read it, or find out what is wrong.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.files.source import PartBytes
from storage.parquet.kernels import byte_strings, join_bytes, list_starts
from storage.parquet.thrift import columns as columns_of
from storage.parquet.thrift import fields, page_header, structs
from storage.rows import Offsets, offsets_of
from storage.schema import COLUMNS, Array, Column

Decompress = Callable[[Array, int], memoryview]

_DATA_PAGE = 0
_PLAIN, _RLE, _BYTE_STREAM_SPLIT = 0, 3, 9
_LARGEST_PAGE = 1 << 28
_MAGIC = b"PAR1"
_SMALLEST_GROUP = 8  # bytes in the footer; far below what is possible


class Unusual(ValueError):
    """Not laid out as this package's writer does, or damaged."""


@dataclass(frozen=True)
class Chunk:
    """One column of one row group, as described in the footer."""

    name: str
    data: Array
    """All its pages, as bytes."""
    rows: int
    levels: int
    """Levels in all pages: values plus empty lists."""


class Footer:
    """Where the columns lie, from the metadata at the end of a file.

    Raises:
        Unusual: as above.
    """

    def __init__(self, source: PartBytes) -> None:
        self._size = source.size
        tail = source.read_at(max(self._size - 8, 0), 8)
        length = int.from_bytes(tail[:4], "little")
        start = self._size - 8 - length
        if len(tail) < 8 or tail[4:] != _MAGIC or start < len(_MAGIC):
            raise Unusual("footer")
        self._data = np.frombuffer(source.read_at(start, length), np.uint8)
        top = np.full(5, -1, np.int64)
        offsets = np.empty(length // _SMALLEST_GROUP, np.int64)
        count = -1 if fields(self._data, 0, top) < 0 else structs(self._data, int(top[4]), offsets)
        if count < 0:
            raise Unusual("row groups")
        self._groups = offsets[:count].copy()

    def columns(self, group: int, count: int) -> NDArray[np.int64]:
        """Number of levels, compressed bytes and first byte of each column of a row group: [C, 3].

        Raises:
            Unusual: as above, or there are not `count` columns.
        """
        found = np.full(4, -1, np.int64)
        offsets = np.empty(count, np.int64)
        fields(self._data, int(self._groups[group]), found)
        if structs(self._data, int(found[1]), offsets) != count:
            raise Unusual("columns")
        described = np.empty((count, 3), np.int64)
        if not columns_of(self._data, offsets, described) or described.min() < 0:
            raise Unusual("columns")
        if described[:, 1:].max() > self._size:  # so that no sum of them can overflow
            raise Unusual("column")
        return described

    def chunks(self, source: PartBytes, group: int, names: Sequence[str]) -> Iterator[Chunk]:
        """The columns of a row group, which lie side by side and are read in one go.

        Raises:
            Unusual: as `columns`, or they are far apart.
        """
        described = self.columns(group, len(names))
        rows = np.full(4, -1, np.int64)
        fields(self._data, int(self._groups[group]), rows)
        start, stop = int(described[:, 2].min()), int((described[:, 2] + described[:, 1]).max())
        if stop > self._size or stop - start > 2 * int(described[:, 1].sum()):
            raise Unusual("columns far apart")
        data = np.frombuffer(source.read_at(start, stop - start), np.uint8)
        for name, (levels, size, at) in zip(names, described.tolist(), strict=True):
            yield Chunk(name, data[at - start : at - start + size], int(rows[3]), levels)


def read_chunk(chunk: Chunk, decompress: Decompress) -> tuple[Array, Offsets | None]:
    """Values, and [N+1] offsets of the lists (None for a column of level `row`).

    Raises:
        Unusual: as above.
    """
    column = COLUMNS[chunk.name]
    listed = column.level != "row"
    starts: list[Array] = []
    values: list[Array] = []
    count = rows = 0
    for levels, encoding, flat in _pages(chunk, decompress):
        there = levels
        if listed:
            most = chunk.rows - rows
            start_R, empty_R = np.empty(most, np.int64), np.empty(most, np.int64)
            found = np.empty(3, np.int64)
            if not list_starts(flat, levels, start_R, empty_R, found):
                raise Unusual("levels")
            lists, empty, behind = found.tolist()
            starts.append(start_R[:lists] + count)
            rows += lists
            flat, there = flat[behind:], levels - empty
        values.append(_values(flat, there, column, encoding))
        count += there
    if (rows if listed else count) != chunk.rows:
        raise Unusual("number of rows")
    none = np.zeros(0, column.dtype)
    joined = values[0] if len(values) == 1 else np.concatenate([none, *values])
    return joined, np.concatenate([*starts, [count]], dtype=np.int64) if listed else None


def read_blob(chunk: Chunk, decompress: Decompress) -> tuple[NDArray[np.uint8], Offsets]:
    """All bytes of a column of byte strings, and [N+1] where each of them starts.

    Raises:
        Unusual: as above.
    """
    pieces: list[Array] = [np.zeros(0, np.uint8)]
    lengths: list[Array] = [np.zeros(0, np.int64)]
    for levels, encoding, flat in _pages(chunk, decompress):
        length_R = np.empty(min(levels, chunk.rows), np.int64)
        out = np.empty(max(0, len(flat) - 4 * levels), np.uint8)
        if encoding != _PLAIN or byte_strings(flat, length_R, out) != len(out):
            raise Unusual("byte strings")
        pieces.append(out)
        lengths.append(length_R)
    length_N = np.concatenate(lengths)
    if len(length_N) != chunk.rows:
        raise Unusual("number of rows")
    return pieces[1] if len(pieces) == 2 else np.concatenate(pieces), offsets_of(length_N)


def _pages(chunk: Chunk, decompress: Decompress) -> Iterator[tuple[int, int, Array]]:
    """Number of levels, encoding of the values, and content of every page."""
    at = total = 0
    found = np.empty(9, np.int64)
    while at < len(chunk.data):
        if not page_header(chunk.data, at, found):
            raise Unusual("page header")
        kind, uncompressed, size, crc, levels, encoding, *of_levels, at = found.tolist()
        if kind != _DATA_PAGE or of_levels != [_RLE, _RLE]:
            raise Unusual("page header")
        if not (0 <= uncompressed <= _LARGEST_PAGE and size >= 0 and levels >= 0):
            raise Unusual("page header")
        page = chunk.data[at : at + size]
        at += size
        if len(page) != size or zlib.crc32(page.data) != crc & 0xFFFFFFFF:
            raise Unusual("page checksum")
        total += levels
        yield levels, encoding, np.frombuffer(decompress(page, uncompressed), np.uint8)
    if total != chunk.levels:
        raise Unusual("number of values")


def _values(flat: Array, count: int, column: Column, encoding: int) -> Array:
    """The values of a page in the type of the column."""
    width = 4 if column.dtype.kind in "iu" and column.dtype.itemsize < 4 else column.dtype.itemsize
    if len(flat) != count * width:
        raise Unusual("bytes")
    if encoding == _PLAIN:
        stored = np.dtype(f"i{width}") if column.dtype.kind in "iu" else column.dtype
        return np.require(flat.view(stored), column.dtype, "A")
    if encoding != _BYTE_STREAM_SPLIT or width != 4:
        raise Unusual("encoding")
    if column.dtype.itemsize == 1:
        return flat[:count].view(column.dtype).copy()  # the low byte of each; the others are zero
    whole = np.empty(count, np.uint32)
    join_bytes(flat, whole)
    return whole.view(column.dtype)
