"""The sampled-token objective of Lightning OPD (arXiv 2604.13010), written as what it is.

The paper ascends sum_t clip(A_t, -tau, tau) grad log pi(a_t), A_t = log pi_T(a_t) - log pi(a_t),
with the advantage held constant and the importance weight set to 1. With one optimiser step per
batch that is exactly gradient descent on the Huber loss of A_t with threshold tau: one forward
pass, no policy ratio, no second set of log-probabilities, no reference model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import Guarantee, Kept, Objective, Terms
from stages.table import Bound

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords


class Lightning(Objective):
    """Huber loss of log pi_T(a) - log pi(a) at the realised token a."""

    name: Literal["lightning"] = "lightning"
    clip: Bound = 10.0
    """Bound on |log pi_T - log pi|, as published (arXiv 2604.13010); `"none"` for no bound."""

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Exact as published: every record of a teacher keeps log p of the realised token."""
        return Guarantee(
            "exact",
            "the published sampled-token objective; as an estimate of reverse KL it holds near "
            "pi_ref only",
        )

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistics `advantage` and `clipped`; `logq_E` is not used."""
        clip = float("inf") if self.clip is None else self.clip
        advantage_T = self.required(records.lp_T, "lp") - logq_T
        size_T = advantage_T.abs()
        clipped_T = size_T > clip
        loss_T = 0.5 * size_T.square()
        if self.clip is not None:
            loss_T = loss_T.where(~clipped_T, clip * (size_T - 0.5 * clip))
        stats = {"advantage": advantage_T.detach(), "clipped": clipped_T.to(size_T.dtype)}
        return Terms(loss_T, stats)
