"""TAID (arXiv 2501.16937): a target that moves from near the student to the teacher.

The target p_t is proportional to q^(1-t) p^t, with q the student's own distribution held constant,
and the loss is KL(p_t || q). Here t rises in a straight line from `start` at the first step to 1 at
the last; the paper's rule that adapts t to the loss is not implemented.

The normaliser Z = sum_v q_v^(1-t) p_v^t depends on the current student, so no record can hold it.
It is estimated from the same symbols as the target, which makes the target sum to one and the
result biased: consistent in the number of draws where log p of drawn ids is stored, an
approximation by one bucket where only the head is. At t = 1 nothing is left of that: the first
becomes the forward KL, the second its bound.

Shape letters as in `tensors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stages.objectives.f_divergence import ONLY_LINEAR
from stages.objectives.objective import ONE_TOKEN, Guarantee, Kept, Objective, Terms

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords


class TAID(Objective):
    """KL from the interpolated target to the student."""

    name: Literal["taid"] = "taid"
    start: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.4
    """Weight of the teacher in the target at the first step; 1 at the last (arXiv 2501.16937)."""

    reads_draws = "with_logp"

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Biased: the normaliser of the target is estimated."""
        if kept.logp:
            return Guarantee(
                "biased",
                "the target's normaliser depends on the student and is estimated from the same "
                "draws: consistent; unbiased at the end of the schedule, where the target is the "
                "teacher",
            )
        if kept.head:
            return Guarantee(
                "biased",
                "the target is interpolated with everything outside the stored head as one symbol",
            )
        return ONLY_LINEAR if kept.drawn else ONE_TOKEN

    @property
    def follows_progress(self) -> bool:
        """The target moves."""
        return True

    @property
    def share(self) -> float:
        """Exponent t of the teacher in the target."""
        return self.start + (1.0 - self.start) * self._progress

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistic `teacher_share`; `logq_T` is not used."""
        symbols = records.known_symbols(logq_E)
        gap_S = symbols.logp_S - symbols.logq_S.detach()
        # w/p q^(1-t) p^t of each symbol, as a logarithm.
        scores_S = symbols.mass_S.log() - (1.0 - self.share) * gap_S
        target_S, log_z_T = symbols.softmax(scores_S)
        value_T = symbols.sum(target_S * gap_S) * self.share - log_z_T
        surrogate_T = symbols.sum(-target_S * symbols.logq_S)
        return Terms(
            value_T + surrogate_T - surrogate_T.detach(),
            {"teacher_share": value_T.new_full(value_T.shape, self.share)},
        )
