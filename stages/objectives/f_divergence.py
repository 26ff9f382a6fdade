"""Divergences whose terms are bounded by the teacher's probability, from sparse records.

With d = log p - log q, sigma the logistic function and m a mixture of p and q, each is

    constant + sum_v p_v g(d_v)                     g(d) = h(p, q) / p

which `tensors.Symbols` reads unbiasedly where log p of drawn ids is stored and as a lower bound
where only the head is. The student's half of a mixture divergence takes this form because its part
that does not vanish with p sums to a constant:

    KL(q || b p + (1-b) q) = -log(1-b) - sum_v q_v log(1 + (b/(1-b)) p_v/q_v)

Every term is at most b/(1-b) p, so the weights of a draw are bounded. Plain reverse KL has no such
form (p appears as log 0), which is why it has a module of its own.

    JSD(b)             b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q       (arXiv 2306.13649)
    skew forward KL    KL(p || a p + (1-a) q)                                    (arXiv 2402.03898)
    skew reverse KL    KL(q || (1-a) p + a q)                                    (arXiv 2402.03898)
    TVD                1 - sum_v min(p_v, q_v)
    ghost KL           forward KL with everything outside the head as one symbol (arXiv 2503.16870)

JSD(b) vanishes at both ends of b, and its gradient with it. Scaled, it has the two KLs as limits:
JSD(b) / b tends to KL(p || q) as b tends to 0, and JSD(b) / (1-b) to KL(q || p) as b tends to 1.

Shape letters as in `tensors`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import (
    NO_HEAD,
    ONE_TOKEN,
    OUTSIDE_IS_ONE,
    Between,
    Guarantee,
    Kept,
    Objective,
    Terms,
)

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import Symbols, TorchRecords

ONLY_LINEAR = Guarantee(
    "refused", "draws without log p estimate only what is linear in p, and this is not"
)

_EXTREME = 80.0
"""exp of this and of its negative are normal in float32."""


class FDivergence(Objective):
    """What the divergences that need log p of each id have in common."""

    reads_draws = "with_logp"

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Unbiased with log p of the drawn ids; a bound from the head alone."""
        if kept.logp:
            return Guarantee(
                "unbiased",
                "terms bounded by p, each drawn id weighted by the inverse of its probability",
            )
        if kept.head:
            return OUTSIDE_IS_ONE
        return ONLY_LINEAR if kept.drawn else ONE_TOKEN


class JSD(FDivergence):
    """Generalised Jensen-Shannon divergence."""

    name: Literal["jsd"] = "jsd"
    beta: Between = 0.5
    """Share of the teacher in the mixture (arXiv 2306.13649). The loss vanishes at both ends:
    JSD / beta tends to the forward KL as beta tends to 0, JSD / (1 - beta) to the reverse KL as
    beta tends to 1, so the learning rate has to make up for a beta near either."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = records.known_symbols(logq_E)
        x_S = _gap(symbols) + _logit(self.beta)
        constant = -self.beta * math.log(self.beta) - (1 - self.beta) * math.log1p(-self.beta)
        return _terms(symbols, constant, -self.beta * (_softplus(-x_S) + _log1p_share(x_S)))


class SkewForwardKL(FDivergence):
    """KL of the teacher to the student mixed with a share alpha of the teacher."""

    name: Literal["skew_forward_kl"] = "skew_forward_kl"
    alpha: Between = 0.1
    """Share of the teacher in what it is compared with (arXiv 2402.03898)."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = records.known_symbols(logq_E)
        x_S = _gap(symbols) + _logit(self.alpha)
        return _terms(symbols, -math.log(self.alpha), -_softplus(-x_S))


class SkewReverseKL(FDivergence):
    """KL of the student to the teacher mixed with a share alpha of the student."""

    name: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    alpha: Between = 0.1
    """Share of the student in what it is compared with (arXiv 2402.03898)."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = records.known_symbols(logq_E)
        x_S = _gap(symbols) + _logit(1.0 - self.alpha)
        odds = (1.0 - self.alpha) / self.alpha
        return _terms(symbols, -math.log(self.alpha), -odds * _log1p_share(x_S))


class TVD(FDivergence):
    """Total variation distance; 1 - TVD is the acceptance rate of speculative decoding."""

    name: Literal["tvd"] = "tvd"

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used. At p = q the gradient is half of either side's."""
        symbols = records.known_symbols(logq_E)
        ratio_S = -_gap(symbols)
        return _terms(symbols, 1.0, -ratio_S.minimum(ratio_S.new_zeros(())).exp())


class GhostKL(Objective):
    """Forward KL of the coarsening that keeps the head and takes the rest as one symbol."""

    name: Literal["ghost_kl"] = "ghost_kl"

    aims_at_forward_kl = True

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """A bound wherever there is a head; draws are not read."""
        return OUTSIDE_IS_ONE if kept.head else NO_HEAD

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = records.head_symbols(logq_E)
        return _terms(symbols, 0.0, _gap(symbols))


def _gap(symbols: Symbols) -> Tensor:
    return symbols.logp_S - symbols.logq_S


def _terms(symbols: Symbols, constant: float, g_S: Tensor) -> Terms:
    return Terms(constant + symbols.sum(symbols.mass_S * g_S), {})


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _softplus(x_S: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return x_S.logaddexp(x_S.new_zeros(()))


def _log1p_share(x_S: Tensor) -> Tensor:
    """log(1 + e^x) / e^x, which falls from 1 to 0; flat where float32 cannot tell."""
    u_S = x_S.clamp(-_EXTREME, _EXTREME).exp()
    return u_S.log1p() / u_S
