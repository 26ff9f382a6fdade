"""The records of `sampler` in plain torch, for logits that live on a GPU.

Same definition, same uniforms, same order of ids; the tests hold the two against each other. Where
a running sum is within rounding of a threshold the two may pick neighbouring ids.

Shape letters: R rows, W width of a row with its padding, V vocabulary, B blocks of S ids, C
candidates, P pool of ids that may enter the head, N draws, U uniforms.
"""

import numpy as np
import torch
from torch import Tensor

from stages.config import Record
from stages.scoring import kernels
from stages.scoring.sampler import Records, check_limits, check_status, known_tau

_S = kernels.BLOCK


def sample(
    z_RW: Tensor, vocab_size: int, tok_R: Tensor, cand_RC: Tensor, u_RU: Tensor, record: Record
) -> Records:
    """Records of R rows of logits; arguments and errors as for `sampler.sample`.

    Args:
        z_RW: [R, W] float32 on any device; the other tensors are on the same one.
        tok_R, cand_RC: int64.
        u_RU: float64.
    """
    check_limits(record, cand_RC.shape[1])
    z_RV = z_RW[:, :vocab_size]
    if record.temperature != 1.0:
        z_RV = z_RV / record.temperature
    top_R1 = z_RV.amax(dim=1, keepdim=True)
    d_RV = z_RV - top_R1
    e_RBS = _blocks(d_RV.exp())
    Z_R = e_RBS.sum(dim=(1, 2), dtype=torch.float64)
    # 0 * -87 for a -inf logit, not 0 * -inf
    dot_R = (e_RBS.flatten(1)[:, :vocab_size] * d_RV.clamp(min=-87.0)).sum(1, dtype=torch.float64)
    d_tok_R = d_RV.gather(1, tok_R[:, None])[:, 0].double()
    finite_R = top_R1[:, 0].isfinite() & Z_R.isfinite()
    status_R = torch.where(d_tok_R == -torch.inf, kernels.IMPOSSIBLE, kernels.OK)
    check_status(_numpy(torch.where(finite_R, status_R, kernels.NOT_FINITE), np.uint8))
    lp_R = _numpy(d_tok_R - Z_R.log(), np.float32)
    ent_R = _numpy(Z_R.log() - dot_R / Z_R, np.float32)
    if record.kind == "sampled":
        return Records(lp_R, ent_R)
    if record.kind == "counts":
        nu_R, ids_E, cnt_E = _counts(e_RBS, Z_R, u_RU, record.draws)
        return Records(lp_R, ent_R, nu_R=nu_R, ids_E=ids_E, cnt_E=cnt_E)
    tau = known_tau(record)
    nu_R, nh_R, rest_R, ids_E, hlp_H = _head_tail(e_RBS, d_RV, Z_R, cand_RC, u_RU, tau)
    return Records(lp_R, ent_R, nu_R=nu_R, nh_R=nh_R, rest_R=rest_R, ids_E=ids_E, hlp_H=hlp_H)


