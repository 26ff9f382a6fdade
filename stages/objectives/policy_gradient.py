"""Reverse KL by its policy gradient at the realised token alone.

With a drawn by the behaviour policy b and A = log q(a) - log p(a),

    grad KL(q || p) = E_{a ~ b}[ q(a)/b(a) A grad log q(a) ]

for any b with full support. Truncating the weight q/b at c bounds the variance and brings bias:
what is lost is the share of E_q[A grad log q] carried by tokens with q > c b. Near pi_ref weights
are near one and c = 2 seldom binds; the statistic `weight_capped` says how often. Lightning's
objective is the same update with the weight set to 1 and A bounded instead.

This needs one number per token from the teacher and is as noisy as that sounds; records with a head
give the same gradient with far less noise (`reverse_kl`).

Shape letters as in `tensors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import Guarantee, Kept, Objective, Terms
from stages.table import Bound

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords


class PolicyGradient(Objective):
    """Importance-weighted sampled-token reverse KL."""

    name: Literal["policy_gradient"] = "policy_gradient"
    truncation: Bound = 2.0
    """Cap on the importance weight; `"none"` for the full correction."""

    @property
    def weighs_token(self) -> bool:
        """It reads nothing else."""
        return True

    @property
    def cap(self) -> float | None:
        """Largest importance weight."""
        return self.truncation

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Unbiased: every record of a teacher keeps log p of the realised token."""
        return Guarantee("unbiased", "the importance-weighted realised token alone: very noisy")

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistic `weight_capped`; `logq_E` is not used.

        The value is the matching estimate of KL(q || p), one token's worth of it.
        """
        held_T = logq_T.detach()
        lp_T = self.required(records.lp_T, "lp")
        weight_T = (held_T - self.required(records.ref_lp_T, "ref_lp")).exp()
        limit = float("inf") if self.truncation is None else self.truncation
        capped_T = (weight_T > limit).to(weight_T.dtype)
        value_T = weight_T.clamp_max(limit) * (held_T - lp_T)
        # The factor is zero in value and carries the gradient.
        return Terms(value_T + value_T * (logq_T - held_T), {"weight_capped": capped_T})
