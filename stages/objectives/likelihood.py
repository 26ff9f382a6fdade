"""Objectives that raise the student's likelihood of given tokens, or lower it.

The objective of REDI (arXiv 2505.24850) for a right response w and a wrong one l to a prompt is

    -log q(w) / |w|  +  alpha log q(l) / |l|

Here every response counts by itself, and each of its tokens alike; the weight `length` divides by
the length.

Shape letters as in `tensors`: T positions, E entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import ONE_TOKEN, Guarantee, Kept, Objective, Terms
from stages.table import Fraction
from storage.schema import OUTCOME

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


class REDI(Objective):
    """-log q of the tokens of right responses, alpha log q of those of wrong ones.

    Responses that nobody has judged count nothing.
    """

    name: Literal["redi"] = "redi"
    alpha: Fraction = 0.8
    """How much wrong responses count. Their likelihood has no lower bound: with 1 it may fall so
    fast that it takes that of right ones along, so watch `right` in the log."""

    reads_teacher = False

    @property
    def reads_outcome(self) -> bool:
        """Which sign a response has."""
        return True

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Exact, even without a teacher."""
        return Guarantee("exact", "the published objective of responses and outcomes as stored")

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistics `right` and `wrong`, its two parts; no `logq_E`."""
        outcome_T = self.required(records.outcome_T, "outcome")
        right_T = outcome_T == OUTCOME["right"]
        wrong_T = ~right_T & (outcome_T != OUTCOME["unknown"])
        right_loss_T = -logq_T.where(right_T, 0.0)
        wrong_loss_T = self.alpha * logq_T.where(wrong_T, 0.0)
        stats = {"right": right_loss_T.detach(), "wrong": wrong_loss_T.detach()}
        return Terms(right_loss_T + wrong_loss_T, stats)


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
