"""Records of a block of rows on the CPU, and the columns they are stored in.

What a record is and why it is unbiased is in the docstrings of `kernels`; this module picks the
kernel, spreads rows over threads (the kernels release the GIL) and packs the result.

Shape letters: R rows (positions), W width of a row of logits with its padding, C candidates, U
uniforms, E entries over all rows, H head entries over all rows, K room for the entries of one row.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.config import Record
from stages.scoring import kernels
from storage.errors import EngineError

Array = NDArray[Any]


class BadRow(EngineError):
    """A row of logits that no record can be made of."""

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(f"row {row}: {reason}")
        self.row = row
        self.reason = reason


@dataclass(frozen=True)
class Records:
    """Records of R positions, entries of all positions one after the other."""

    lp_R: Array
    """Log p of the realised token, float32, nats."""
    ent_R: Array
    """Entropy, float32, nats."""
    nu_R: Array | None = None
    """Entries per position."""
    nh_R: Array | None = None
    """Entries of the head per position; these come first."""
    rest_R: Array | None = None
    """Teacher mass outside the head, float32."""
    ids_E: Array | None = None
    cnt_E: Array | None = None
    """How often each id was drawn."""
    hlp_H: Array | None = None
    """Log p of the head, float32."""

    def columns(self) -> dict[str, Array]:
        """The columns present, under their names in storage."""
        named = {
            "lp": self.lp_R,
            "ent": self.ent_R,
            "nu": self.nu_R,
            "nh": self.nh_R,
            "rest": self.rest_R,
            "ids": self.ids_E,
            "cnt": self.cnt_E,
            "hlp": self.hlp_H,
        }
        return {name: value for name, value in named.items() if value is not None}


def concat(blocks: Sequence[Records]) -> Records:
    """The positions of all blocks, one block after the other; at least one block."""
    if len(blocks) == 1:
        return blocks[0]
    names = [name for name, value in vars(blocks[0]).items() if value is not None]
    parts: dict[str, Any] = {
        name: np.concatenate([getattr(block, name) for block in blocks]) for name in names
    }
    return Records(**parts)


def uniforms_needed(record: Record) -> int:
    """Uniforms a position needs: one for systematic sampling, N for independent draws."""
    if record.kind == "sampled":
        return 0
    if record.kind == "counts" and record.sampler == "multinomial":
        return record.draws
    return 1


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
    build = {"sampled": _sampled, "counts": _counts, "head_tail": _head_tail}[record.kind]
    scale = np.float32(1.0 / record.temperature)
    tok_R = tok_R.astype(np.int64)
    cand_RC = cand_RC.astype(np.int64)

    def run(rows: slice) -> tuple[Records, Array]:
        logits = _Logits(z_RW[rows], vocab_size, scale, tok_R[rows])
        return build(logits, cand_RC[rows], u_RU[rows], record)

    slices = list(_slices(len(z_RW), threads))
    if len(slices) == 1:
        done = [run(slices[0])]
    else:
        with ThreadPoolExecutor(len(slices)) as pool:
            done = list(pool.map(run, slices))
    check_status(np.concatenate([status_R for _, status_R in done]))
    return concat([records for records, _ in done])


def check_limits(record: Record, candidates: int) -> None:
    """Refuse parameters whose records the kernels have no room for.

    Raises:
        ValueError: `tau` or the number of candidates is outside what `Record` allows.
    """
    if record.kind != "head_tail":
        return
    if known_tau(record) < kernels.LEAST_TAU or candidates > kernels.MOST_CANDIDATES:
        raise ValueError(
            f"tau = {record.tau} with {candidates} candidates: at least {kernels.LEAST_TAU} and at "
            f"most {kernels.MOST_CANDIDATES} are possible"
        )


def known_tau(record: Record) -> float:
    """tau of a `head_tail` record.

    Raises:
        ValueError: the record asks for a number of entries and has not been calibrated yet.
    """
    if record.tau is None:
        raise ValueError(f"tau for {record.entries} entries is unknown: calibrate the record first")
    return record.tau


def check_status(status_R: Array) -> None:
    """Raise `BadRow` for the first row whose status is not OK."""
    bad = np.flatnonzero(status_R != kernels.OK)
    if len(bad):
        reason = {
            kernels.NOT_FINITE: "the logits hold NaN or +inf, or nothing but -inf",
            kernels.IMPOSSIBLE: "the realised token has logit -inf, that is probability zero",
        }[int(status_R[bad[0]])]
        raise BadRow(int(bad[0]), reason)


def _slices(rows: int, threads: int) -> Iterator[slice]:
    count = max(1, min(threads, rows))
    edges = np.linspace(0, rows, count + 1).astype(int)
    for low, high in pairwise(edges):
        yield slice(int(low), int(high))


class _Logits(NamedTuple):
    """What every kernel takes first."""

    z_RW: Array
    vocab_size: int
    scale: np.float32
    tok_R: Array


def _outputs(rows: int) -> tuple[Array, Array, Array]:
    return np.empty(rows, np.float32), np.empty(rows, np.float32), np.zeros(rows, np.uint8)


def _sampled(logits: _Logits, cand_RC: Array, u_RU: Array, record: Record) -> tuple[Records, Array]:
    lp_R, ent_R, status_R = _outputs(len(u_RU))
    kernels.sampled_rows(*logits, lp_R, ent_R, status_R)
    return Records(lp_R, ent_R), status_R


def _counts(logits: _Logits, cand_RC: Array, u_RU: Array, record: Record) -> tuple[Records, Array]:
    rows = len(u_RU)
    lp_R, ent_R, status_R = _outputs(rows)
    nu_R = np.zeros(rows, np.uint8)
    ids_RK = np.empty((rows, record.draws), np.uint32)
    cnt_RK = np.empty((rows, record.draws), np.uint8)
    kernels.counts_rows(
        *logits, np.sort(u_RU, axis=1), record.draws, lp_R, ent_R, status_R, nu_R, ids_RK, cnt_RK
    )
    used_RK = np.arange(record.draws) < nu_R[:, None]
    records = Records(lp_R, ent_R, nu_R=nu_R, ids_E=ids_RK[used_RK], cnt_E=cnt_RK[used_RK])
    return records, status_R


def _head_tail(
    logits: _Logits, cand_RC: Array, u_RU: Array, record: Record
) -> tuple[Records, Array]:
    rows = len(u_RU)
    lp_R, ent_R, status_R = _outputs(rows)
    nu_R, nh_R = np.zeros(rows, np.uint8), np.zeros(rows, np.uint8)
    rest_R = np.empty(rows, np.float32)
    ids_RK = np.empty((rows, kernels.ROOM), np.uint32)
    hlp_RK = np.empty((rows, kernels.ROOM), np.float32)
    kernels.head_tail_rows(
        *logits, cand_RC, known_tau(record), u_RU,
        lp_R, ent_R, status_R, nu_R, nh_R, rest_R, ids_RK, hlp_RK,
    )  # fmt: skip
    slots_K = np.arange(kernels.ROOM)
    records = Records(
        lp_R,
        ent_R,
        nu_R=nu_R,
        nh_R=nh_R,
        rest_R=rest_R,
        ids_E=ids_RK[slots_K < nu_R[:, None]],
        hlp_H=hlp_RK[slots_K < nh_R[:, None]],
    )
    return records, status_R
