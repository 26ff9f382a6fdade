"""Compiled loops over stored records: to CSR arrays, and the search for ids stored twice.

Signatures are explicit, so one version is compiled, once, at import, into a cache on disk. The
loops release the GIL and check no bounds: callers have made sure that lengths agree.

Shape letters: T positions, C draws per position, S stored entries (of all draws), E entries of one
draw, H head entries, K entries outside the head (of all draws).
"""
# Numba has no types for its decorator or its type objects.
# pyright: basic

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numba import types

from storage.batch import Entries
from storage.schema import Array


def _input(element: types.Type) -> types.Array:
    return types.Array(element, 1, "C", readonly=True)


_HALVES = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
with np.errstate(over="ignore", invalid="ignore"):
    HALF = _HALVES.astype(np.float32)
    """float32 value of a float16, by its bits."""
    HALF_EXP = np.exp(_HALVES.astype(np.float64))
    """exp of a float16, by its bits: a look-up is ten times faster than the function."""


class StoredRecords(NamedTuple):
    """Record columns of some sequences; arrays must be read-only, as numba converts no tuples."""

    draws: int
    """N of a `counts` record; 0 for other kinds."""
    copies: int
    """C"""
    tail_floor: float
    """What a tail stands for where less than this is outside the head."""
    nu_TC: Array
    """uint8: entries of a draw, head included."""
    nh_T: Array
    """uint8: head entries."""
    rest_T: Array
    """float32: teacher mass outside the head."""
    ids_S: Array
    """uint32"""
    cnt_S: Array
    """uint8; empty unless `draws`."""
    hlp_H: Array
    """uint16: bits of float16 log-probabilities."""
    tlp_K: Array
    """uint16, likewise; empty where none are kept."""


_STORED = types.NamedTuple(
    (
        types.int64,
        types.int64,
        types.float64,
        *map(_input, (types.uint8, types.uint8, types.float32, types.uint32, types.uint8)),
        *map(_input, (types.uint16, types.uint16)),
    ),
    StoredRecords,
)
_ENTRIES = types.NamedTuple(
    (
        types.int64[::1],
        types.int64[::1],
        types.float32[::1],
        types.float32[::1],
        types.boolean[::1],
    ),
    Entries,
)


@nb.njit(
    types.void(_STORED, types.int64, _input(types.float32), _input(types.float64), _ENTRIES),
    nogil=True,
    cache=True,
)
def decode_records(
    stored: StoredRecords, draw: int, half: Array, half_exp: Array, out: Entries
) -> None:
    """Fill `out` from one draw.

    Args:
        stored: Of T positions.
        draw: Which of the C draws of each position.
        half, half_exp: `HALF` and `HALF_EXP`; numba would compile globals of this size in.
        out: `Entries.empty` of the right sizes.
    """
    draws, copies, tail_floor = stored.draws, stored.copies, stored.tail_floor
    nu_TC, nh_T, rest_T = stored.nu_TC, stored.nh_T, stored.rest_T
    stored_ids_S, cnt_S, hlp_H, tlp_K = stored.ids_S, stored.cnt_S, stored.hlp_H, stored.tlp_K
    entry_off, ids_E, weight_E, logp_E, exact_E = out
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
