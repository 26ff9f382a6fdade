"""Records of a block of rows: on a CPU in numba, on a GPU in torch.

Both have the same definition, take the same uniforms and give the same order of ids; the tests hold
them against each other. Where a running sum is within rounding of a threshold, the two may pick
neighbouring ids.

How the entries of a kind are drawn is in the module named after it. It has two functions of the
same signature: `on_cpu(rows, cand_RC, u_RU, record)` takes `drawn.LogitRows` and numpy arrays, has
a kernel of `sampler_kernels` fill in what `LogitRows` receives, and returns the columns of the kind
by field of `drawn.Records`; `on_gpu` does so with `rows_torch.TorchRows` and tensors.

Shape letters: R rows (positions), V vocabulary, W >= V width of a row with its padding, C
candidates, U uniforms.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from stages.config.record_kinds import Record
from stages.scoring import counts, head_tail, sampled, top_k
from stages.scoring.drawn import Array, BadRow, LogitRows, Records, concat
from stages.scoring.rows_torch import TorchRows, to_numpy

SAMPLERS: Final[dict[str, Any]] = {
    "sampled": sampled,
    "counts": counts,
    "head_tail": head_tail,
    "top_k": top_k,
}
"""The module of every kind."""


def on_cpu(
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
        u_RU: [R, `record.uniforms`] uniforms in [0, 1).
        record: What to keep.
        threads: Threads the rows are spread over; the kernels release the GIL.

    Raises:
        BadRow: a row holds NaN or +inf, is -inf throughout, or gives the realised token p = 0.
    """
    tok_R, cand_RC = tok_R.astype(np.int64), np.ascontiguousarray(cand_RC, np.int64)
    u_RU = np.ascontiguousarray(u_RU)
    ratio = _power_ratio(record)

    def run(part: slice) -> tuple[Records, Array]:
        """Records of some rows, and the log of each one's normaliser; bad rows have no entries."""
        R = part.stop - part.start
        rows = LogitRows(
            z_RW[part],
            vocab_size,
            np.float32(1.0 / record.temperature),
            np.float32(ratio),
            lse_R=np.empty(R, np.float64),
            ent_R=np.empty(R, np.float32),
            lz_R=np.empty(R if ratio else 0, np.float32),
        )
        entries = SAMPLERS[record.kind].on_cpu(rows, cand_RC[part], u_RU[part], record)
        lp_R = rows.log_p(np.arange(R), tok_R[part]).astype(np.float32)
        return Records(lp_R, rows.ent_R, rows.lz_R if ratio else None, **entries), rows.lse_R

    edges = np.linspace(0, len(z_RW), max(1, min(threads, len(z_RW))) + 1).astype(int).tolist()
    parts = [slice(*edge) for edge in pairwise(edges)]
    if len(parts) == 1:
        done = [run(parts[0])]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            done = list(pool.map(run, parts))
    records = concat([one for one, _ in done])
    _check_rows(np.concatenate([lse_R for _, lse_R in done]), records.lp_R)
    return records


def on_gpu(
    z_RW: Tensor, vocab_size: int, tok_R: Tensor, cand_RC: Tensor, u_RU: Tensor, record: Record
) -> Records:
    """Records of R rows of logits; arguments and errors as for `on_cpu`.

    Args:
        z_RW: [R, W] float32 on any device; the other tensors are on the same one.
        tok_R, cand_RC: int64.
        u_RU: float64.
    """
    rows = TorchRows.of(z_RW[:, :vocab_size], record.temperature)
    log_Z_R = rows.Z_R.log()
    # 0 * -87 for a -inf logit, not 0 * -inf
    dot_R = (rows.e_RBS.flatten(1)[:, :vocab_size] * rows.d_RV.clamp(min=-87.0)).sum(
        1, dtype=torch.float64
    )
    d_tok_R = rows.d_RV.gather(1, tok_R[:, None])[:, 0].double()
    lp_R = to_numpy(d_tok_R - log_Z_R, np.float32)
    _check_rows(to_numpy(rows.top_R1[:, 0] + log_Z_R, np.float64), lp_R)
    ratio, lz_R = _power_ratio(record), None
    if ratio:
        power_R = (rows.d_RV * ratio).exp().sum(1, dtype=torch.float64)
        lz_R = to_numpy(power_R.log() - ratio * log_Z_R, np.float32)
    entries = SAMPLERS[record.kind].on_gpu(rows, cand_RC, u_RU, record)
    return Records(lp_R, to_numpy(log_Z_R - dot_R / rows.Z_R, np.float32), lz_R, **entries)


def _power_ratio(record: Record) -> float:
    """The record's temperature over the loss temperature; 0 where there is none."""
    return record.temperature / record.loss_temperature if record.loss_temperature else 0.0


def _check_rows(lse_R: Array, lp_R: Array) -> None:
    """Refuse rows of which no record can be made.

    Args:
        lse_R: Log of the normaliser; not finite where a row holds NaN or +inf, or only -inf.
        lp_R: Log p of the realised token.

    Raises:
        BadRow: for the first such row.
    """
    bad = np.flatnonzero(~np.isfinite(lse_R) | (lp_R == -np.inf))
    if not len(bad):
        return
    if not np.isfinite(lse_R[bad[0]]):
        raise BadRow(int(bad[0]), "the logits hold NaN or +inf, or nothing but -inf")
    raise BadRow(int(bad[0]), "the realised token has logit -inf, that is probability zero")
