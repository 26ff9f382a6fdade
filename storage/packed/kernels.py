"""Compiled loops of the packed layout: counts and sets of ids to byte streams, and back.

`storage/FORMAT.md` says what the streams hold. All loops release the GIL. Those that read streams
take them as damaged until proved otherwise: every access is checked, and -1 means that the streams
do not fit together. Those that write rely on what `storage.check` has made sure of.

Shape letters: N sequences, D draws (of all positions), E entries, R runs, W words of 32 bits,
V vocabulary, B buckets, S streams.
"""
# Numba has no types for its decorator or its type objects.
# pyright: basic

from typing import Any, NamedTuple

import numba as nb
import numpy as np
from numba import types

from storage.schema import Array


def _input(element: types.Type, dimensions: int = 1) -> types.Array:
    return types.Array(element, dimensions, "C", readonly=True)


_BYTES, _OFFSETS, _WORDS = _input(types.uint8), _input(types.int64), _input(types.uint32)
_STARTS = _input(types.int64, 2)


class Code(NamedTuple):
    """Tables that follow from the ranks of a set; read-only, as numba converts no tuples."""

    id_of_rank_V: Array
    """uint32"""
    rank_V: Array
    """uint32: of an id."""
    bucket_V: Array
    """uint8: bucket of each number below V."""
    base_B: Array
    """uint32: least number of a bucket."""
    extra_B: Array
    """uint8: extra bits of its numbers."""
    stream_LB: Array
    """uint8: stream of a bucket that is not the first of its run, by how many of the run are left
    and by the largest bucket before."""


_CODE = types.NamedTuple((_WORDS, _WORDS, _BYTES, _WORDS, _BYTES, _input(types.uint8, 2)), Code)


@nb.njit(nogil=True)
def _stream_of_count(possible: Any) -> Any:
    """Which stream a count is in, by the largest value it may have."""
    return 0 if possible < 4 else 1 if possible < 16 else 2


