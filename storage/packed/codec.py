"""The packed layout: the columns of a record as byte streams, a fifth smaller and opaque.

    Rows -> `pack` -> the columns that stay + `Blobs` -> file -> `unpack` -> the same Rows

A blob is one value of bytes per sequence. `storage/FORMAT.md` is the specification.

What it saves, in this order: an id is stored by its frequency rank, in buckets whose width grows
with the rank; ids whose order says nothing are stored in ascending order of rank, as differences;
counts that follow from the others are left out; bytes that are alike share a stream, so that zstd
finds a code for each.
"""

from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from storage.errors import DataError
from storage.files.place import Place
from storage.manifest import SetMeta
from storage.packed import kernels
from storage.packed.frequencies import read_ranks
from storage.packed.kernels import Code
from storage.rows import Offsets, Rows, find_row, offsets_of, values_per_position
from storage.schema import (
    BUCKET_STREAMS,
    COLUMNS,
    COUNT_STREAMS,
    EXTRA_BITS,
    LEVELS,
    PACKED_HALVES,
    Array,
    Blobs,
    Level,
    replaced_columns,
)

_EDGES = (31, 55, 79, 103)
_LONGEST_RUN = 255


@lru_cache(maxsize=16)
def load_code(directory: Place, ranks: str | None, vocab_size: int) -> Code:
    """The tables of a set; kept, because its parts are opened again and again.

    Raises:
        DataError: as `storage.packed.frequencies.read_ranks`.
    """
    return code_of(read_ranks(directory, ranks, vocab_size))


def code_of(id_of_rank_V: NDArray[np.uint32]) -> Code:
    """The tables for ids in this order."""
    vocab_size = len(id_of_rank_V)
    base: list[int] = []
    number = 0
    while number < vocab_size:
        base.append(number)
        number += 1 << _extra_bits(number)
    rank_V = np.empty(vocab_size, np.uint32)
    rank_V[id_of_rank_V] = np.arange(vocab_size, dtype=np.uint32)
    left_L1, largest_B = np.arange(_LONGEST_RUN + 1)[:, None], np.arange(len(base))
    expected_LB = largest_B + (len(base) - largest_B) // (left_L1 + 1)
    first_of_later = BUCKET_STREAMS.index("bk2")
    code = Code(
        id_of_rank_V=id_of_rank_V,
        rank_V=rank_V,
        bucket_V=np.repeat(np.arange(len(base)), np.diff([*base, vocab_size])).astype(np.uint8),
        base_B=np.array(base, np.uint32),
        extra_B=np.array([_extra_bits(each) for each in base], np.uint8),
        stream_LB=(first_of_later + np.digitize(expected_LB, _EDGES)).astype(np.uint8),
    )
    for table in code:
        table.flags.writeable = False
    return code


def _extra_bits(number: int) -> int:
    """Of the bucket that starts at `number`: eight buckets to a factor of two."""
    return max(0, (number + 1).bit_length() - 4)


def pack(rows: Rows, meta: SetMeta, code: Code) -> tuple[Rows, Blobs]:
    """The columns that stay as they are, and the others as bytes.

    Raises:
        DataError: entries are not in the order the format asks for; naming the sequence.
    """
    count = len(rows)
    entries = len(rows["ids"])
    runs, run_off = np.empty(entries + meta.copies, np.uint8), np.zeros(count + 1, np.int64)
    blobs: Blobs = {}
    if meta.record_kind and meta.record_kind.counts:
        streams, ends = _room_for(COUNT_STREAMS, entries, count)
        draws, draw_off = int(meta.record_params["draws"]), rows.offsets["draw"]
        wrong = kernels.pack_counts(
            draws, draw_off, rows["nu"], rows["cnt"], streams, ends, runs, run_off
        )
        _refuse(rows, "cnt", wrong, "counts must be in descending order")
        blobs |= _blobs(COUNT_STREAMS, streams, ends)
    else:
        position = rows.offsets["position"]
        kernels.head_and_tail_runs(meta.copies, position, rows["nu"], rows["nh"], runs, run_off)
    streams, ends = _room_for(BUCKET_STREAMS, entries, count)
    words, word_off = np.empty(entries + count, np.uint32), np.zeros(count + 1, np.int64)
    wrong = kernels.pack_ids(run_off, runs, rows["ids"], code, streams, ends, words, word_off)
    _refuse(rows, "ids", wrong, "ids must ascend in a tail, and among equal counts")
    blobs |= _blobs(BUCKET_STREAMS, streams, ends)
    blobs[EXTRA_BITS] = words[: word_off[-1]].view(np.uint8), 4 * word_off
    for name, (low, high) in PACKED_HALVES.items():
        if name in rows:
            offsets = rows.offsets[COLUMNS[name].level]
            pair = np.ascontiguousarray(rows[name]).view(np.uint8).reshape(-1, 2)
            blobs[low] = np.ascontiguousarray(pair[:, 0]), offsets
            blobs[high] = np.ascontiguousarray(pair[:, 1]), offsets
    gone = replaced_columns(cast(Any, meta.record))
    kept = {name: values for name, values in rows.columns.items() if name not in gone}
    levels = {"prompt", "position", *(COLUMNS[name].level for name in kept)}
    return Rows(kept, {level: off for level, off in rows.offsets.items() if level in levels}), blobs


