"""Compiled loops over Parquet pages: levels of lists, byte planes, byte strings.

They release the GIL and check every access: what does not fit gives -1 or False.
"""
# Numba has no types for its decorator or its type objects.
# pyright: basic

from typing import Any

import numba as nb
import numpy as np
from numba import types

from storage.schema import Array

_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


@nb.njit(types.int64(_BYTES, types.int64, types.int64[::1]), nogil=True, cache=True)
def zeros_among_levels(data: Array, levels: int, found: Array) -> Any:
    """Positions of the zeros among levels of one bit, in Parquet's RLE / bit-packing hybrid.

    Args:
        data: the encoded levels.
        levels: how many there are; padding behind the last one is ignored.
        found: out.

    Returns:
        How many zeros were found; -1 if they do not fit into `found`, or the data is no such code.
    """
    at = 0
    level = 0
    count = 0
    while level < levels:
        header = np.int64(0)
        shift = 0
        while True:
            if at >= len(data) or shift > 56:
                return -1
            byte = np.int64(data[at])
            at += 1
            header |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if header >> 1 == 0:
            return -1
        if header & 1:  # groups of eight levels, lowest bit first
            for _ in range(header >> 1):
                if level >= levels:
                    break
                if at >= len(data):
                    return -1
                byte = np.int64(data[at])
                at += 1
                if byte == 255:
                    level += 8
                    continue
                for bit in range(min(8, levels - level)):
                    if not (byte >> bit) & 1:
                        if count >= len(found):
                            return -1
                        found[count] = level + bit
                        count += 1
                level += 8
        else:  # one level many times
            run = min(header >> 1, levels - level)
            if at >= len(data) or data[at] > 1:
                return -1
            if data[at] == 0:
                if count + run > len(found):
                    return -1
                for k in range(run):
                    found[count + k] = level + k
                count += run
            at += 1
            level += run
    return count


@nb.njit(types.int64(_BYTES, types.int64), nogil=True, cache=True)
def _behind_levels(data: Array, at: int) -> Any:
    """Offset behind the levels at `at`, which begin with their length; -1 if there are none."""
    if at + 4 > len(data):
        return -1
    size = np.int64(0)
    for byte in range(4):
        size |= np.int64(data[at + byte]) << (8 * byte)
    return at + 4 + size if at + 4 + size <= len(data) else -1


@nb.njit(
    types.boolean(
        _BYTES,
        types.int64,
        types.int64[::1],
        types.int64[::1],
        types.int64[::1],
    ),
    nogil=True,
    cache=True,
)
def list_starts(data: Array, levels: int, start_R: Array, empty_R: Array, found: Array) -> Any:
    """Where the lists of a page start among its values.

    Args:
        data: repetition levels, definition levels, values.
        levels: number of levels of either sort.
        start_R: out; a list starts where the repetition level is 0.
        empty_R: room for the levels at which a list is empty: the definition level is 0 there, and
            there is no value.
        found: [3] out: lists, empty ones among them, and the offset of the first value.

    Returns:
        Whether the levels are well-formed.
    """
    middle = _behind_levels(data, 0)
    end = _behind_levels(data, middle) if middle >= 0 else -1
    if end < 0:
        return False
    lists = zeros_among_levels(data[4:middle], levels, start_R)
    empty = zeros_among_levels(data[middle + 4 : end], levels, empty_R)
    if lists < 0 or empty < 0:
        return False
    skipped = 0
    for row in range(lists):
        while skipped < empty and empty_R[skipped] < start_R[row]:
            skipped += 1
        start_R[row] -= skipped
    found[0], found[1], found[2] = lists, empty, end
    return True


@nb.njit(types.void(_BYTES, types.uint32[::1]), nogil=True, cache=True)
def join_bytes(planes: Array, out: Array) -> None:
    """Undo BYTE_STREAM_SPLIT: `planes` holds byte 0 of all values, then byte 1, 2 and 3."""
    count = len(out)
    for i in range(count):
        out[i] = (
            np.uint32(planes[i])
            | np.uint32(planes[count + i]) << np.uint32(8)
            | np.uint32(planes[2 * count + i]) << np.uint32(16)
            | np.uint32(planes[3 * count + i]) << np.uint32(24)
        )


@nb.njit(types.int64(_BYTES, types.int64[::1], types.uint8[::1]), nogil=True, cache=True)
def byte_strings(data: Array, lengths: Array, out: Array) -> Any:
    """Byte strings that follow their lengths of four bytes, joined.

    Args:
        data: lengths and strings.
        lengths: out: one for each string there is.
        out: the strings.

    Returns:
        Bytes written; -1 if the strings do not take up all of `data`, or do not fit into `out`.
    """
    at = 0
    size = 0
    for index in range(len(lengths)):
        if at + 4 > len(data):
            return -1
        length = np.int64(data[at]) | np.int64(data[at + 1]) << 8
        length |= np.int64(data[at + 2]) << 16 | np.int64(data[at + 3]) << 24
        at += 4
        if at + length > len(data) or size + length > len(out):
            return -1
        for k in range(length):
            out[size + k] = data[at + k]
        lengths[index] = length
        at += length
        size += length
    return size if at == len(data) else -1
