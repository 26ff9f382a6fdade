"""Thrift's compact protocol, as much of it as finding columns and pages in a Parquet file takes.

pyarrow ends the process when asked where a column of a damaged footer lies, so these few loops look
it up instead. They never read outside their input: malformed data gives -1 or False.

Arguments: `data` is the file's metadata or a column chunk, `at` an offset in it.
"""
# Numba has no types for its decorator or its type objects.
# pyright: basic

from typing import Any

import numba as nb
import numpy as np
from numba import types

from storage.schema import Array

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)
_OFFSET = types.int64
_TRUE, _FALSE, _BYTE, _I16, _I64, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = (
    1, 2, 3, 4, 6, 7, 8, 9, 10, 12,
)  # fmt: skip
_DEEPEST = 16


@nb.njit(types.UniTuple(_OFFSET, 2)(_BYTES, _OFFSET), nogil=True, cache=True)
def _varint(data: Array, at: int) -> Any:
    """An unsigned number and the offset behind it."""
    value = 0
    for shift in range(0, 63, 7):
        if not 0 <= at < len(data):
            return 0, -1
        byte = np.int64(data[at])
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
    return 0, -1


@nb.njit(types.UniTuple(_OFFSET, 3)(_BYTES, _OFFSET), nogil=True, cache=True)
def items(data: Array, at: int) -> Any:
    """(count, type, offset of the first) of a list; offset -1 if it is malformed."""
    if not 0 <= at < len(data):
        return 0, 0, -1
    count, kind = np.int64(data[at] >> 4), np.int64(data[at] & 15)
    at += 1
    if count == 15:
        count, at = _varint(data, at)
    if count > len(data):
        return 0, 0, -1
    return count, kind, at


@nb.njit(types.UniTuple(_OFFSET, 3)(_BYTES, _OFFSET, _OFFSET), nogil=True, cache=True)
def _field(data: Array, at: int, number: int) -> Any:
    """(number, type, offset) of the field after field `number`; type 0 where the struct ends."""
    if not 0 <= at < len(data):
        return 0, 0, -1
    delta, kind = np.int64(data[at] >> 4), np.int64(data[at] & 15)
    if kind == 0:
        return 0, 0, at + 1
    if delta == 0:  # the writer's fields are never that far apart
        return 0, 0, -1
    return number + delta, kind, at + 1


@nb.njit(_OFFSET(_BYTES, _OFFSET, _OFFSET, _OFFSET), nogil=True, cache=True)
def _skip(data: Array, at: int, kind: int, depth: int) -> Any:
    """The offset behind a value of a type."""
    if at < 0 or depth > _DEEPEST:
        return -1
    if kind in (_TRUE, _FALSE):
        return at  # a field's type is its value
    if kind == _BYTE:
        return at + 1
    if _I16 <= kind <= _I64:
        return _varint(data, at)[1]
    if kind == _DOUBLE:
        return at + 8
    if kind == _BINARY:
        size, at = _varint(data, at)
        return at + size if at >= 0 and size <= len(data) else -1
    if kind in (_LIST, _SET):
        count, element, at = items(data, at)
        for _ in range(count):
            flag = element in (_TRUE, _FALSE)
            at = at + 1 if flag else _skip(data, at, element, depth + 1)
            if not 0 <= at <= len(data):
                return -1
        return at
    if kind == _STRUCT:
        number = 0
        while True:
            number, inner, at = _field(data, at, number)
            if inner == 0:
                return at
            at = _skip(data, at, inner, depth + 1)
    return -1


@nb.njit(_OFFSET(_BYTES, _OFFSET, types.int64[::1]), nogil=True, cache=True)
def fields(data: Array, at: int, found: Array) -> Any:
    """Read the struct at `at` into `found` and return the offset behind it.

    By field number, `found` gets the value of an integer and the offset of anything else; fields
    that are absent, or beyond its length, change nothing.
    """
    number = 0
    while True:
        number, kind, at = _field(data, at, number)
        if kind == 0:
            return at
        start = at
        at = _skip(data, at, kind, 0)
        if not 0 <= at <= len(data):
            return -1
        if number < len(found):
            if _I16 <= kind <= _I64:
                raw = _varint(data, start)[0]
                found[number] = (raw >> 1) ^ -(raw & 1)
            else:
                found[number] = start


@nb.njit(_OFFSET(_BYTES, _OFFSET, types.int64[::1]), nogil=True, cache=True)
def structs(data: Array, at: int, found: Array) -> Any:
    """Write the offsets of the structs of a list to `found` and return their number.

    -1 if it is no list of at most len(found) structs.
    """
    count, kind, at = items(data, at)
    if at < 0 or count > len(found) or (kind != _STRUCT and count > 0):
        return -1
    for index in range(count):
        found[index] = at
        at = _skip(data, at, _STRUCT, 0)
        if not 0 <= at <= len(data):
            return -1
    return count


@nb.njit(types.boolean(_BYTES, types.int64[::1], types.int64[:, ::1]), nogil=True, cache=True)
def columns(data: Array, offsets: Array, found: Array) -> Any:
    """Where column chunks lie, from the offsets of their descriptions; False if malformed.

    `found` gets [C, 3]: number of values, compressed bytes, and first byte; -1 if absent.
    """
    outer, inner = np.empty(4, np.int64), np.empty(10, np.int64)
    for index in range(len(offsets)):
        outer[:], inner[:] = -1, -1
        if fields(data, offsets[index], outer) < 0 or fields(data, outer[3], inner) < 0:
            return False
        found[index, 0], found[index, 1], found[index, 2] = inner[5], inner[7], inner[9]
    return True


@nb.njit(types.boolean(_BYTES, _OFFSET, types.int64[::1]), nogil=True, cache=True)
def page_header(data: Array, at: int, found: Array) -> Any:
    """The header of a data page, version 1; False if malformed.

    `found` gets [9]: kind, bytes of the page, bytes as stored, CRC, number of levels, encoding of
    the values, of the definition and of the repetition levels, and the offset behind the header;
    -1 if absent.
    """
    outer, inner = np.full(6, -1, np.int64), np.full(5, -1, np.int64)
    end = fields(data, at, outer)
    if end < 0 or fields(data, outer[5], inner) < 0:
        return False
    found[:4], found[4:8], found[8] = outer[1:5], inner[1:5], end
    return True
