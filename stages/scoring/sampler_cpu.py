"""Records of a block of rows on the CPU.

The module of each kind says what its records are and calls its numba kernel; this one spreads rows
over threads (the kernels release the GIL) and joins the results.

Shape letters: R rows (positions), W width of a row of logits with its padding, C candidates, U
uniforms.
"""

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from stages.config.record_kinds import Record
from stages.scoring.drawn import Array, Records, check_rows, concat, power_ratio
from stages.scoring.kinds import SAMPLERS
from stages.scoring.sampler_kernels import LogitRows


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
        u_RU: [R, `record.uniforms`] uniforms in [0, 1).
        record: What to keep.
        threads: Threads the rows are spread over.

    Raises:
        BadRow: a row holds NaN or +inf, is -inf throughout, or gives the realised token p = 0.
    """
    tok_R, cand_RC = tok_R.astype(np.int64), np.ascontiguousarray(cand_RC, np.int64)
    u_RU = np.ascontiguousarray(u_RU)
    ratio = power_ratio(record)

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
    check_rows(np.concatenate([lse_R for _, lse_R in done]), records.lp_R)
    return records
