"""Records of kind `head_tail`: every id with p >= tau exactly, and a sample of the rest.

What is drawn and why it is unbiased is in the docstring of `sampler_kernels.head_tail_rows`.

Shape letters: R rows, V vocabulary, W its width with padding, B blocks of S ids, C candidates, P
pool of ids that may enter the head, N draws, M copies, K room for the entries of a row, E entries.
"""

import numpy as np
import torch
from torch import Tensor

from stages.config.record_kinds import HeadTail
from stages.scoring.drawn import Array, LogitRows, used
from stages.scoring.rows_torch import Inverse, TorchRows, to_numpy
from stages.scoring.sampler_kernels import REST_FLOOR, ROOM, head_tail_rows, locate_once


def on_cpu(rows: LogitRows, cand_RC: Array, u_RM: Array, record: HeadTail) -> dict[str, Array]:
    """The columns of R rows; see `sampler.on_cpu`."""
    R, M = len(rows.z_RW), record.copies
    nu_RM, nh_R = np.zeros((R, M), np.uint8), np.zeros(R, np.uint8)
    rest_R = np.empty(R, np.float32)
    ids_RK = np.empty((R, M * ROOM), np.uint32)
    tau, floor = record.known_tau, record.tail_floor
    head_tail_rows(rows, cand_RC, tau, floor, u_RM, nu_RM, nh_R, rest_R, ids_RK)
    row_E, slot_E = used(nu_RM.sum(axis=1, dtype=np.int64) - (M - 1) * nh_R.astype(np.int64))
    ids_E = ids_RK[row_E, slot_E]
    head_E = slot_E < nh_R[row_E]
    row_H, ids_H = row_E[head_E], ids_E[head_E]
    ids_H = ids_H[np.lexsort((ids_H, -rows.z_RW[row_H, ids_H], row_H))]
    ids_E[head_E] = ids_H
    hlp_H = rows.stored_log_p(row_H, ids_H)
    columns = {"nu_RM": nu_RM, "nh_R": nh_R, "rest_R": rest_R, "ids_E": ids_E, "hlp_H": hlp_H}
    if record.logp:
        columns["tlp_S"] = rows.stored_log_p(row_E[~head_E], ids_E[~head_E])
    return columns


def on_gpu(rows: TorchRows, cand_RC: Tensor, u_RM: Tensor, record: HeadTail) -> dict[str, Array]:
    """The same in torch; overwrites `rows.e_RBS`. See `sampler.on_gpu`."""
    tau, V = record.known_tau, rows.z_RV.shape[1]
    e_RV = rows.e_RBS.flatten(1)[:, :V]
    # Heads take ids from the top; a candidate counts as more than any e, so none is listed twice.
    P = min(V, cand_RC.shape[1] + int(1 / tau) + 2)
    key_RP, ids_RP = e_RV.scatter(1, cand_RC, 2.0).topk(P, dim=1)
    e_RP = e_RV.gather(1, ids_RP)
    e_RV.scatter_(1, ids_RP, 0.0)
    outside_R = e_RV.sum(1, dtype=torch.float64)
    head_RP, n_R = _settle(e_RP.double(), key_RP == 2.0, outside_R, tau * rows.Z_R, rows.Z_R)
    e_RV.scatter_(1, ids_RP, e_RP.masked_fill(head_RP, 0.0))
    mass_R = e_RV.sum(1, dtype=torch.float64)
    least_R = torch.where(n_R == 1, record.tail_floor * rows.Z_R, 0.0)
    n_RM = n_R[:, None] * (u_RM * least_R[:, None] < mass_R[:, None])
    step_R = torch.maximum(mass_R, least_R) / n_R.clamp(min=1)
    tail_RMN = _draw_tails(rows.e_RBS, step_R, n_RM, u_RM)

    logit_RP = to_numpy(rows.z_RV.gather(1, ids_RP), np.float32)
    head, ids, hlp = to_numpy(head_RP, np.bool_), to_numpy(ids_RP, np.int64), rows.log_p(ids_RP)
    order = np.lexsort((ids, -logit_RP, ~head), axis=-1)
    ids, hlp = np.take_along_axis(ids, order, 1), np.take_along_axis(hlp, order, 1)
    nh, n = head.sum(1), to_numpy(n_RM, np.int64)
    R, M, N = tail_RMN.shape
    in_head = np.arange(P) < nh[:, None]
    in_tails = (np.arange(N) < n[:, :, None]).reshape(R, M * N)
    tails = tail_RMN.reshape(R, M * N)
    used = np.concatenate([in_head, in_tails], 1)
    columns = {
        "nu_RM": (nh[:, None] + n).astype(np.uint8),
        "nh_R": nh.astype(np.uint8),
        "rest_R": to_numpy((mass_R / rows.Z_R).clamp(max=1.0), np.float32),
        "ids_E": np.concatenate([ids, tails], 1)[used].astype(np.uint32),
        "hlp_H": hlp[in_head],
    }
    if record.logp:
        columns["tlp_S"] = rows.log_p(torch.from_numpy(tails).to(u_RM.device))[in_tails]
    return columns


