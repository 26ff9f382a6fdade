"""Records of kind `top_k`: the K likeliest ids, and the mass of all others as one number.

Shape letters: R rows, V vocabulary, K ids.
"""

import numpy as np
import torch
from torch import Tensor

from stages.config.record_kinds import TopK
from stages.scoring.drawn import Array, LogitRows
from stages.scoring.rows_torch import TorchRows, to_numpy
from stages.scoring.sampler_kernels import top_k_rows


def on_cpu(rows: LogitRows, _: Array, __: Array, record: TopK) -> dict[str, Array]:
    """The columns of R rows; see `sampler.on_cpu`."""
    R, K = len(rows.z_RW), min(record.k, rows.V)
    rest_R, ids_RK = np.empty(R, np.float32), np.zeros((R, K), np.uint32)
    top_k_rows(rows, rest_R, ids_RK)
    full_R = np.full(R, K, np.uint8)
    hlp_H = rows.stored_log_p(np.repeat(np.arange(R), K), ids_RK.ravel())
    return {
        "nu_RM": full_R[:, None],
        "nh_R": full_R,
        "rest_R": rest_R,
        "ids_E": ids_RK.ravel(),
        "hlp_H": hlp_H,
    }


def on_gpu(rows: TorchRows, _: Tensor, __: Tensor, record: TopK) -> dict[str, Array]:
    """The same in torch; overwrites `rows.e_RBS`. See `sampler.on_gpu`."""
    z_RV = rows.z_RV
    R, V = z_RV.shape
    K = min(record.k, V)
    ids_RK = _lowest_of_ties(z_RV, z_RV.topk(K, dim=1).indices).sort(dim=1).values
    order_RK = z_RV.gather(1, ids_RK).sort(dim=1, descending=True, stable=True).indices
    ids_RK = ids_RK.gather(1, order_RK)
    hlp = rows.log_p(ids_RK)
    outside_RV = rows.e_RBS.flatten(1)[:, :V].scatter_(1, ids_RK, 0.0)
    mass_R = outside_RV.sum(1, dtype=torch.float64)
    full = np.full(R, K, np.uint8)
    return {
        "nu_RM": full[:, None],
        "nh_R": full,
        "rest_R": to_numpy((mass_R / rows.Z_R).clamp(max=1.0), np.float32),
        "ids_E": to_numpy(ids_RK, np.uint32).ravel(),
        "hlp_H": hlp.ravel(),
    }


def _lowest_of_ties(z_RV: Tensor, ids_RK: Tensor) -> Tensor:
    """The same ids, but of those equal to the least of them the lowest; `topk` takes any."""
    least_R1 = z_RV.gather(1, ids_RK).amin(dim=1, keepdim=True)
    places_R = (z_RV.gather(1, ids_RK) == least_R1).sum(1)
    ids_RK = ids_RK.clone()
    for r in torch.nonzero((z_RV == least_R1).sum(1) > places_R)[:, 0].tolist():
        tied = torch.nonzero(z_RV[r] == least_R1[r])[: places_R[r], 0]
        ids_RK[r] = torch.cat([torch.nonzero(z_RV[r] > least_R1[r])[:, 0], tied])
    return ids_RK