def unpack(rows: Rows, blobs: Blobs, meta: SetMeta, code: Code) -> Rows:
    """The inverse of `pack`.

    Raises:
        DataError: the streams do not fit together.
    """
    columns, offsets = dict(rows.columns), dict(rows.offsets)
    position, copies = offsets["position"], meta.copies
    entries = sum(len(blobs[name][0]) for name in BUCKET_STREAMS)
    runs, run_off = np.empty(entries + copies, np.uint8), np.zeros(len(rows) + 1, np.int64)
    if meta.record_kind and meta.record_kind.counts:
        nu, cnt = np.empty(copies * rows.tokens, np.uint8), np.empty(entries, np.uint8)
        data, start = _joined(COUNT_STREAMS, blobs)
        draws = int(meta.record_params["draws"])
        found = kernels.unpack_counts(draws, copies * position, data, start, nu, cnt, runs, run_off)
        columns |= {"nu": nu, "cnt": cnt}
    else:
        nu, nh = columns["nu"], columns["nh"]
        if len(nu) != copies * rows.tokens or len(nh) != rows.tokens:
            raise _damaged()
        found = kernels.head_and_tail_runs(copies, position, nu, nh, runs, run_off)
    if found != entries:
        raise _damaged()
    columns["ids"] = _ids(blobs, runs, run_off, entries, code)
    offsets["draw"] = copies * position
    levels: tuple[tuple[Level, str], ...] = (("entry", "ids"), ("head", "hlp"), ("tail", "tlp"))
    for level, name in levels:
        low, high = PACKED_HALVES.get(name, ("", ""))
        if name == "ids" or low in blobs:
            per_position = values_per_position(level, columns, rows.tokens)
            offsets[level] = offsets_of(per_position)[position]
        if low in blobs:
            if not all(np.array_equal(blobs[half][1], offsets[level]) for half in (low, high)):
                raise _damaged()
            halves = np.stack([blobs[low][0], blobs[high][0]], axis=1)
            columns[name] = halves.reshape(-1).view(np.float16)
    return Rows(
        {name: columns[name] for name in COLUMNS if name in columns},
        {level: offsets[level] for level in LEVELS if level in offsets},
    )


def _ids(blobs: Blobs, runs: Array, run_off: Offsets, entries: int, code: Code) -> Array:
    data, start = _joined(BUCKET_STREAMS, blobs)
    extra, byte_off = blobs[EXTRA_BITS]
    if (byte_off % 4).any():
        raise _damaged()
    words = np.zeros(len(extra) // 4 + 2, np.uint32)  # the kernel looks at pairs of words
    words[:-2].view(np.uint8)[:] = extra
    ids = np.empty(entries, np.uint32)
    found = kernels.unpack_ids(run_off, runs, data, start, words, byte_off // 4, code, ids)
    if found != entries:
        raise _damaged()
    return ids


def _room_for(names: tuple[str, ...], entries: int, count: int) -> tuple[Array, Array]:
    shape = (len(names), count)
    return np.empty((len(names), entries), np.uint8), np.zeros(shape, np.int64)


def _blobs(names: tuple[str, ...], streams: Array, ends: Array) -> Blobs:
    out: Blobs = {}
    for name, stream, end in zip(names, streams, ends, strict=True):
        offsets = np.concatenate([[0], end]).astype(np.int64)
        out[name] = stream[: offsets[-1]], offsets
    return out


def _joined(names: tuple[str, ...], blobs: Blobs) -> tuple[Array, Array]:
    """All streams one after the other, and [S, N+1] where each sequence starts."""
    data = np.concatenate([blobs[name][0] for name in names])
    first = np.cumsum([0, *(len(blobs[name][0]) for name in names[:-1])])
    start = np.stack([blobs[name][1] for name in names]) + first[:, None]
    return data, np.ascontiguousarray(start, np.int64)


def _refuse(rows: Rows, name: str, wrong: int, why: str) -> None:
    if wrong >= 0:
        row = find_row(rows.offsets["entry"], wrong)
        raise DataError(
            f"seq_id {rows['seq_id'][row]}, column {name!r}"
            f"[{wrong - int(rows.offsets['entry'][row])}]: {why} to be packed"
        )


def _damaged() -> DataError:
    return DataError("packed records do not add up")
