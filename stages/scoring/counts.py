"""Records of kind `counts`: how often each id was drawn in N draws.

Shape letters: R rows, M copies, N draws, U uniforms, K room for the entries of a row, E entries.
"""

import numpy as np
import torch
from torch import Tensor

from stages.config.record_kinds import Counts
from stages.scoring.drawn import Array, LogitRows, used
from stages.scoring.rows_torch import Inverse, TorchRows, to_numpy
from stages.scoring.sampler_kernels import counts_rows


def on_cpu(rows: LogitRows, _: Array, u_RU: Array, record: Counts) -> dict[str, Array]:
    """The columns of R rows; see `sampler.on_cpu`."""
    R, M, N = len(rows.z_RW), record.copies, record.draws
    u_RMN = u_RU.reshape(R, M, u_RU.shape[1] // M)
    systematic = record.sampler == "systematic"
    u_RMN = (np.arange(N) + u_RMN) / N if systematic else np.sort(u_RMN, axis=2)
    nu_RM = np.zeros((R, M), np.uint8)
    ids_RK, cnt_RK = np.empty((R, M * N), np.uint32), np.empty((R, M * N), np.uint8)
    counts_rows(rows, u_RMN, nu_RM, ids_RK, cnt_RK)
    row_E, slot_E = used(nu_RM.sum(axis=1, dtype=np.int64))
    ids_E, cnt_E = ids_RK[row_E, slot_E], cnt_RK[row_E, slot_E]
    order_E = _by_count(nu_RM, ids_E, cnt_E)
    ids_E = ids_E[order_E]
    columns = {"nu_RM": nu_RM, "ids_E": ids_E, "cnt_E": cnt_E[order_E]}
    if record.logp:  # sorting leaves entries in their row
        columns["tlp_S"] = rows.stored_log_p(row_E, ids_E)
    return columns


def on_gpu(rows: TorchRows, _: Tensor, u_RU: Tensor, record: Counts) -> dict[str, Array]:
    """The same in torch; see `sampler.on_gpu`."""
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
    cnt_E = to_numpy(torch.bincount(new_RMN.flatten().long().cumsum(0) - 1), np.uint8)
    ids_E = to_numpy(ids_RMN[new_RMN], np.uint32)
    nu_RM = to_numpy(new_RMN.sum(2), np.uint8)
    order_E = _by_count(nu_RM, ids_E, cnt_E)
    columns = {"nu_RM": nu_RM, "ids_E": ids_E[order_E], "cnt_E": cnt_E[order_E]}
    if record.logp:
        log_p_RMN = rows.log_p(ids_RMN.view(R, M * N)).reshape(R, M, N)
        columns["tlp_S"] = log_p_RMN[to_numpy(new_RMN, np.bool_)][order_E]
    return columns


def _by_count(nu_RM: Array, ids_E: Array, cnt_E: Array) -> Array:
    """Order of the entries: in each copy by descending count, equal ones by ascending id."""
    copy_E = np.repeat(np.arange(nu_RM.size), nu_RM.ravel())
    return np.lexsort((ids_E, -cnt_E.astype(np.int16), copy_E))
