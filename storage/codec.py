"""From rows as a stage makes them to rows as they are stored, and on to the batch of a trainer.

    stage -> `stored` (rounding) -> part            part -> `to_batch` (records to CSR) -> trainer

Parquet itself is in `storage.parquet.reader`.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from storage.batch import Batch, Entries
from storage.errors import DataError
from storage.manifest import SetMeta
from storage.rows import Rows
from storage.schema import COLUMNS, LEVELS, MANTISSA_BITS, Array


def round_mantissa(values: Array, bits: int = MANTISSA_BITS) -> NDArray[np.float32]:
    """float32 values rounded to `bits` explicit mantissa bits, to nearest, ties to even.

    The freed low byte of the mantissa is zero, so that after BYTE_STREAM_SPLIT one of the four
    byte planes compresses to nothing. Relative error at most 2**-(bits + 1). NaN and infinity
    are kept.
    """
    raw = np.asarray(values, np.float32).view(np.uint32)
    drop = 23 - bits
    odd = (raw >> np.uint32(drop)) & np.uint32(1)
    rounded = raw + (odd + np.uint32((1 << (drop - 1)) - 1))
    rounded &= np.uint32(0xFFFFFFFF >> drop << drop)
    return np.where(np.isfinite(values), rounded, raw).view(np.float32)


def stored(rows: Rows) -> Rows:
    """The rows as they will be read back: float32 columns rounded to 15 mantissa bits.

    Always a copy, so that the caller may reuse its buffers.
    """
    columns = {
        name: round_mantissa(values) if values.dtype == np.float32 else values.copy()
        for name, values in rows.columns.items()
    }
    return Rows(columns, {level: value.copy() for level, value in rows.offsets.items()})


def checksum(rows: Rows) -> int:
    """CRC-32 over the decoded values.

    Input, little-endian: for each level present, in the order of `LEVELS`, its [N+1] offsets as
    int64; then for each column, in the order of the file, its values. It covers what page checksums
    do not: page headers, the footer, and the decoder itself. Level `draw` is left out: its offsets
    are a multiple of those of `position`, which a reader checks.
    """
    crc = 0
    for level in LEVELS:
        if level in rows.offsets and level != "draw":
            crc = zlib.crc32(_bytes(rows.offsets[level]), crc)
    for name in COLUMNS:
        if name in rows:
            crc = zlib.crc32(_bytes(rows[name]), crc)
    return crc


def _bytes(values: Array) -> memoryview:
    return np.ascontiguousarray(values).view(np.uint8).data


def to_batch(rows: Rows, meta: SetMeta, draw: int = 0) -> Batch:
    """Decode one draw of the rows into CSR arrays; kinds of records are gone after this point.

    Args:
        rows: N sequences as read from a part.
        meta: `SetMeta` of the set they come from.
        draw: Which of the `meta.copies` draws of each position; what is not drawn is in all.

    Raises:
        DataError: `nu` or `nh` do not add up to the number of stored ids, or there is no such draw.
    """
    records = meta.kind == "records"
    if not 0 <= draw < meta.copies:
        raise DataError(f"there is no draw {draw}: the set keeps {meta.copies} for each position")
    entries, rest = _decode(rows, meta, draw)
    return Batch(
        seq_id=rows["seq_id"],
        prompt_id=rows["prompt_id"],
        outcome=rows["outcome"],
        prompt=rows["prompt"].astype(np.int64),
        prompt_off=rows.offsets["prompt"],
        tok=rows["tok"].astype(np.int64),
        tok_off=rows.offsets["position"],
        ref_lp=rows.columns.get("ref_lp"),
        lp=rows["lp"] if records else None,
        ent=rows["ent"].astype(np.float32) if records else None,
        **entries._asdict(),
        rest=rest,
        lz=rows.columns.get("lz"),
    )


def _decode(rows: Rows, meta: SetMeta, draw: int) -> tuple[Entries, NDArray[np.float32]]:
    """Entries of one draw, and the teacher mass outside the head of each position: [T]."""
    positions, copies = rows.tokens, meta.copies
    if "nu" not in rows:
        return Entries.empty(positions, 0), np.ones(positions, np.float32)
    # Numba: only readers of records pay for its import.
    from storage.kernels import HALF, HALF_EXP, StoredRecords, decode_records

    counted = meta.record_kind is not None and meta.record_kind.counts
    nu, nh = rows["nu"], np.zeros(positions, np.uint8) if counted else rows["nh"]
    _check_sums(rows, nu, nh, copies)
    rest = np.ones(positions, np.float32) if counted else rows["rest"]
    entries = Entries.empty(positions, int(nu[draw::copies].sum(dtype=np.int64)))
    cnt = rows["cnt"] if counted else np.empty(0, np.uint8)
    hlp, tlp = (
        rows[name].view(np.uint16) if name in rows else np.empty(0, np.uint16)
        for name in ("hlp", "tlp")
    )
    records = StoredRecords(
        int(meta.record_params["draws"]) if counted else 0,
        copies,
        meta.tail_floor,
        *map(_read_only, (nu, nh, rest, rows["ids"], cnt, hlp, tlp)),
    )
    decode_records(records, draw, HALF, HALF_EXP, entries)
    return entries, rest


def _read_only(values: Array) -> Array:
    view = values.view()
    view.flags.writeable = False
    return view


def _check_sums(rows: Rows, nu_TC: Array, nh_T: Array, copies: int) -> None:
    """The kernel does not check bounds; this does it for all positions at once."""
    head = int(nh_T.sum(dtype=np.int64))
    tail = int(nu_TC.sum(dtype=np.int64)) - copies * head
    found = {name: len(rows[name]) for name in ("ids", "cnt", "hlp", "tlp", "rest") if name in rows}
    expected = {"ids": head + tail, "cnt": tail, "hlp": head, "tlp": tail, "rest": rows.tokens}
    fits = len(nu_TC) == copies * rows.tokens and len(nh_T) == rows.tokens
    fits = fits and not any(bool((nh_T > nu_TC[draw::copies]).any()) for draw in range(copies))
    if not fits or found != {name: expected[name] for name in found}:
        raise DataError(
            f"records do not add up: nu says {tail + copies * head} entries in {copies} draws and "
            f"nh {head} head entries, but the columns hold {found}"
        )
