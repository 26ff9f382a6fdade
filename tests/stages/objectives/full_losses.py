"""What each row of the legality table is measured against: the loss over the whole vocabulary.

Written as the papers define them, from probabilities, sharing nothing with `stages.objectives`.
Arguments: student log-probabilities (with gradient), teacher probabilities, and the probabilities
with which the realised token is drawn; all over V ids, or over the symbols of a coarsening.
"""

from collections.abc import Callable

import torch
from torch import Tensor

FullLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def kl(a_V: Tensor, b_V: Tensor) -> Tensor:
    """KL(a || b); an id without mass in a counts nothing."""
    return torch.where(a_V > 0, a_V * (a_V / b_V).log(), 0.0).sum()


def forward_kl(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
    return kl(p_V, logq_V.exp())


def reverse_kl(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
    return kl(logq_V.exp(), p_V)


def jsd(beta: float) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        m_V = beta * p_V + (1 - beta) * logq_V.exp()
        return beta * kl(p_V, m_V) + (1 - beta) * kl(logq_V.exp(), m_V)

    return loss


def skew_forward_kl(alpha: float) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        return kl(p_V, alpha * p_V + (1 - alpha) * logq_V.exp())

    return loss


def skew_reverse_kl(alpha: float) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        return kl(logq_V.exp(), (1 - alpha) * p_V + alpha * logq_V.exp())

    return loss


def tvd(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
    return 0.5 * (p_V - logq_V.exp()).abs().sum()


def taid(share: float) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        target_V = torch.softmax((1 - share) * logq_V.detach() + share * p_V.log(), dim=0)
        return kl(target_V, logq_V.exp())

    return loss


def cross_entropy(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
    return -(b_V * logq_V).sum()


def lightning(clip: float) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        huber_V = torch.nn.functional.huber_loss(logq_V, p_V.log(), reduction="none", delta=clip)
        return (b_V * huber_V).sum()

    return loss


FULL: dict[str, FullLoss] = {
    "cross_entropy": cross_entropy,
    "forward_kl": forward_kl,
    "ghost_kl": forward_kl,
    "jsd": jsd(0.3),
    "skew_forward_kl": skew_forward_kl(0.2),
    "skew_reverse_kl": skew_reverse_kl(0.2),
    "tvd": tvd,
    "taid": taid(0.4),
    "lightning": lightning(0.8),
    "policy_gradient": reverse_kl,
    "reverse_kl/corrected": reverse_kl,
    "reverse_kl/residual_only": reverse_kl,
    "reverse_kl/bucketed": reverse_kl,
}
"""Row of the table -> the full loss, with the options of `OPTIONS`."""

OPTIONS: dict[str, dict[str, object]] = {
    "jsd": {"beta": 0.3},
    "skew_forward_kl": {"alpha": 0.2},
    "skew_reverse_kl": {"alpha": 0.2},
    "taid": {"start": 0.4},
    "lightning": {"clip": 0.8},
    "policy_gradient": {"truncation": None},
}
"""Row -> options of the objective other than its form; they make no statement weaker."""
