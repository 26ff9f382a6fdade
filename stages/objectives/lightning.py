"""The sampled-token objective of Lightning OPD (arXiv 2604.13010), written as what it is.

The paper ascends sum_t clip(A_t, -tau, tau) grad log pi(a_t), A_t = log pi_T(a_t) - log pi(a_t),
with the advantage held constant and the importance weight set to 1. With one optimiser step per
batch that is exactly gradient descent on the Huber loss of A_t with threshold tau: one forward
pass, no policy ratio, no second set of log-probabilities, no reference model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.objectives.tensors import Constant, Terms, TorchRecords, required


@dataclass(frozen=True)
class Lightning(Constant):
    """Huber loss of log pi_T(a) - log pi(a) at the realised token a."""

    temperature: float = 1.0
    clip: float | None = 10.0
    """Bound tau on the advantage; None leaves it unbounded."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_E` is not used."""
        advantage_T = required(records.lp_T, "lp", "lightning") - logq_T
        size_T = advantage_T.abs()
        loss_T = 0.5 * size_T.square()
        clipped_T = torch.zeros_like(size_T)
        if self.clip is not None:
            over_T = size_T > self.clip
            loss_T = torch.where(over_T, self.clip * (size_T - 0.5 * self.clip), loss_T)
            clipped_T = over_T.to(size_T.dtype)
        return Terms(loss_T, {"advantage": advantage_T.detach(), "clipped": clipped_T})