def _blocks(e_RV: Tensor) -> Tensor:
    """[R, B, S]: the row in blocks, the last one filled up with zeros."""
    R, V = e_RV.shape
    B = -(-V // _S)
    if V < B * _S:
        e_RV = torch.nn.functional.pad(e_RV, (0, B * _S - V))
    return e_RV.view(R, B, _S)


def _numpy(tensor: Tensor, dtype: type) -> np.ndarray:
    return tensor.cpu().numpy().astype(dtype)


# ---------------------------------------------------------------------------------------------
# Draws


def _locate(e_RBS: Tensor, threshold_RN: Tensor) -> Tensor:
    """Ids [R, N] with C(i-1) <= threshold < C(i), C the running sum of e; see `kernels`."""
    cdf_RB = e_RBS.sum(-1, dtype=torch.float64).cumsum(1)
    last_R1 = (e_RBS.sum(-1) > 0).long().cumsum(1).argmax(1, keepdim=True)
    b_RN = torch.searchsorted(cdf_RB, threshold_RN, right=True).minimum(last_R1)
    base_RN = torch.nn.functional.pad(cdf_RB, (1, 0)).gather(1, b_RN)
    e_RNS = e_RBS.gather(1, b_RN[:, :, None].expand(-1, -1, _S))
    cdf_RNS = e_RNS.double().cumsum(-1) + base_RN[:, :, None]
    inside_RN = (cdf_RNS <= threshold_RN[:, :, None]).sum(-1)
    last_RN = (e_RNS > 0).long().cumsum(-1).argmax(-1)
    return b_RN * _S + inside_RN.minimum(last_RN)


def _counts(
    e_RBS: Tensor, Z_R: Tensor, u_RU: Tensor, draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if u_RU.shape[1] == 1:
        k_N = torch.arange(draws, device=u_RU.device)
        threshold_RN = (k_N + u_RU) * Z_R[:, None] / draws
    else:
        threshold_RN = u_RU.sort(dim=1).values * Z_R[:, None]
    ids_RN = _locate(e_RBS, threshold_RN)
    new_RN = torch.ones_like(ids_RN, dtype=torch.bool)
    new_RN[:, 1:] = ids_RN[:, 1:] != ids_RN[:, :-1]
    cnt_E = _numpy(torch.bincount(new_RN.flatten().long().cumsum(0) - 1), np.int64)
    ids_E = _numpy(ids_RN[new_RN], np.int64)
    nu_R = _numpy(new_RN.sum(1), np.int64)
    order = np.lexsort((ids_E, -cnt_E, np.repeat(np.arange(len(nu_R)), nu_R)))
    return nu_R.astype(np.uint8), ids_E[order].astype(np.uint32), cnt_E[order].astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Head and tail


def _head_tail(
    e_RBS: Tensor, d_RV: Tensor, Z_R: Tensor, cand_RC: Tensor, u_R1: Tensor, tau: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """nu_R, nh_R, rest_R, ids_E, hlp_H of the rows; e_RBS is used up."""
    V = d_RV.shape[1]
    e_RV = e_RBS.flatten(1)[:, :V]
    # Heads take ids from the top; a candidate counts as more than any e, so none is listed twice.
    P = min(V, cand_RC.shape[1] + int(1 / tau) + 2)
    key_RP, ids_RP = e_RV.scatter(1, cand_RC, 2.0).topk(P, dim=1)
    e_RP = e_RV.gather(1, ids_RP)
    e_RV.scatter_(1, ids_RP, 0.0)
    outside_R = e_RV.sum(1, dtype=torch.float64)
    head_RP, n_R = _settle(e_RP.double(), key_RP == 2.0, outside_R, tau * Z_R, Z_R)
    e_RV.scatter_(1, ids_RP, e_RP.masked_fill(head_RP, 0.0))
    mass_R = e_RV.sum(1, dtype=torch.float64)
    tail_RN = _draw_tail(e_RBS, mass_R, n_R, u_R1)

    logit_RP = d_RV.gather(1, ids_RP)
    log_p_RP = (logit_RP.double() - Z_R.log()[:, None]).clamp(min=kernels.LOG_FLOOR)
    head, ids = _numpy(head_RP, np.bool_), _numpy(ids_RP, np.int64)
    order = np.lexsort((ids, -_numpy(logit_RP, np.float32), ~head), axis=-1)
    ids, hlp = (np.take_along_axis(x, order, 1) for x in (ids, _numpy(log_p_RP, np.float32)))
    nh, n = head.sum(1), _numpy(n_R, np.int64)
    in_head, in_tail = np.arange(P) < nh[:, None], np.arange(tail_RN.shape[1]) < n[:, None]
    used = np.concatenate([in_head, in_tail], 1)
    return (
        (nh + n).astype(np.uint8),
        nh.astype(np.uint8),
        _numpy((mass_R / Z_R).clamp(max=1.0), np.float32),
        np.concatenate([ids, tail_RN], 1)[used].astype(np.uint32),
        hlp[in_head],
    )


def _settle(
    e_RP: Tensor, forced_RP: Tensor, outside_R: Tensor, tau_R: Tensor, Z_R: Tensor
) -> tuple[Tensor, Tensor]:
    """Head [R, P] and number of tail draws [R]; `kernels._settle` on all rows at once.

    Args:
        e_RP, forced_RP: The ids that may enter the head, and which of them must.
        outside_R: Sum of e over all others.
        tau_R: tau in units of e.
    """
    head_RP = forced_RP | (e_RP >= tau_R[:, None])
    while True:
        mass_R = outside_R + e_RP.masked_fill(head_RP, 0.0).sum(1)
        drawn_R = mass_R > kernels.REST_FLOOR * Z_R
        n_R = (mass_R / tau_R).ceil().long() * drawn_R
        above_RP = (e_RP > (mass_R / n_R)[:, None]) & ~head_RP & drawn_R[:, None]
        if not above_RP.any():
            return head_RP, n_R
        head_RP = head_RP | above_RP


def _draw_tail(e_RBS: Tensor, mass_R: Tensor, n_R: Tensor, u_R1: Tensor) -> np.ndarray:
    """[R, max n]: in row r the first n[r] are distinct ids, ascending, drawn systematically."""
    N = int(n_R.max()) if len(n_R) else 0
    if N == 0:
        return np.zeros((len(n_R), 0), np.int64)
    k_N = torch.arange(N, device=n_R.device)
    threshold_RN = (k_N + u_R1) * mass_R[:, None] / n_R.clamp(min=1)[:, None]
    ids_RN = _numpy(_locate(e_RBS, threshold_RN), np.int64)
    n = _numpy(n_R, np.int64)
    twice = (np.diff(ids_RN, axis=1) <= 0) & (np.arange(1, N) < n[:, None])
    for r in np.flatnonzero(twice.any(1)):  # by rounding; the kernel takes the next id instead
        e_V = _numpy(e_RBS[r].flatten(), np.float32)
        ids_RN[r, : n[r]] = kernels.locate_once(e_V, _numpy(threshold_RN[r, : n[r]], np.float64))
    return ids_RN
