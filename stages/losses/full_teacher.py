"""The whole distribution of a live teacher, where a record would be an estimate of it.

The reference that records are held against: training with the teacher in the loop and nothing
sampled (`train.live = "full"`), exact divergences on held-out text, and the gradient that a
record's gradient should have been. Written for clarity, not speed; the logits of a chunk are made
again in the backward pass, so memory is one chunk of each model.

Shape letters: T positions of a batch, C positions of a chunk, D hidden size, V real ids of the
teacher, W rows of the student's head (V plus padding).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from stages.models.model import (
    Head,
    Tokens,
    load_model,
    load_tokenizer,
    real_vocab_size,
    response_hidden,
)
from stages.objectives.tensors import TorchRecords
from stages.scoring.score import scoring_head


@dataclass(frozen=True)
class FullTeacher:
    """A loaded teacher whose whole distribution is read."""

    model: PreTrainedModel
    head: Head
    vocab_size: int
    """Number of real ids; logits of ids above are left out of the softmax, as in records."""

    @classmethod
    def load(cls, directory: Path, dtype: str, device: torch.device) -> "FullTeacher":
        """The model in `directory`, in evaluation mode.

        Raises:
            DataError: it cannot be loaded, or has no tokenizer.
            EngineError: its head is of an unknown kind.
        """
        model = load_model(directory, dtype, device)
        return cls(model, scoring_head(model), real_vocab_size(model, load_tokenizer(directory)))

    @torch.no_grad()
    def hidden(self, batch: Tokens) -> Tensor:
        """[T, D] final hidden states at the positions of `batch`, in float32 on a CPU."""
        hidden_TD = response_hidden(self.model, batch)
        return hidden_TD if hidden_TD.is_cuda else hidden_TD.float()

    @torch.no_grad()
    def logp(self, hidden_CD: Tensor, temperature: float = 1.0) -> Tensor:
        """[C, V] log-probabilities in float32."""
        z_CV = self.head.logits(hidden_CD)[:, : self.vocab_size]
        return (z_CV / temperature).log_softmax(dim=-1)


@dataclass(frozen=True)
class FullTeacherLoss:
    """KL(p || q) over the whole vocabulary, at every position; a `PositionLoss`.

    Its statistics are `loss`, `logq` and `cross_entropy`.
    """

    teacher: FullTeacher
    """On the student's device."""
    temperature: float
    """Divides the logits of both."""
    rows_per_chunk: int
    """Positions whose logits exist at the same time; does not change the result."""

    def at(self, progress: float) -> Self:
        """Itself: the loss is the same throughout training."""
        return self

    def __call__(
        self,
        hidden_TD: Tensor,
        head: Head,
        part: Tokens,
        records: TorchRecords,
        weight_T: Tensor | None,
        normaliser: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `PositionLoss`; of `records` only the realised tokens are read."""
        teacher_TD, tok_T = self.teacher.hidden(part), records.tok_T
        if weight_T is not None:
            kept_T = weight_T != 0
            hidden_TD, teacher_TD, tok_T = hidden_TD[kept_T], teacher_TD[kept_T], tok_T[kept_T]
            weight_T = weight_T[kept_T]
        parts: list[_ChunkTerms] = []
        for start in range(0, max(1, len(tok_T)), self.rows_per_chunk):
            chunk = slice(start, start + self.rows_per_chunk)
            logp_CV = self.teacher.logp(teacher_TD[chunk], self.temperature)
            parts.append(
                checkpoint(
                    _forward_kl, hidden_TD[chunk], head, tok_T[chunk], logp_CV, self.temperature,
                    use_reentrant=False,
                )
            )  # fmt: skip
        terms = _ChunkTerms(*(torch.cat(column) for column in zip(*parts, strict=True)))
        loss_T = terms.loss_T if weight_T is None else terms.loss_T * weight_T
        return loss_T.sum() / normaliser, {
            "loss": terms.loss_T.detach(),
            "logq": terms.logq_T.detach(),
            "cross_entropy": terms.cross_T.detach(),
        }


class _ChunkTerms(NamedTuple):
    loss_T: Tensor
    logq_T: Tensor
    cross_T: Tensor


def _forward_kl(
    hidden_CD: Tensor, head: Head, tok_C: Tensor, logp_CV: Tensor, temperature: float
) -> _ChunkTerms:
    """Terms of one chunk. The student's softmax runs over all rows of its head, padding too."""
    logq_CW = (head.logits(hidden_CD) / temperature).log_softmax(dim=-1)
    p_CV = logp_CV.exp()
    cross_C = -(p_CV * logq_CW[:, : logp_CV.shape[1]]).sum(dim=-1)
    entropy_C = torch.special.entr(p_CV).sum(dim=-1)
    return _ChunkTerms(cross_C - entropy_C, logq_CW.gather(1, tok_C[:, None]).squeeze(1), cross_C)
