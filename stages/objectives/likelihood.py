"""Objectives that raise the student's likelihood of given tokens.

Shape letters as in `tensors`: T positions, E entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import ONE_TOKEN, Guarantee, Kept, Objective, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords


class CrossEntropy(Objective):
    """-log q of the realised token: supervised fine-tuning; reads no teacher."""

    name: Literal["cross_entropy"] = "cross_entropy"

    reads_teacher = False
    aims_at_forward_kl = True

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Exact, even without a teacher."""
        return Guarantee("exact", "maximum likelihood of the stored tokens; no teacher is read")

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_E` is not used."""
        return Terms(-logq_T, {})


class ForwardKL(Objective):
    """KL(p || q) from unbiased weights: sum_i w_i (-log q_i) - H(p).

    The gradient is linear in w, so E[w] = p makes it unbiased (arXiv 2503.16870, section on random
    sampling knowledge distillation). The teacher's entropy is a constant of the position, stored
    with the record; without it the value would be a cross-entropy. Estimating it from w instead
    would bias the logged value upwards, since E[sum w log w] > sum p log p.
    """

    name: Literal["forward_kl"] = "forward_kl"

    reads_draws = "always"
    aims_at_forward_kl = True

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Unbiased where the draw is."""
        if kept.drawn:
            return Guarantee(
                "unbiased", "linear in weights whose expectation is the teacher's probability"
            )
        if kept.head:
            return Guarantee(
                "biased",
                "renormalised over the k ids: its optimum gives them all the mass and is "
                "overconfident",
            )
        return ONE_TOKEN

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; a single position may be negative, its expectation is not."""
        ent_T = self.required(records.ent_T, "ent")
        cross_T = records.sum_entries(-records.weight_E * logq_E)
        return Terms(cross_T - ent_T, {"cross_entropy": cross_T.detach()})