def _settle(
    e_RP: Tensor, forced_RP: Tensor, outside_R: Tensor, tau_R: Tensor, Z_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Head [R, P] and number of tail draws [R]; `sampler_kernels._settle` on all rows at once.

    Args:
        e_RP, forced_RP: The ids that may enter the head, and which of them must.
        outside_R: Sum of e over all others.
        tau_R: tau in units of e.
    """
    head_RP = forced_RP | (e_RP >= tau_R[:, None])
    while True:
        mass_R = outside_R + e_RP.masked_fill(head_RP, 0.0).sum(1)
        drawn_R = mass_R > REST_FLOOR * Z_R
        n_R = (mass_R / tau_R).ceil().long() * drawn_R
        above_RP = (e_RP > (mass_R / n_R)[:, None]) & ~head_RP & drawn_R[:, None]
        if not above_RP.any():
            return head_RP, n_R
        head_RP = head_RP | above_RP


def _draw_tails(e_RBS: Tensor, step_R: Tensor, n_RM: Tensor, u_RM: Tensor) -> np.ndarray:
    """[R, M, max n]: of row r and copy m the first n[r, m] are distinct ids, ascending.

    Args:
        e_RBS: The rows, without their heads.
        step_R: Distance between the thresholds at which a tail is drawn.
        n_RM: How many ids are drawn.
        u_RM: The uniforms.
    """
    N, (R, M) = int(n_RM.max()) if len(n_RM) else 0, u_RM.shape
    if N == 0:
        return np.zeros((R, M, 0), np.int64)
    invert = Inverse.of(e_RBS)
    k_N = torch.arange(N, device=n_RM.device)
    threshold_RMN = (k_N + u_RM[:, :, None]) * step_R[:, None, None]
    tails = [_draw_tail(invert, threshold_RMN[:, m].contiguous(), n_RM[:, m]) for m in range(M)]
    return np.stack(tails, axis=1)


def _draw_tail(invert: Inverse, threshold_RN: Tensor, n_R: Tensor) -> np.ndarray:
    ids_RN = to_numpy(invert(threshold_RN), np.int64)
    n = to_numpy(n_R, np.int64)
    twice = (np.diff(ids_RN, axis=1) <= 0) & (np.arange(1, ids_RN.shape[1]) < n[:, None])
    for r in np.flatnonzero(twice.any(1)):  # by rounding; the kernel takes the next id instead
        e_V = to_numpy(invert.e_RBS[r].flatten(), np.float32)
        ids_RN[r, : n[r]] = locate_once(e_V, to_numpy(threshold_RN[r, : n[r]], np.float64))
    return ids_RN
