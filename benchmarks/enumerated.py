"""Losses with the token summed over: the expectations of objectives that read one drawn token.

With the distribution b of pi_ref, p of the teacher and q of the student at a context, and
A(v) = log p(v) - log q(v):

    published    sum_v b(v) huber(A(v) + shift)      gradient -E_b[clip(A) grad log q]
    reverse_kl   sum_v q(v) (log q(v) - log p(v))    gradient -E_q[A grad log q]

The first is what the objective `lightning` estimates from a token of pi_ref, the second what it
stands for. Both models run beside the student, and logits of all positions exist at once: for small
vocabularies.

Shape letters: T positions, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import huber_loss
from transformers import PreTrainedModel

from stages.models.model import Head, lm_head, response_hidden
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch


@torch.no_grad()
def log_probs(model: PreTrainedModel, batch: Batch) -> Tensor:
    """[T, V] at every response position."""
    return lm_head(model).logits(response_hidden(model, batch)).log_softmax(-1)


def published(
    logb_TV: Tensor, logp_TV: Tensor, logq_TV: Tensor, clip: float, shift: float = 0.0
) -> Tensor:
    """[T] the sampled-token objective, its token drawn by b."""
    loss_TV = huber_loss(logq_TV, logp_TV + shift, reduction="none", delta=clip)
    return (logb_TV.exp() * loss_TV).sum(-1)


def reverse_kl(logp_TV: Tensor, logq_TV: Tensor) -> Tensor:
    """[T] KL(student || teacher)."""
    return (logq_TV.exp() * (logq_TV - logp_TV)).sum(-1)


@dataclass(frozen=True)
class Enumerated:
    """One of these losses as a `stages.losses.position_loss.PositionLoss`."""

    policy: PreTrainedModel
    """Pi_ref."""
    teacher: PreTrainedModel
    form: Literal["published", "reverse_kl"]
    clip: float = 10.0
    shift: float = 0.0
    """Nats added to the teacher's log-probabilities (`published`)."""
    temperature: float = 1.0

    def at(self, progress: float) -> "Enumerated":
        """The same at all times."""
        return self

    def __call__(
        self,
        hidden_TD: Tensor,
        head: Head,
        part: Batch,
        records: TorchRecords,
        weight_T: Tensor | None,
        normaliser: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss; records are not read."""
        logq_TV = head.logits(hidden_TD).log_softmax(-1)
        logp_TV = log_probs(self.teacher, part)
        if self.form == "published":
            logb_TV = log_probs(self.policy, part)
            loss_T = published(logb_TV, logp_TV, logq_TV, self.clip, self.shift)
        else:
            loss_T = reverse_kl(logp_TV, logq_TV)
        logq_T = logq_TV.gather(1, records.tok_T[:, None])[:, 0]
        stats = {"loss": loss_T.detach(), "logq": logq_T.detach()}
        weighted_T = loss_T if weight_T is None else loss_T * weight_T
        return weighted_T.sum() / normaliser, stats
