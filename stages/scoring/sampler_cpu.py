"""Records of a block of rows on the CPU.

What a record is and why it is unbiased is in the docstrings of `kernels`; this module picks the
kernel, spreads rows over threads (the kernels release the GIL) and packs the result.

Shape letters: R rows (positions), W width of a row of logits with its padding, C candidates, U
uniforms, M copies, N draws, E entries over all rows, K room for the entries of one row.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.config import Record
from stages.scoring import sampler_kernels
from stages.scoring.drawn import (
    LOG_FLOOR,
    BadRow,
    Records,
    check_limits,
    check_rows,
    concat,
    known_tau,
    power_ratio,
    uniforms_needed,
)
from stages.scoring.order import order_counts, order_heads

__all__ = ["BadRow", "Records", "concat", "sample", "uniforms_needed"]

Array = NDArray[Any]


def sample(
    z_RW: Array,
    vocab_size: int,
    tok_R: Array,
    cand_RC: Array,
    u_RU: Array,
    record: Record,
    threads: int = 1,
) -> Records:
    """Records of R rows of logits.

    Args:
        z_RW: [R, W] float32, C-contiguous; columns from `vocab_size` on are padding, never read.
        vocab_size: Number of real ids.
        tok_R: Realised ids, below `vocab_size`.
        cand_RC: [R, C] ids forced into the head (`head_tail`; ignored otherwise).
        u_RU: [R, `uniforms_needed(record)`] uniforms in [0, 1).
        record: What to keep.
        threads: Threads the rows are spread over.

    Raises:
        BadRow: a row holds NaN or +inf, is -inf throughout, or gives the realised token p = 0.
    """
    check_limits(record, cand_RC.shape[1])
    tok_R, cand_RC = tok_R.astype(np.int64), np.ascontiguousarray(cand_RC, np.int64)
    u_RU = np.ascontiguousarray(u_RU)

    def run(rows: slice) -> tuple[Records, Array]:
        given = _Given(z_RW[rows], vocab_size, tok_R[rows], cand_RC[rows], u_RU[rows])
        return _sample(given, record)

    slices = list(_slices(len(z_RW), threads))
    if len(slices) == 1:
        done = [run(slices[0])]
    else:
        with ThreadPoolExecutor(len(slices)) as pool:
            done = list(pool.map(run, slices))
    records = concat([one for one, _ in done])
    check_rows(np.concatenate([lse_R for _, lse_R in done]), records.lp_R)
    return records


def _slices(rows: int, threads: int) -> Iterator[slice]:
    count = max(1, min(threads, rows))
    edges = np.linspace(0, rows, count + 1).astype(int)
    for low, high in pairwise(edges):
        yield slice(int(low), int(high))


class _Given(NamedTuple):
    """The rows of one thread."""

    z_RW: Array
    vocab_size: int
    tok_R: Array
    cand_RC: Array
    u_RU: Array


def _sample(given: _Given, record: Record) -> tuple[Records, Array]:
    """Records of some rows, and the log of the normaliser of each; bad rows have no entries."""
    R, ratio = len(given.z_RW), power_ratio(record)
    chunk = sampler_kernels.Chunk(
        given.z_RW,
        given.vocab_size,
        np.float32(1.0 / record.temperature),
        np.float32(ratio),
        lse_R=np.empty(R, np.float64),
        ent_R=np.empty(R, np.float32),
        lz_R=np.empty(R if ratio else 0, np.float32),
    )
    build = {"counts": _counts, "head_tail": _head_tail, "top_k": _top_k, "sampled": _sampled}
    entries = build[record.kind](chunk, given, record)
    log_p_R = _log_p(chunk, np.arange(R), given.tok_R)
    records = Records(
        log_p_R.astype(np.float32), chunk.ent_R, chunk.lz_R if ratio else None, **entries
    )
    return records, chunk.lse_R


def _sampled(chunk: sampler_kernels.Chunk, given: _Given, record: Record) -> dict[str, Array]:
    """No entries."""
    R = len(given.z_RW)
    no_ids, no_counts = np.empty((R, 0), np.uint32), np.empty((R, 0), np.uint8)
    sampler_kernels.counts_rows(
        chunk, np.empty((R, 0, 0)), np.empty((R, 0), np.uint8), no_ids, no_counts
    )
    return {}


def _counts(chunk: sampler_kernels.Chunk, given: _Given, record: Record) -> dict[str, Array]:
    R, M, N = len(given.z_RW), record.copies, record.draws
    u_RMN = given.u_RU.reshape(R, M, given.u_RU.shape[1] // M)
    systematic = record.sampler == "systematic"
    u_RMN = (np.arange(N) + u_RMN) / N if systematic else np.sort(u_RMN, axis=2)
    nu_RM = np.zeros((R, M), np.uint8)
    ids_RK, cnt_RK = np.empty((R, M * N), np.uint32), np.empty((R, M * N), np.uint8)
    sampler_kernels.counts_rows(chunk, u_RMN, nu_RM, ids_RK, cnt_RK)
    order_counts(nu_RM, ids_RK, cnt_RK)
    row_E, slot_E = _used(nu_RM.sum(axis=1, dtype=np.int64))
    ids_E = ids_RK[row_E, slot_E]
    entries = {"nu_RM": nu_RM, "ids_E": ids_E, "cnt_E": cnt_RK[row_E, slot_E]}
    return entries | _drawn_log_p(chunk, record, row_E, ids_E)


def _head_tail(chunk: sampler_kernels.Chunk, given: _Given, record: Record) -> dict[str, Array]:
    R, M = len(given.z_RW), record.copies
    nu_RM, nh_R = np.zeros((R, M), np.uint8), np.zeros(R, np.uint8)
    rest_R = np.empty(R, np.float32)
    ids_RK = np.empty((R, M * sampler_kernels.ROOM), np.uint32)
    sampler_kernels.head_tail_rows(
        chunk,
        given.cand_RC,
        known_tau(record),
        record.tail_floor,
        given.u_RU,
        nu_RM,
        nh_R,
        rest_R,
        ids_RK,
    )
    order_heads(given.z_RW, nh_R, ids_RK)
    row_E, slot_E = _used(nu_RM.sum(axis=1, dtype=np.int64) - (M - 1) * nh_R.astype(np.int64))
    ids_E = ids_RK[row_E, slot_E]
    head_E = slot_E < nh_R[row_E]
    hlp_H = _stored_log_p(chunk, row_E[head_E], ids_E[head_E])
    entries = {"nu_RM": nu_RM, "nh_R": nh_R, "rest_R": rest_R, "ids_E": ids_E, "hlp_H": hlp_H}
    return entries | _drawn_log_p(chunk, record, row_E[~head_E], ids_E[~head_E])


def _top_k(chunk: sampler_kernels.Chunk, given: _Given, record: Record) -> dict[str, Array]:
    R, K = len(given.z_RW), min(record.k, given.vocab_size)
    rest_R, ids_RK = np.empty(R, np.float32), np.zeros((R, K), np.uint32)
    sampler_kernels.top_k_rows(chunk, rest_R, ids_RK)
    full_R = np.full(R, K, np.uint8)
    hlp_H = _stored_log_p(chunk, np.repeat(np.arange(R), K), ids_RK.ravel())
    return {
        "nu_RM": full_R[:, None],
        "nh_R": full_R,
        "rest_R": rest_R,
        "ids_E": ids_RK.ravel(),
        "hlp_H": hlp_H,
    }


# ---------------------------------------------------------------------------------------------


def _used(count_R: Array) -> tuple[Array, Array]:
    """Row and slot of every entry: the first count[r] slots of row r."""
    row_E = np.repeat(np.arange(len(count_R)), count_R)
    first_R = np.cumsum(count_R) - count_R
    return row_E, np.arange(len(row_E)) - first_R[row_E]


def _log_p(chunk: sampler_kernels.Chunk, row_E: Array, ids_E: Array) -> Array:
    """Log p of an id in a row, [E] float64."""
    return chunk.z_RW[row_E, ids_E].astype(np.float64) * chunk.scale - chunk.lse_R[row_E]


def _stored_log_p(chunk: sampler_kernels.Chunk, row_E: Array, ids_E: Array) -> Array:
    """The same as it is stored: float32, and finite."""
    return np.maximum(_log_p(chunk, row_E, ids_E), LOG_FLOOR).astype(np.float32)


def _drawn_log_p(
    chunk: sampler_kernels.Chunk, record: Record, row_S: Array, ids_S: Array
) -> dict[str, Array]:
    return {"tlp_S": _stored_log_p(chunk, row_S, ids_S)} if record.logp else {}
