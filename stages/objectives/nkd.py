"""Normalised distillation, NKD (arXiv 2303.13005): a target id, and the distribution of the others.

Distillation by cross-entropy counts the ids beside a target t by the mass 1 - p_t that the teacher
leaves them: almost nothing where it is sure. NKD takes the target out and normalises the others on
both sides, so that they count gamma whatever p_t is:

    -p_t log q_t  -  gamma sum_{i != t} p_i / (1 - p_t)  log( q_i / (1 - q_t) )

The second part is linear in the p_i, and p_t is stored, so weights whose expectation is p_i make it
unbiased. It is a cross-entropy: its value at q = p is not 0.

The target is the label in the paper. On stored responses it is the realised token, or the teacher's
likeliest id, which needs a record with a head.

Shape letters as in `tensors`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.objectives.objective import ONE_TOKEN, Guarantee, Kept, Objective, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords

_ROUNDING = 2.0**-17
"""Mass beside the target below which a float32 log-softmax knows too little of how it is spread."""

_TINY = 1e-12
"""Smallest mass that is divided by."""


class NKD(Objective):
    """Cross-entropy of a target id, and of the distributions of all others, each normalised."""

    name: Literal["nkd"] = "nkd"
    target: Literal["teacher", "token"] = "teacher"
    """`teacher`: its likeliest id. `token`: the realised one, which is the label where the data are
    the teacher's answers."""
    gamma: Annotated[float, Field(ge=0.0)] = 1.5
    """Weight of the other ids (the paper's default)."""

    reads_draws = "always"

    @classmethod
    def variants(cls) -> tuple[Objective, ...]:
        """One for each target."""
        return cls(), cls(target="token")

    @property
    def label(self) -> str:
        """A row for each target."""
        return f"{self.name}/{self.target}"

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Unbiased where the draw is and the target is known."""
        if self.target == "teacher" and not kept.head:
            return Guarantee(
                "refused", "no id is stored exactly, so the teacher's likeliest one is not known"
            )
        if not kept.drawn:
            return (
                Guarantee("biased", "the other ids are those among the k, renormalised")
                if kept.head
                else ONE_TOKEN
            )
        if kept.head:
            return Guarantee(
                "unbiased",
                "p of the target is stored, and all else is linear in weights whose expectation is "
                "the teacher's probability",
            )
        return Guarantee(
            "unbiased",
            "linear in weights whose expectation is the teacher's probability; noisy where the "
            "teacher is sure of the token, since what is drawn beside it counts 1 / (1 - p)",
        )

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistics `target` and `others`, its two parts."""
        if self.target == "token":
            target_E = records.ids_E == records.tok_T[records.row_E]
            logp_T = self.required(records.lp_T, "lp")
            there_T = logp_T > -math.inf
        else:
            target_E = records.likeliest()
            logp_T = records.sum_entries(records.logp_E.where(target_E, 0.0))
            logq_T = records.sum_entries(logq_E.where(target_E, 0.0))
            there_T = records.sum_entries(target_E.to(logq_T.dtype)) > 0
        target_T = (-logp_T.exp() * logq_T).where(there_T, 0.0)

        # 1 - p_t without cancellation where the target is in the head.
        other_E = records.exact_E & ~target_E
        beside_T = records.rest_T + records.sum_entries(records.logp_E.exp().where(other_E, 0.0))
        in_head_T = records.sum_entries((target_E & records.exact_E).to(logq_T.dtype)) > 0
        p_rest_T = beside_T.where(in_head_T, -logp_T.expm1()).clamp_min(_TINY)
        surest = math.log1p(-(_ROUNDING if logq_T.element_size() < 8 else _TINY))
        open_T = there_T & (logq_T < surest)
        logq_rest_T = (-logq_T.clamp_max(surest).expm1()).log()

        share_E = (records.weight_E / p_rest_T[records.row_E]).where(~target_E, 0.0)
        others_T = records.sum_entries(share_E * (logq_rest_T[records.row_E] - logq_E))
        others_T = others_T.where(open_T, 0.0) * self.gamma
        stats = {"target": target_T.detach(), "others": others_T.detach()}
        return Terms(target_T + others_T, stats)
