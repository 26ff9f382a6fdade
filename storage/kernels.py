"""Compiled loops over stored records: to CSR arrays, and the search for ids stored twice.

Signatures are explicit so that read-only views and fresh arrays share one compiled version, and
compilation happens once, at import, into a cache on disk. The loops release the GIL and check no
bounds: callers have made sure that lengths agree.

Shape letters: T positions, C draws per position, S stored entries (of all draws), E entries of one
draw, H head entries, K entries outside the head (of all draws).
"""
# Numba has no types for its decorator or its type objects.
# pyright: basic

from typing import Any

import numba as nb
import numpy as np
from numba import types

from storage.schema import Array


def _input(element: types.Type) -> types.Array:
    return types.Array(element, 1, "C", readonly=True)


_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
with np.errstate(over="ignore", invalid="ignore"):
    HALF = _HALVES.astype(np.float32)
    """float32 value of a float16, by its bits."""
    HALF_EXP = np.exp(_HALVES.astype(np.float64))
    """exp of a float16, by its bits: a look-up is ten times faster than the function."""


@nb.njit(
    types.void(
        types.int64,
        types.int64,
        types.int64,
        types.float64,
        _input(types.uint8),
        _input(types.uint8),
        _input(types.float32),
        _input(types.uint32),
        _input(types.uint8),
        _input(types.uint16),
        _input(types.uint16),
        _input(types.float32),
        _input(types.float64),
        types.int64[::1],
        types.int64[::1],
        types.float32[::1],
        types.float32[::1],
        types.boolean[::1],
    ),
    nogil=True,
    cache=True,
)
def decode_records(
    draws: int,
    copies: int,
    draw: int,
    tail_floor: float,
    nu_TC: Array,
    nh_T: Array,
    rest_T: Array,
    stored_ids_S: Array,
    cnt_S: Array,
    hlp_H: Array,
    tlp_K: Array,
    half: Array,
    half_exp: Array,
    entry_off: Array,
    ids_E: Array,
    weight_E: Array,
    logp_E: Array,
    exact_E: Array,
) -> None:
    """Fill the last five arrays from one draw.

    Args:
        draws: N of a `counts` record; 0 for other kinds.
        copies, draw: C, and which of them to decode.
        tail_floor: what a tail stands for where less than this is outside the head.
        nu_TC, nh_T: entries of a draw, head included, and head entries.
        rest_T: teacher mass outside the head.
        stored_ids_S, cnt_S: ids, and counts (empty unless `draws`).
        hlp_H, tlp_K: bits of the float16 log-probabilities; `tlp_K` may be empty: none are kept.
        half, half_exp: `HALF` and `HALF_EXP`.
        entry_off: [T+1] out; its first entry is 0 already.
        ids_E, weight_E, logp_E, exact_E: out. Weights of a position sum to 1 up to float32.
    """
    weight_of = (np.arange(256) / max(draws, 1)).astype(np.float32)
    kept = len(tlp_K) > 0
    if copies == 1:  # every stored entry is wanted: long loops, which become vector code
        for k in range(len(stored_ids_S)):
            ids_E[k] = stored_ids_S[k]
        exact_E[:] = False
        if not kept:
            logp_E[:] = np.nan
    if copies == 1 and draws > 0:
        for k in range(len(cnt_S)):
            weight_E[k] = weight_of[cnt_S[k]]
        for k in range(len(tlp_K)):
            logp_E[k] = half[tlp_K[k]]
        for position in range(len(nh_T)):
            entry_off[position + 1] = entry_off[position] + nu_TC[position]
        return
    entry = 0
    source = 0
    head = 0
    drawn = 0
    for position in range(len(nh_T)):
        known = np.int64(nh_T[position])
        skipped = 0
        tail = 0
        outside_head = 0
        for copy in range(copies):
            count = np.int64(nu_TC[position * copies + copy]) - known
            if copy < draw:
                skipped += count
            elif copy == draw:
                tail = count
            outside_head += count
        if known == 0:
            outside = 1.0  # nothing is exact: the sampled ids stand for everything
        elif tail == 0:
            outside = 0.0  # nothing was drawn outside the head: the head stands for everything
        else:
            outside = max(np.float64(rest_T[position]), tail_floor)
        mass = 0.0
        for k in range(known):
            mass += half_exp[hlp_H[head + k]]
        scale = (1.0 - outside) / mass if mass > 0.0 else 0.0
        for k in range(known):
            bits = hlp_H[head + k]
            logp_E[entry + k] = half[bits]
            weight_E[entry + k] = scale * half_exp[bits]
            exact_E[entry + k] = True
        if copies > 1:
            for k in range(known):
                ids_E[entry + k] = stored_ids_S[source + k]
        entry += known
        first = source + known + skipped
        if draws > 0:
            for k in range(tail):
                weight_E[entry + k] = weight_of[cnt_S[first + k]]
        else:
            share = np.float32(outside / max(tail, 1))
            for k in range(tail):
                weight_E[entry + k] = share
        if kept:
            for k in range(tail):
                logp_E[entry + k] = half[tlp_K[drawn + skipped + k]]
        if copies > 1:
            for k in range(tail):
                ids_E[entry + k] = stored_ids_S[first + k]
                exact_E[entry + k] = False
                if not kept:
                    logp_E[entry + k] = np.nan
        entry += tail
        source += known + outside_head
        head += known
        drawn += outside_head
        entry_off[position + 1] = entry


