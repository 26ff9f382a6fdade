"""Records of kind `counts`: how often each id was drawn in N draws.

Shape letters: R rows, M copies, N draws, U uniforms, K room for the entries of a row, E entries.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from stages.config.record_kinds import Counts
from stages.scoring.drawn import Array, used
from stages.scoring.rows_torch import Inverse, TorchRows, to_numpy
from stages.scoring.sampler_kernels import LogitRows, counts_rows


def on_cpu(rows: LogitRows, _: Array, u_RU: Array, record: Counts) -> dict[str, Array]:
    """The columns of R rows; see `sampler_cpu.sample`."""
    R, M, N = len(rows.z_RW), record.copies, record.draws
    u_RMN = u_RU.reshape(R, M, u_RU.shape[1] // M)
    systematic = record.sampler == "systematic"
    u_RMN = (np.arange(N) + u_RMN) / N if systematic else np.sort(u_RMN, axis=2)
    nu_RM = np.zeros((R, M), np.uint8)
    ids_RK, cnt_RK = np.empty((R, M * N), np.uint32), np.empty((R, M * N), np.uint8)
    counts_rows(rows, u_RMN, nu_RM, ids_RK, cnt_RK)
    order_counts(nu_RM, ids_RK, cnt_RK)
    row_E, slot_E = used(nu_RM.sum(axis=1, dtype=np.int64))
    ids_E = ids_RK[row_E, slot_E]
    columns = {"nu_RM": nu_RM, "ids_E": ids_E, "cnt_E": cnt_RK[row_E, slot_E]}
    if record.logp:
        columns["tlp_S"] = rows.stored_log_p(row_E, ids_E)
    return columns


@njit(cache=True, nogil=True)
def order_counts(nu_RM: Any, ids_RK: Any, cnt_RK: Any) -> None:
    """Sort the ids of each copy, ascending so far, by descending count; stable."""
    for r in range(nu_RM.shape[0]):
        start = 0
        for m in range(nu_RM.shape[1]):
            stop = start + nu_RM[r, m]
            for a in range(start + 1, stop):
                i, count = ids_RK[r, a], cnt_RK[r, a]
                k = a
                while k > start and cnt_RK[r, k - 1] < count:
                    ids_RK[r, k], cnt_RK[r, k] = ids_RK[r, k - 1], cnt_RK[r, k - 1]
                    k -= 1
                ids_RK[r, k], cnt_RK[r, k] = i, count
            start = stop


def on_gpu(rows: TorchRows, _: Tensor, u_RU: Tensor, record: Counts) -> dict[str, Array]:
    """The same in torch; see `sampler_torch.sample`."""
    R, M, N = len(u_RU), record.copies, record.draws
    u_RMN = u_RU.view(R, M, -1)
    if record.sampler == "systematic":
        u_RMN = (torch.arange(N, device=u_RU.device) + u_RMN) / N
    else:
        u_RMN = u_RMN.sort(dim=2).values
    threshold_RMN = u_RMN * rows.Z_R[:, None, None]
    invert = Inverse.of(rows.e_RBS)
    ids_RMN = torch.stack([invert(threshold_RMN[:, m].contiguous()) for m in range(M)], dim=1)
    new_RMN = torch.ones_like(ids_RMN, dtype=torch.bool)
    new_RMN[:, :, 1:] = ids_RMN[:, :, 1:] != ids_RMN[:, :, :-1]
    cnt_E = to_numpy(torch.bincount(new_RMN.flatten().long().cumsum(0) - 1), np.int64)
    ids_E = to_numpy(ids_RMN[new_RMN], np.int64)
    nu_RM = to_numpy(new_RMN.sum(2), np.int64)
    order = np.lexsort((ids_E, -cnt_E, np.repeat(np.arange(R * M), nu_RM.ravel())))
    columns = {
        "nu_RM": nu_RM.astype(np.uint8),
        "ids_E": ids_E[order].astype(np.uint32),
        "cnt_E": cnt_E[order].astype(np.uint8),
    }
    if record.logp:
        log_p_RMN = rows.log_p(ids_RMN.view(R, M * N)).reshape(R, M, N)
        columns["tlp_S"] = log_p_RMN[to_numpy(new_RMN, np.bool_)][order]
    return columns
