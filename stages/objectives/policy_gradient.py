"""Reverse KL by its policy gradient at the realised token alone.

With a drawn by the behaviour policy b and A = log q(a) - log p(a),

    grad KL(q || p) = E_{a ~ b}[ q(a)/b(a) A grad log q(a) ]

for any b with full support. Truncating the weight q/b at c bounds the variance and brings bias:
what is lost is the share of E_q[A grad log q] carried by tokens with q > c b. Near pi_ref weights
are near one and c = 2 seldom binds; the statistic `weight_capped` says how often. Lightning's
objective is the same update with the weight set to 1 and A bounded instead.

This needs one number per token from the teacher and is as noisy as that sounds; records with a head
give the same gradient with far less noise (`reverse_kl`).

Shape letters as in `records`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.objectives.tensors import Constant, Terms, TorchRecords, required


@dataclass(frozen=True)
class PolicyGradient(Constant):
    """Importance-weighted sampled-token reverse KL."""

    temperature: float = 1.0
    truncation: float | None = 2.0
    """Cap on the importance weight; None for the full correction."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistic `weight_capped`; `logq_E` is not used.

        The value is the matching estimate of KL(q || p), one token's worth of it.
        """
        held_T = logq_T.detach()
        lp_T = required(records.lp_T, "lp", "policy_gradient")
        weight_T = (held_T - required(records.ref_lp_T, "ref_lp", "policy_gradient")).exp()
        capped_T = torch.zeros_like(weight_T)
        if self.truncation is not None:
            capped_T = (weight_T > self.truncation).to(weight_T.dtype)
            weight_T = weight_T.clamp_max(self.truncation)
        value_T = weight_T * (held_T - lp_T)
        # The factor is zero in value and carries the gradient.
        return Terms(value_T + value_T * (logq_T - held_T), {"weight_capped": capped_T})
