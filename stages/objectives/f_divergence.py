"""Divergences whose terms are bounded by the teacher's probability, from sparse records.

With d = log p - log q, sigma the logistic function and m a mixture of p and q, each is

    constant + sum_v p_v g(d_v)                     g(d) = h(p, q) / p

which `symbols` reads unbiasedly where log p of drawn ids is stored and as a lower bound where only
the head is. The student's half of a mixture divergence takes this form because its part that does
not vanish with p sums to a constant:

    KL(q || b p + (1-b) q) = -log(1-b) - sum_v q_v log(1 + (b/(1-b)) p_v/q_v)

Every term is at most b/(1-b) p, so the weights of a draw are bounded. Plain reverse KL has no such
form (p appears as log 0), which is why it has a module of its own.

    JSD(b)             b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q       (arXiv 2306.13649)
    skew forward KL    KL(p || a p + (1-a) q)                                    (arXiv 2402.03898)
    skew reverse KL    KL(q || (1-a) p + a q)                                    (arXiv 2402.03898)
    TVD                1 - sum_v min(p_v, q_v)
    ghost KL           forward KL with everything outside the head as one symbol (arXiv 2503.16870)

Shape letters as in `symbols`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from stages.objectives.symbols import Symbols, head_symbols, known_symbols
from stages.objectives.tensors import Constant, Terms, TorchRecords

_EXTREME = 80.0
"""exp of this and of its negative are normal in float32."""


@dataclass(frozen=True)
class JSD(Constant):
    """Generalised Jensen-Shannon divergence."""

    temperature: float = 1.0
    beta: float = 0.5
    """Share of the teacher in the mixture m."""

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = known_symbols(logq_E, records)
        x_S = _gap(symbols) + _logit(self.beta)
        constant = -self.beta * math.log(self.beta) - (1 - self.beta) * math.log1p(-self.beta)
        return _terms(symbols, constant, -self.beta * (softplus(-x_S) + _log1p_share(x_S)))


@dataclass(frozen=True)
class SkewForwardKL(Constant):
    """KL of the teacher to the student mixed with a share alpha of the teacher."""

    temperature: float = 1.0
    alpha: float = 0.1

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = known_symbols(logq_E, records)
        x_S = _gap(symbols) + _logit(self.alpha)
        return _terms(symbols, -math.log(self.alpha), -softplus(-x_S))


@dataclass(frozen=True)
class SkewReverseKL(Constant):
    """KL of the student to the teacher mixed with a share alpha of the student."""

    temperature: float = 1.0
    alpha: float = 0.1

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = known_symbols(logq_E, records)
        x_S = _gap(symbols) + _logit(1.0 - self.alpha)
        odds = (1.0 - self.alpha) / self.alpha
        return _terms(symbols, -math.log(self.alpha), -odds * _log1p_share(x_S))


@dataclass(frozen=True)
class TVD(Constant):
    """Total variation distance; 1 - TVD is the acceptance rate of speculative decoding."""

    temperature: float = 1.0

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used. At p = q the gradient is half of either side's."""
        symbols = known_symbols(logq_E, records)
        ratio_S = -_gap(symbols)
        return _terms(symbols, 1.0, -torch.minimum(ratio_S, torch.zeros_like(ratio_S)).exp())


@dataclass(frozen=True)
class GhostKL(Constant):
    """Forward KL of the coarsening that keeps the head and takes the rest as one symbol."""

    temperature: float = 1.0

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        symbols = head_symbols(logq_E, records)
        return _terms(symbols, 0.0, _gap(symbols))


def _gap(symbols: Symbols) -> Tensor:
    return symbols.logp_S - symbols.logq_S


def _terms(symbols: Symbols, constant: float, g_S: Tensor) -> Terms:
    return Terms(constant + symbols.sum(symbols.mass_S * g_S), {})


def _logit(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _log1p_share(x_S: Tensor) -> Tensor:
    """log(1 + e^x) / e^x, which falls from 1 to 0; flat where float32 cannot tell."""
    u_S = x_S.clamp(-_EXTREME, _EXTREME).exp()
    return u_S.log1p() / u_S