@nb.njit(
    types.int64(
        types.int64, _OFFSETS, _BYTES, _BYTES,
        types.uint8[:, ::1], types.int64[:, ::1], types.uint8[::1], types.int64[::1],
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def pack_counts(
    draws: int,
    draw_off: Array,
    nu_D: Array,
    cnt_E: Array,
    streams_SE: Array,
    ends_SN: Array,
    run_R: Array,
    run_off: Array,
) -> Any:
    """Counts to streams, and the runs of equal counts.

    Args:
        draws: N of the record.
        draw_off: [N+1] draws of each sequence.
        nu_D, cnt_E: the record columns; counts of a draw sum to `draws`.
        streams_SE, ends_SN: out: bytes of each stream, and where a sequence ends in it.
        run_R, run_off: out: lengths of the runs, and [N+1] those of each sequence.

    Returns:
        Index of the first entry whose count is above the one before; -1 if there is none.
    """
    at = np.zeros(len(ends_SN), np.int64)
    entry = 0
    runs = 0
    for row in range(len(draw_off) - 1):
        for draw in range(draw_off[row], draw_off[row + 1]):
            left = draws
            before = draws
            run = 0
            for k in range(nu_D[draw]):
                count = np.int64(cnt_E[entry])
                if k > 0 and count > before:
                    return entry
                if left > 1 and before > 1:
                    stream = _stream_of_count(min(left, before))
                    streams_SE[stream, at[stream]] = count
                    at[stream] += 1
                if k > 0 and count < before:
                    run_R[runs] = run
                    runs += 1
                    run = 0
                run += 1
                left -= count
                before = count
                entry += 1
            run_R[runs] = run
            runs += 1
        run_off[row + 1] = runs
        for stream in range(len(at)):
            ends_SN[stream, row] = at[stream]
    return -1


@nb.njit(
    types.int64(
        types.int64, _OFFSETS, _BYTES, _STARTS,
        types.uint8[::1], types.uint8[::1], types.uint8[::1], types.int64[::1],
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def unpack_counts(
    draws: int,
    draw_off: Array,
    data: Array,
    start_SN: Array,
    nu_D: Array,
    cnt_E: Array,
    run_R: Array,
    run_off: Array,
) -> Any:
    """The inverse of `pack_counts`.

    Args:
        draws, draw_off: as there.
        data, start_SN: all streams, one after the other, and where in them each sequence starts;
            [S, N+1].
        nu_D, cnt_E, run_R, run_off: out; `cnt_E` and `run_R` have room for all entries.

    Returns:
        Number of entries, or -1.
    """
    at = np.zeros(len(start_SN), np.int64)
    entry = 0
    runs = 0
    for row in range(len(draw_off) - 1):
        for stream in range(len(at)):
            at[stream] = start_SN[stream, row]
        for draw in range(draw_off[row], draw_off[row + 1]):
            left = draws
            before = draws
            first = entry
            run = 0
            while left > 1 and before > 1:
                stream = _stream_of_count(min(left, before))
                if at[stream] >= start_SN[stream, row + 1] or entry >= len(cnt_E):
                    return -1
                count = np.int64(data[at[stream]])
                at[stream] += 1
                if not 1 <= count <= min(left, before):
                    return -1
                if entry > first and count < before:
                    run_R[runs] = run
                    runs += 1
                    run = 0
                run += 1
                cnt_E[entry] = count
                left -= count
                before = count
                entry += 1
            if entry + left > len(cnt_E):
                return -1
            if left > 0 and entry > first and before > 1:
                run_R[runs] = run
                runs += 1
                run = 0
            for k in range(left):
                cnt_E[entry + k] = 1
            run += left
            entry += left
            run_R[runs] = run
            runs += 1
            nu_D[draw] = entry - first
        run_off[row + 1] = runs
        for stream in range(len(at)):
            if at[stream] != start_SN[stream, row + 1]:
                return -1
    return entry


@nb.njit(
    types.int64(types.int64, _OFFSETS, _BYTES, _BYTES, types.uint8[::1], types.int64[::1]),
    nogil=True,
    cache=True,
)
def head_and_tail_runs(
    copies: int, position_off: Array, nu_D: Array, nh_T: Array, run_R: Array, run_off: Array
) -> Any:
    """Runs of head_tail and top_k: each id of the head by itself, then the tail of each draw.

    Args:
        copies: draws per position.
        position_off: [N+1] positions of each sequence.
        nu_D, nh_T: the record columns.
        run_R, run_off: out, as in `pack_counts`; room for all entries and `copies` more.

    Returns:
        Number of entries, or -1 if a draw has fewer than the head, or there is too little room.
    """
    runs = 0
    entries = 0
    for row in range(len(position_off) - 1):
        for position in range(position_off[row], position_off[row + 1]):
            head = np.int64(nh_T[position])
            if runs + head + copies > len(run_R):
                return -1
            for _ in range(head):
                run_R[runs] = 1
                runs += 1
            entries += head
            for copy in range(copies):
                tail = np.int64(nu_D[position * copies + copy]) - head
                if tail < 0:
                    return -1
                if tail > 0:
                    run_R[runs] = tail
                    runs += 1
                    entries += tail
        run_off[row + 1] = runs
    return entries


@nb.njit(
    types.int64(
        _OFFSETS, _BYTES, _WORDS, _CODE,
        types.uint8[:, ::1], types.int64[:, ::1], types.uint32[::1], types.int64[::1],
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def pack_ids(
    run_off: Array,
    run_R: Array,
    ids_E: Array,
    code: Code,
    streams_SE: Array,
    ends_SN: Array,
    word_W: Array,
    word_off: Array,
) -> Any:
    """Ids, run by run, to buckets and extra bits.

    Args:
        run_off, run_R: as from `pack_counts` or `head_and_tail_runs`.
        ids_E: ascending in each run.
        code: tables of the set.
        streams_SE, ends_SN: out, as in `pack_counts`.
        word_W, word_off: out: extra bits, lowest first, and [N+1] words of each sequence.

    Returns:
        Index of the first id that is not above the one before it in its run; -1 if there is none.
    """
    rank_V, bucket_V = code.rank_V, code.bucket_V
    base_B, extra_B, stream_LB = code.base_B, code.extra_B, code.stream_LB
    at = np.zeros(len(ends_SN), np.int64)
    ranks = np.empty(256, np.int64)
    entry = 0
    word = 0
    for row in range(len(run_off) - 1):
        held = np.uint64(0)
        bits = 0
        for run in range(run_off[row], run_off[row + 1]):
            size = np.int64(run_R[run])
            for k in range(size):
                if k > 0 and ids_E[entry + k] <= ids_E[entry + k - 1]:
                    return entry + k
                rank = np.int64(rank_V[ids_E[entry + k]])
                place = k
                while place > 0 and ranks[place - 1] > rank:
                    ranks[place] = ranks[place - 1]
                    place -= 1
                ranks[place] = rank
            above = 0
            largest = 0
            for k in range(size):
                number = ranks[k] - above
                above = ranks[k] + 1
                bucket = np.int64(bucket_V[number])
                stream = min(size - 1, 1) if k == 0 else np.int64(stream_LB[size - k, largest])
                streams_SE[stream, at[stream]] = bucket
                at[stream] += 1
                largest = max(largest, bucket)
                held |= np.uint64(number - base_B[bucket]) << np.uint64(bits)
                bits += extra_B[bucket]
                if bits >= 32:
                    word_W[word] = held & np.uint64(0xFFFFFFFF)
                    word += 1
                    held >>= np.uint64(32)
                    bits -= 32
            entry += size
        if bits > 0:
            word_W[word] = held
            word += 1
        word_off[row + 1] = word
        for stream in range(len(at)):
            ends_SN[stream, row] = at[stream]
    return -1


@nb.njit(
    types.int64(
        _OFFSETS, _BYTES, _BYTES, _STARTS, _WORDS, _OFFSETS, _CODE, types.uint32[::1],
    ),
    nogil=True,
    cache=True,
)  # fmt: skip
def unpack_ids(
    run_off: Array,
    run_R: Array,
    data: Array,
    start_SN: Array,
    word_W: Array,
    word_off: Array,
    code: Code,
    ids_E: Array,
) -> Any:
    """The inverse of `pack_ids`.

    Args:
        run_off, run_R, code: as there.
        data, start_SN: as in `unpack_counts`.
        word_W, word_off: words of extra bits and two more, and [N+1] those of each sequence.
        ids_E: out.

    Returns:
        Number of entries, or -1.
    """
    id_of_rank_V = code.id_of_rank_V
    base_B, extra_B, stream_LB = code.base_B, code.extra_B, code.stream_LB
    at = np.zeros(len(start_SN), np.int64)
    found = np.empty(256, np.uint32)
    entry = 0
    for row in range(len(run_off) - 1):
        for stream in range(len(at)):
            at[stream] = start_SN[stream, row]
        bit = 32 * word_off[row]
        last_bit = 32 * word_off[row + 1]
        for run in range(run_off[row], run_off[row + 1]):
            size = np.int64(run_R[run])
            if entry + size > len(ids_E):
                return -1
            above = np.int64(0)
            largest = 0
            for k in range(size):
                stream = min(size - 1, 1) if k == 0 else np.int64(stream_LB[size - k, largest])
                if at[stream] >= start_SN[stream, row + 1]:
                    return -1
                bucket = np.int64(data[at[stream]])
                at[stream] += 1
                if bucket >= len(base_B):
                    return -1
                largest = max(largest, bucket)
                extra = np.int64(extra_B[bucket])
                if bit + extra > last_bit:
                    return -1
                pair = np.uint64(word_W[(bit >> 5) + 1]) << np.uint64(32)
                pair |= np.uint64(word_W[bit >> 5])
                mask = (np.uint64(1) << np.uint64(extra)) - np.uint64(1)
                low = (pair >> np.uint64(bit & 31)) & mask
                bit += extra
                rank = above + np.int64(base_B[bucket]) + np.int64(low)
                if rank >= len(id_of_rank_V):
                    return -1
                above = rank + 1
                found[k] = id_of_rank_V[rank]
            if size == 1:
                ids_E[entry] = found[0]
            else:
                for k in range(size):
                    place = np.int32(0)
                    for j in range(size):
                        place += np.int32(found[j] < found[k])
                    ids_E[entry + place] = found[k]
            entry += size
        for stream in range(len(at)):
            if at[stream] != start_SN[stream, row + 1]:
                return -1
        if last_bit - bit >= 32:
            return -1
    return entry
