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
from typing import NamedTuple

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


def full_forward_kl(
    hidden_TD: Tensor,
    head: Head,
    batch: Tokens,
    teacher: FullTeacher,
    *,
    temperature: float,
    rows_per_chunk: int,
    normaliser: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """KL(p || q) over the whole vocabulary, summed over positions and divided by `normaliser`.

    Args:
        hidden_TD: The student's final hidden states at the positions of `batch`.
        head: The student's head.
        batch: Sequences of the same T positions.
        teacher: On the student's device.
        temperature: Divides the logits of both.
        rows_per_chunk: Positions whose logits exist at the same time; does not change the result.
        normaliser: Positions of the whole optimiser step.

    Returns:
        As `head_loss.head_loss`: the loss, and detached [T] tensors `loss`, `logq` and
        `cross_entropy`.
    """
    teacher_TD = teacher.hidden(batch)
    tok_T = torch.from_numpy(batch.tok.astype("int64")).to(hidden_TD.device)
    parts: list[_Terms] = []
    for start in range(0, len(tok_T), rows_per_chunk):
        chunk = slice(start, start + rows_per_chunk)
        logp_CV = teacher.logp(teacher_TD[chunk], temperature)
        parts.append(
            checkpoint(
                _forward_kl, hidden_TD[chunk], head, tok_T[chunk], logp_CV, temperature,
                use_reentrant=False,
            )
        )  # fmt: skip
    terms = _Terms(*(torch.cat(column) for column in zip(*parts, strict=True)))
    loss = terms.loss_T.sum() / normaliser
    return loss, {
        "loss": terms.loss_T.detach(),
        "logq": terms.logq_T.detach(),
        "cross_entropy": terms.cross_T.detach(),
    }


class _Terms(NamedTuple):
    loss_T: Tensor
    logq_T: Tensor
    cross_T: Tensor


def _forward_kl(
    hidden_CD: Tensor, head: Head, tok_C: Tensor, logp_CV: Tensor, temperature: float
) -> _Terms:
    """Terms of one chunk. The student's softmax runs over all rows of its head, padding too."""
    logq_CW = (head.logits(hidden_CD) / temperature).log_softmax(dim=-1)
    p_CV = logp_CV.exp()
    cross_C = -(p_CV * logq_CW[:, : logp_CV.shape[1]]).sum(dim=-1)
    entropy_C = torch.special.entr(p_CV).sum(dim=-1)
    return _Terms(cross_C - entropy_C, logq_CW.gather(1, tok_C[:, None]).squeeze(1), cross_C)
