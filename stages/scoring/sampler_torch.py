"""The records of `sampler` in plain torch, for logits that live on a GPU.

Same definition, same uniforms, same order of ids; the tests hold the two against each other. Where
a running sum is within rounding of a threshold the two may pick neighbouring ids.

Shape letters: R rows, W width of a row with its padding, V vocabulary, B blocks of S ids, C
candidates, P pool of ids that may enter the head, N draws, M copies, U uniforms, K room for the
entries of a row, E entries over all rows.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.config import Record
from stages.scoring import sampler_kernels
from stages.scoring.drawn import (
    LOG_FLOOR,
    Array,
    Records,
    check_limits,
    check_rows,
    known_tau,
    power_ratio,
)

_S = sampler_kernels.BLOCK


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
    rows = _Rows.of(z_RW[:, :vocab_size], record.temperature)
    log_Z_R = rows.Z_R.log()
    # 0 * -87 for a -inf logit, not 0 * -inf
    dot_R = (rows.e_RBS.flatten(1)[:, :vocab_size] * rows.d_RV.clamp(min=-87.0)).sum(
        1, dtype=torch.float64
    )
    d_tok_R = rows.d_RV.gather(1, tok_R[:, None])[:, 0].double()
    lp_R = _numpy(d_tok_R - log_Z_R, np.float32)
    check_rows(_numpy(rows.top_R1[:, 0] + log_Z_R, np.float64), lp_R)
    ratio = power_ratio(record)
    lz_R = None
    if ratio:
        power_R = (rows.d_RV * ratio).exp().sum(1, dtype=torch.float64)
        lz_R = _numpy(power_R.log() - ratio * log_Z_R, np.float32)
    entries: dict[str, Array] = {}
    if record.kind == "counts":
        entries = _counts(rows, u_RU, record)
    elif record.kind == "head_tail":
        entries = _head_tail(rows, cand_RC, u_RU, record)
    elif record.kind == "top_k":
        entries = _top_k(rows, min(record.k, vocab_size))
    return Records(lp_R, _numpy(log_Z_R - dot_R / rows.Z_R, np.float32), lz_R, **entries)


@dataclass(frozen=True)
class _Rows:
    """Rows of logits, and what all kinds of records need of them."""

    z_RV: Tensor
    d_RV: Tensor
    """Tempered logits less the largest one of the row."""
    top_R1: Tensor
    e_RBS: Tensor
    """exp(d) in blocks, the last one filled up with zeros."""
    Z_R: Tensor
    """Sum of e, float64."""

    @classmethod
    def of(cls, z_RV: Tensor, temperature: float) -> "_Rows":
        tempered_RV = z_RV if temperature == 1.0 else z_RV / temperature
        top_R1 = tempered_RV.amax(dim=1, keepdim=True)
        d_RV = tempered_RV - top_R1
        e_RBS = _blocks(d_RV.exp())
        return cls(z_RV, d_RV, top_R1, e_RBS, e_RBS.sum(dim=(1, 2), dtype=torch.float64))

    def log_p(self, ids_RK: Tensor) -> Array:
        """[R, K] log p of these ids as it is stored."""
        d_RK = self.d_RV.gather(1, ids_RK).double()
        return _numpy((d_RK - self.Z_R.log()[:, None]).clamp(min=LOG_FLOOR), np.float32)


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


@dataclass(frozen=True)
class _Inverse:
    """The distribution function of every row, ready to be inverted; see `kernels`."""

    e_RBS: Tensor
    cdf_RB: Tensor
    last_R1: Tensor
    """The last block with any mass."""

    @classmethod
    def of(cls, e_RBS: Tensor) -> "_Inverse":
        cdf_RB = e_RBS.sum(-1, dtype=torch.float64).cumsum(1)
        last_R1 = (e_RBS.sum(-1) > 0).long().cumsum(1).argmax(1, keepdim=True)
        return cls(e_RBS, cdf_RB, last_R1)

    def __call__(self, threshold_RN: Tensor) -> Tensor:
        """Ids [R, N] with C(i-1) <= threshold < C(i), C the running sum of e."""
        b_RN = torch.searchsorted(self.cdf_RB, threshold_RN, right=True).minimum(self.last_R1)
        base_RN = torch.nn.functional.pad(self.cdf_RB, (1, 0)).gather(1, b_RN)
        e_RNS = self.e_RBS.gather(1, b_RN[:, :, None].expand(-1, -1, _S))
        cdf_RNS = e_RNS.double().cumsum(-1) + base_RN[:, :, None]
        inside_RN = (cdf_RNS <= threshold_RN[:, :, None]).sum(-1)
        last_RN = (e_RNS > 0).long().cumsum(-1).argmax(-1)
        return b_RN * _S + inside_RN.minimum(last_RN)


def _counts(rows: _Rows, u_RU: Tensor, record: Record) -> dict[str, Array]:
    R, M, N = len(u_RU), record.copies, record.draws
    u_RMN = u_RU.view(R, M, -1)
    if record.sampler == "systematic":
        u_RMN = (torch.arange(N, device=u_RU.device) + u_RMN) / N
    else:
        u_RMN = u_RMN.sort(dim=2).values
    threshold_RMN = u_RMN * rows.Z_R[:, None, None]
    invert = _Inverse.of(rows.e_RBS)
    ids_RMN = torch.stack([invert(threshold_RMN[:, m].contiguous()) for m in range(M)], dim=1)
    new_RMN = torch.ones_like(ids_RMN, dtype=torch.bool)
    new_RMN[:, :, 1:] = ids_RMN[:, :, 1:] != ids_RMN[:, :, :-1]
    cnt_E = _numpy(torch.bincount(new_RMN.flatten().long().cumsum(0) - 1), np.int64)
    ids_E = _numpy(ids_RMN[new_RMN], np.int64)
    nu_RM = _numpy(new_RMN.sum(2), np.int64)
    order = np.lexsort((ids_E, -cnt_E, np.repeat(np.arange(R * M), nu_RM.ravel())))
    entries = {
        "nu_RM": nu_RM.astype(np.uint8),
        "ids_E": ids_E[order].astype(np.uint32),
        "cnt_E": cnt_E[order].astype(np.uint8),
    }
    if record.logp:
        log_p_RMN = rows.log_p(ids_RMN.view(R, M * N)).reshape(R, M, N)
        entries["tlp_S"] = log_p_RMN[_numpy(new_RMN, np.bool_)][order]
    return entries


# ---------------------------------------------------------------------------------------------
# Heads and tails


def _head_tail(rows: _Rows, cand_RC: Tensor, u_RM: Tensor, record: Record) -> dict[str, Array]:
    """Uses up `rows.e_RBS`."""
    tau, (_, V) = known_tau(record), rows.z_RV.shape
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

    logit_RP = _numpy(rows.z_RV.gather(1, ids_RP), np.float32)
    head, ids, hlp = _numpy(head_RP, np.bool_), _numpy(ids_RP, np.int64), rows.log_p(ids_RP)
    order = np.lexsort((ids, -logit_RP, ~head), axis=-1)
    ids, hlp = np.take_along_axis(ids, order, 1), np.take_along_axis(hlp, order, 1)
    nh, n = head.sum(1), _numpy(n_RM, np.int64)
    R, M, N = tail_RMN.shape
    in_head = np.arange(P) < nh[:, None]
    in_tails = (np.arange(N) < n[:, :, None]).reshape(R, M * N)
    tails = tail_RMN.reshape(R, M * N)
    used = np.concatenate([in_head, in_tails], 1)
    entries = {
        "nu_RM": (nh[:, None] + n).astype(np.uint8),
        "nh_R": nh.astype(np.uint8),
        "rest_R": _numpy((mass_R / rows.Z_R).clamp(max=1.0), np.float32),
        "ids_E": np.concatenate([ids, tails], 1)[used].astype(np.uint32),
        "hlp_H": hlp[in_head],
    }
    if record.logp:
        entries["tlp_S"] = rows.log_p(torch.from_numpy(tails).to(u_RM.device))[in_tails]
    return entries


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
        drawn_R = mass_R > sampler_kernels.REST_FLOOR * Z_R
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
    invert = _Inverse.of(e_RBS)
    k_N = torch.arange(N, device=n_RM.device)
    threshold_RMN = (k_N + u_RM[:, :, None]) * step_R[:, None, None]
    tails = [_draw_tail(invert, threshold_RMN[:, m].contiguous(), n_RM[:, m]) for m in range(M)]
    return np.stack(tails, axis=1)


def _draw_tail(invert: _Inverse, threshold_RN: Tensor, n_R: Tensor) -> np.ndarray:
    ids_RN = _numpy(invert(threshold_RN), np.int64)
    n = _numpy(n_R, np.int64)
    twice = (np.diff(ids_RN, axis=1) <= 0) & (np.arange(1, ids_RN.shape[1]) < n[:, None])
    for r in np.flatnonzero(twice.any(1)):  # by rounding; the kernel takes the next id instead
        e_V = _numpy(invert.e_RBS[r].flatten(), np.float32)
        ids_RN[r, : n[r]] = sampler_kernels.locate_once(
            e_V, _numpy(threshold_RN[r, : n[r]], np.float64)
        )
    return ids_RN


def _top_k(rows: _Rows, K: int) -> dict[str, Array]:
    """Uses up `rows.e_RBS`."""
    z_RV = rows.z_RV
    R, V = z_RV.shape
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
        "rest_R": _numpy((mass_R / rows.Z_R).clamp(max=1.0), np.float32),
        "ids_E": _numpy(ids_RK, np.uint32).ravel(),
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
