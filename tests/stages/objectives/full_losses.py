"""What each row of the legality table is measured against: the loss over the whole vocabulary.

Written as the papers define them, from probabilities, sharing nothing with `stages.objectives`.
Arguments: student log-probabilities (with gradient), teacher probabilities, and the probabilities
with which the realised token is drawn; all over V ids, or over the symbols of a coarsening.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tests.stages.objectives.toy_records import RIGHT, V

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


def redi(alpha: float) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        signs = [-1.0 if v in RIGHT else alpha for v in range(len(b_V))]
        return (b_V * b_V.new_tensor(signs) * logq_V).sum()

    return loss


def nkd(gamma: float, of: str) -> FullLoss:
    def beside(target: int, logq_V: Tensor, p_V: Tensor) -> Tensor:
        others = [v for v in range(len(p_V)) if v != target]
        p_O, q_O = p_V[others], logq_V.exp()[others]
        cross = -(p_O / p_O.sum() * (q_O / q_O.sum()).log()).sum()
        return -p_V[target] * logq_V[target] + gamma * cross

    def of_teacher(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        return beside(int(p_V.argmax()), logq_V, p_V)

    def of_token(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        found = [b_V[v] * beside(v, logq_V, p_V) for v in range(len(p_V))]
        return torch.stack(found).sum()

    return of_teacher if of == "teacher" else of_token


def pld(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
    """The last symbol of a coarsening has no place in the order, nor have ids below its mass."""
    coarse = len(p_V) < V
    ids = range(len(p_V) - 1 if coarse else len(p_V))
    order = sorted(ids, key=lambda v: -float(p_V[v]))
    left, found = torch.ones((), dtype=p_V.dtype), torch.zeros((), dtype=p_V.dtype)
    for v in order:
        if coarse and p_V[v] < p_V[-1]:
            break
        found = found + p_V[v] * (left.log() - logq_V[v])
        left = left - logq_V[v].exp()
    return found + 0 * logq_V.sum()


def list_mle(k: int) -> FullLoss:
    def loss(logq_V: Tensor, p_V: Tensor, b_V: Tensor) -> Tensor:
        chosen = sorted(logq_V.topk(k).indices.tolist(), key=lambda v: -float(p_V[v]))
        found = [logq_V[chosen[i:]].logsumexp(0) - logq_V[chosen[i]] for i in range(k)]
        return torch.stack(found).sum()

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
    "list_mle": list_mle(3),
    "nkd/teacher": nkd(0.7, "teacher"),
    "nkd/token": nkd(0.7, "token"),
    "pld": pld,
    "redi": redi(0.6),
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
    "list_mle": {"k": 3},
    "nkd/teacher": {"gamma": 0.7},
    "nkd/token": {"gamma": 0.7},
    "redi": {"alpha": 0.6},
    "policy_gradient": {"truncation": None},
}
"""Row -> options of the objective beside what makes the row; they make no statement weaker."""
