"""The teacher's distribution as far as a record tells it: a symbol per known id, one for the rest.

A divergence of the form  constant + sum_v h(p_v, q_v)  with h(0, q) = 0 is a sum over ids that the
teacher gives mass to, and a record holds some of those. Two readings, chosen by what is stored at
the position and never by the outcome of a draw:

    Horvitz-Thompson   log p is stored for ids that were *drawn*. Each counts w / p times, and
                       E[w] = p makes the sum unbiased (Horvitz and Thompson 1952). Ids stored
                       without randomness count once.
    bucket             log p is stored for the head only. Everything else is one symbol, whose mass
                       is known on both sides. Coarsening lowers every f-divergence: a lower bound.

Both are `sum_s mass_s h(p_s, q_s) / p_s`. So objectives hand over h / p, a function of
log p - log q that stays finite where p underflows, and need not know which reading it is.

Shape letters: T positions, E entries, S = E + T symbols (the entries, then one rest per position).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.objectives.tensors import TorchRecords


@dataclass(frozen=True)
class Symbols:
    """Known symbols of T positions; those without mass are present and count nothing."""

    mass_S: Tensor
    """Teacher mass a symbol stands for; an unbiased estimate of its probability where drawn."""
    logp_S: Tensor
    """Teacher log-probability; finite everywhere."""
    logq_S: Tensor
    """Student log-probability; carries the gradient."""
    row_S: Tensor
    positions: int

    def sum(self, values_S: Tensor) -> Tensor:
        """Sum over the symbols of each position: [S] -> [T]."""
        return values_S.new_zeros(self.positions).index_add(0, self.row_S, values_S)

    def softmax(self, scores_S: Tensor) -> tuple[Tensor, Tensor]:
        """Shares exp(score) / Z within each position [S], and log Z [T]; -inf counts nothing."""
        top_T = scores_S.new_full((self.positions,), -torch.inf)
        top_T = top_T.scatter_reduce(0, self.row_S, scores_S, "amax")
        parts_S = (scores_S - top_T[self.row_S]).exp()
        z_T = self.sum(parts_S)
        return parts_S / z_T[self.row_S], top_T + z_T.log()


def known_symbols(logq_E: Tensor, records: TorchRecords) -> Symbols:
    """All ids with a stored log p; where none of them was drawn, the rest of the mass too."""
    known_E = ~records.logp_E.isnan()
    drawn_T = records.sum_entries((known_E & ~records.exact_E).to(logq_E.dtype)) > 0
    mass_E = torch.where(records.exact_E, records.logp_E.exp(), records.weight_E)
    rest_T = torch.where(drawn_T, 0.0, records.rest_T)
    return _assemble(logq_E, records, known_E, mass_E, rest_T)


def head_symbols(logq_E: Tensor, records: TorchRecords) -> Symbols:
    """The ids stored without randomness, and the rest of the mass."""
    return _assemble(logq_E, records, records.exact_E, records.logp_E.exp(), records.rest_T)


def _assemble(
    logq_E: Tensor, records: TorchRecords, used_E: Tensor, mass_E: Tensor, rest_T: Tensor
) -> Symbols:
    here = torch.arange(len(records), device=logq_E.device)
    floor = torch.finfo(logq_E.dtype).tiny
    return Symbols(
        mass_S=torch.cat([torch.where(used_E, mass_E, 0.0), rest_T]),
        logp_S=torch.cat(
            [torch.where(used_E, records.logp_E, 0.0), records.rest_T.clamp_min(floor).log()]
        ),
        logq_S=torch.cat([logq_E, _log_rest(logq_E, records)]),
        row_S=torch.cat([records.row_E, here]),
        positions=len(records),
    )


def _log_rest(logq_E: Tensor, records: TorchRecords) -> Tensor:
    """log of the student's mass outside the head, [T].

    Formed in float64. Below the rounding error of the log-softmax the mass is noise: it is floored
    there, and keeps its gradient, so that a student without a tail is still told to grow one.
    """
    q_E = torch.where(records.exact_E, logq_E.double().exp(), 0.0)
    rest_T = 1.0 - records.sum_entries(q_E)
    floored_T = rest_T.clamp_min(8.0 * torch.finfo(logq_E.dtype).eps)
    return (rest_T + (floored_T - rest_T).detach()).log().to(logq_E.dtype)