@nb.njit(
    types.int64(types.int64, _input(types.uint8), _input(types.uint8), _input(types.uint32)),
    nogil=True,
    cache=True,
)
def first_repeated(copies: int, nu_TC: Array, nh_T: Array, ids_S: Array) -> Any:
    """Index of the first id that its draw already has, -1 if there is none.

    A small hash table with stamps: filled anew for each draw without being cleared.

    Args:
        copies, nu_TC, nh_T, ids_S: as for `decode_records`.
    """
    size = 1024  # a draw has at most 255 entries
    id_B = np.zeros(size, np.uint32)
    stamp_B = np.zeros(size, np.int64)
    stamp = 0
    source = 0
    for position in range(len(nh_T)):
        known = np.int64(nh_T[position])
        first = source + known
        for copy in range(copies):
            stamp += 1
            count = np.int64(nu_TC[position * copies + copy])
            for k in range(count):
                index = source + k if k < known else first + k - known
                slot = np.int64((ids_S[index] * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(54))
                while stamp_B[slot] == stamp:
                    if id_B[slot] == ids_S[index]:
                        return index
                    slot = (slot + 1) % size
                id_B[slot] = ids_S[index]
                stamp_B[slot] = stamp
            first += count - known
        source = first
    return -1


@nb.njit(types.int64(_input(types.uint8), types.int64, types.int64[::1]), nogil=True, cache=True)
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


@nb.njit(types.int64(_input(types.uint8), types.int64), nogil=True, cache=True)
def _behind_levels(data: Array, at: int) -> Any:
    """Where a run of levels ends that begins at a place, with its length; -1 if there is none."""
    if at + 4 > len(data):
        return -1
    size = np.int64(0)
    for byte in range(4):
        size |= np.int64(data[at + byte]) << (8 * byte)
    return at + 4 + size if at + 4 + size <= len(data) else -1


@nb.njit(
    types.boolean(
        _input(types.uint8),
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
        found: [3] out: lists, empty ones among them, and the place of the first value.

    Returns:
        Whether it could be followed.
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


@nb.njit(types.void(_input(types.uint8), types.uint32[::1]), nogil=True, cache=True)
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


@nb.njit(
    types.int64(_input(types.uint8), types.int64[::1], types.uint8[::1]), nogil=True, cache=True
)
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
