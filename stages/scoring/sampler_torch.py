"""Records of a block of rows in plain torch, for logits that live on a GPU.

Same definition, same uniforms, same order of ids as `sampler_cpu`; the tests hold the two against
each other. Where a running sum is within rounding of a threshold the two may pick neighbouring ids.

Shape letters: R rows, W width of a row with its padding, V vocabulary, C candidates, U uniforms.
"""

import numpy as np
import torch
from torch import Tensor

from stages.config.record_kinds import Record
from stages.scoring.drawn import Records, check_rows, power_ratio
from stages.scoring.kinds import SAMPLERS
from stages.scoring.rows_torch import TorchRows, to_numpy


def sample(
    z_RW: Tensor, vocab_size: int, tok_R: Tensor, cand_RC: Tensor, u_RU: Tensor, record: Record
) -> Records:
    """Records of R rows of logits; arguments and errors as for `sampler_cpu.sample`.

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
    check_rows(to_numpy(rows.top_R1[:, 0] + log_Z_R, np.float64), lp_R)
    ratio = power_ratio(record)
    lz_R = None
    if ratio:
        power_R = (rows.d_RV * ratio).exp().sum(1, dtype=torch.float64)
        lz_R = to_numpy(power_R.log() - ratio * log_Z_R, np.float32)
    entries = SAMPLERS[record.kind].on_gpu(rows, cand_RC, u_RU, record)
    return Records(lp_R, to_numpy(log_Z_R - dot_R / rows.Z_R, np.float32), lz_R, **entries)
