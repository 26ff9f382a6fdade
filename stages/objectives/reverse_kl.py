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

Shape letters as in `tensors`: T positions, E entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import (
    NO_HEAD,
    OUTSIDE_IS_ONE,
    Guarantee,
    Kept,
    Objective,
    Terms,
)
from stages.table import Bound

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords

Form = Literal["corrected", "residual_only", "bucketed"]

MASS_FLOOR = 1e-12
"""Smallest tail mass, of teacher and student, that a logarithm is taken of."""

_NOTHING_LEFT = 1e-6
"""Student tail mass within the rounding error of a float32 log-softmax."""


class ReverseKL(Objective):
    """Reverse KL in one of the forms of this module."""

    name: Literal["reverse_kl"] = "reverse_kl"
    form: Form = "corrected"
    """Bucket plus importance-corrected residual (unbiased), or one of them alone."""
    max_weight: Bound = None
    """Cap on the importance weight q/b: brings bias, how often it binds is logged."""

    @classmethod
    def variants(cls) -> tuple[Objective, ...]:
        """One for each form."""
        return cls(), cls(form="residual_only"), cls(form="bucketed")

    @property
    def label(self) -> str:
        """A row for each form."""
        return f"{self.name}/{self.form}"

    @property
    def weighs_token(self) -> bool:
        """The bucket alone does not read the realised token."""
        return self.form != "bucketed"

    @property
    def cap(self) -> float | None:
        """Largest importance weight."""
        return self.max_weight

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """The bucket is a bound, the realised token makes it unbiased."""
        if self.form == "bucketed":
            return OUTSIDE_IS_ONE if kept.head else NO_HEAD
        if not kept.head:
            return Guarantee(
                "unbiased",
                "no id is stored exactly: the importance-weighted realised token alone, very noisy",
            )
        if self.form == "corrected":
            return Guarantee(
                "unbiased",
                "exact on the stored head, importance-corrected by the realised token outside",
            )
        return Guarantee(
            "unbiased",
            "exact on the stored head, importance-weighted outside, no control variate: noisy",
        )

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistics `bucket`, `covered` and `weight_capped`."""
        covered_T = records.covers_token()
        stats = {"covered": covered_T.to(logq_T.dtype)}
        gap_E = (logq_E - records.logp_E).where(records.exact_E, 0.0)
        q_E = logq_E.exp().where(records.exact_E, 0.0)
        tail_T, tail_gap_T = _tail(records, q_E)
        bucket_T = records.sum_entries(q_E * gap_E) + tail_T
        stats["bucket"] = bucket_T.detach()
        if self.form == "bucketed":
            return Terms(bucket_T, stats)

        # The importance weight of tokens outside S, 0 inside.
        weight_T = (logq_T.detach() - self.required(records.ref_lp_T, "ref_lp")).exp()
        weight_T = weight_T.where(~covered_T, 0.0)
        limit = float("inf") if self.max_weight is None else self.max_weight
        stats["weight_capped"] = (weight_T > limit).to(weight_T.dtype)
        weight_T = weight_T.clamp_max(limit)
        gap_T = logq_T.detach() - self.required(records.lp_T, "lp")
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


def _tail(records: TorchRecords, q_E: Tensor) -> tuple[Tensor, Tensor]:
    """Tail term q_tail A_tail of the bucket and A_tail alone, both [T]."""
    left_T = 1.0 - records.sum_entries(q_E.double())
    q_tail_T = left_T.clamp_min(MASS_FLOOR)
    p_tail_T = records.rest_T.double().clamp_min(MASS_FLOOR)
    gap_T = q_tail_T.log() - p_tail_T.log()
    nothing_T = (records.rest_T <= 0) & (left_T < _NOTHING_LEFT)
    term_T = (q_tail_T * gap_T).where(~nothing_T, 0.0)
    return term_T.to(q_E.dtype), gap_T.to(q_E.dtype)
