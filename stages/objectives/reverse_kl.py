"""Reverse KL, KL(q || p), from sparse records and one realised token.

Let S be the ids whose teacher log-probability is stored exactly, chosen without looking at the
realised token a; b(a) the probability with which a was drawn; A(v) = log q(v) - log p(v); and
A_tail the same for all of the vocabulary outside S taken as one symbol. By the chain rule of KL

    grad KL = sum_S q A grad log q  +  sum_{not S} q A grad log q

and the second sum is either estimated from a (weight q/b, support of b required) or split into
A_tail grad q(not S), which is known, and a remainder A - A_tail, which a estimates:

    corrected       sum_S q A + q_tail A_tail  +  1[a not in S] sg[q/b (A(a) - A_tail)] log q(a)
    bucketed        sum_S q A + q_tail A_tail                                     (a lower bound)
    residual_only   sum_S sg[q A] log q        +  1[a not in S] sg[q/b A(a)] log q(a)

sg holds its argument constant. `corrected` and `residual_only` have the expected gradient of the
full KL at this context; in `corrected` the bucket is a control variate, and where S is empty
(records without exact ids) both reduce to the plain importance-weighted estimate. The loss *value*
is the matching estimate of KL(q || p) itself, not the surrogate that is differentiated.

Never do the obvious thing of renormalising q and the drawn weights on a sampled support: log w is
not an unbiased log p, and the optimum of that loss is a nearly uniform student. A test shows it.

Numerics. q_tail = 1 - sum_S q is formed in float64 and floored; the stored teacher mass `rest` is
floored at 1e-12, which bounds A_tail by about 27.6 nats where the teacher's tail underflowed. The
tail term carries a factor q_tail, so neither floor can move the gradient by more than q_tail times
the error in A_tail. Where nothing is outside S on either side, the term is dropped.

Shape letters as in `records`: T positions, E entries.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stages.objectives.tensors import Constant, Terms, TorchRecords, required

Form = Literal["corrected", "bucketed", "residual_only"]

MASS_FLOOR = 1e-12
"""Smallest tail mass, of teacher and student, that a logarithm is taken of."""

_NOTHING_LEFT = 1e-6
"""Student tail mass within the rounding error of a float32 log-softmax."""


@dataclass(frozen=True)
class ReverseKL(Constant):
    """Reverse KL in one of the forms of this module."""

    temperature: float = 1.0
    form: Form = "corrected"
    max_weight: float | None = None
    """Cap on the importance weight q/b: brings bias; the statistic `weight_capped` says when."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistics `bucket`, `covered` and `weight_capped`."""
        covered_T = records.covers_token()
        stats = {"covered": covered_T.to(logq_T.dtype)}
        gap_E = torch.where(records.exact_E, logq_E - records.logp_E, 0.0)
        q_E = torch.where(records.exact_E, logq_E.exp(), 0.0)
        tail_T, tail_gap_T = _tail(records, q_E)
        bucket_T = records.sum_entries(q_E * gap_E) + tail_T
        stats["bucket"] = bucket_T.detach()
        if self.form == "bucketed":
            return Terms(bucket_T, stats)

        weight_T, capped_T = self._weight(logq_T, covered_T, records)
        stats["weight_capped"] = capped_T
        gap_T = logq_T.detach() - required(records.lp_T, "lp", "reverse_kl")
        if self.form == "corrected":
            residual_T = weight_T * (gap_T - tail_gap_T.detach())
            surrogate_T = bucket_T + residual_T * logq_T
            value_T = bucket_T.detach() + residual_T
        else:
            residual_T = weight_T * gap_T
            head_E = (q_E * gap_E).detach()
            surrogate_T = records.sum_entries(head_E * logq_E) + residual_T * logq_T
            value_T = records.sum_entries(head_E) + residual_T
        # The value to be logged, with the gradient of the surrogate.
        return Terms(value_T + surrogate_T - surrogate_T.detach(), stats)

    def _weight(
        self, logq_T: Tensor, covered_T: Tensor, records: TorchRecords
    ) -> tuple[Tensor, Tensor]:
        """Importance weight of tokens outside S, 0 inside, and where the cap bound; both [T]."""
        ref_lp_T = required(records.ref_lp_T, "ref_lp", "reverse_kl")
        weight_T = torch.where(covered_T, 0.0, (logq_T.detach() - ref_lp_T).exp())
        if self.max_weight is None:
            return weight_T, torch.zeros_like(weight_T)
        capped_T = (weight_T > self.max_weight).to(weight_T.dtype)
        return weight_T.clamp_max(self.max_weight), capped_T


def _tail(records: TorchRecords, q_E: Tensor) -> tuple[Tensor, Tensor]:
    """Tail term q_tail A_tail of the bucket and A_tail alone, both [T]."""
    left_T = 1.0 - records.sum_entries(q_E.double())
    q_tail_T = left_T.clamp_min(MASS_FLOOR)
    p_tail_T = records.rest_T.double().clamp_min(MASS_FLOOR)
    gap_T = q_tail_T.log() - p_tail_T.log()
    nothing_T = (records.rest_T <= 0) & (left_T < _NOTHING_LEFT)
    term_T = torch.where(nothing_T, 0.0, q_tail_T * gap_T)
    return term_T.to(q_E.dtype), gap_T.to(q_E.dtype)
