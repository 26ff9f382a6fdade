"""TAID (arXiv 2501.16937): a target that moves from near the student to the teacher.

The target p_t is proportional to q^(1-t) p^t, with q the student's own distribution held constant,
and the loss is KL(p_t || q). Here t rises in a straight line from `start` at the first step to 1 at
the last; the paper's rule that adapts t to the loss is not implemented.

The normaliser Z = sum_v q_v^(1-t) p_v^t depends on the current student, so no record can hold it.
It is estimated from the same symbols as the target, which makes the target sum to one and the
result biased: consistent in the number of draws where log p of drawn ids is stored, an
approximation by one bucket where only the head is. At t = 1 nothing is left of that: the first
becomes the forward KL, the second its bound.

Shape letters as in `symbols`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stages.objectives.symbols import known_symbols
from stages.objectives.tensors import Terms, TorchRecords


@dataclass(frozen=True)
class TAID:
    """KL from the interpolated target to the student."""

    temperature: float = 1.0
    start: float = 0.4
    progress: float = 0.0

    @property
    def share(self) -> float:
        """Exponent t of the teacher in the target."""
        return self.start + (1.0 - self.start) * self.progress

    def at(self, progress: float) -> "TAID":
        """With the target of this share of training."""
        return replace(self, progress=progress)

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistic `teacher_share`; `logq_T` is not used."""
        symbols = known_symbols(logq_E, records)
        gap_S = symbols.logp_S - symbols.logq_S.detach()
        # w/p q^(1-t) p^t of each symbol, as a logarithm.
        scores_S = symbols.mass_S.log() - (1.0 - self.share) * gap_S
        target_S, log_z_T = symbols.softmax(scores_S)
        value_T = symbols.sum(target_S * gap_S) * self.share - log_z_T
        surrogate_T = symbols.sum(-target_S * symbols.logq_S)
        return Terms(
            value_T + surrogate_T - surrogate_T.detach(),
            {"teacher_share": torch.full_like(value_T, self.share)},
        )
