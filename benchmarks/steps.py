"""The steps that `benchmarks.train_step` compares: one student, one batch, many losses.

Shape letters: T positions of the batch, E entries per position, H ids of the head, D hidden size,
V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks import trl_losses
from stages.losses.head_loss import head_loss
from stages.models.model import lm_head, response_hidden
from stages.objectives.f_divergence import JSD
from stages.objectives.likelihood import CrossEntropy, ForwardKL
from stages.objectives.objective import ObjectiveFunction
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from stages.training.optim import clip_gradients
from storage.batch import Batch

FROM_RECORDS: dict[str, ObjectiveFunction] = {
    "reverse_kl": ReverseKL(),
    "forward_kl": ForwardKL(),
    "jsd": JSD(),
    "cross_entropy": CrossEntropy(),
}
PLAIN, FULL = "plain cross_entropy", "full forward_kl"
CANDIDATES = (*FROM_RECORDS, PLAIN, FULL, *trl_losses.installed())
WEIGHED = ("reverse_kl", "cross_entropy", PLAIN, FULL, *trl_losses.installed())
"""Whose memory is taken; other objectives need what `reverse_kl` does."""


@dataclass(frozen=True)
class Size:
    """A student and a batch."""

    vocabulary: int
    hidden: int
    layers: int
    sequences: int
    prompt: int
    response: int
    rows_per_chunk: int
    head: int
    """Ids of the head per position; the demo's, and about the mean at tau = 0.023 on text."""
    tail: int


class Steps:
    """One model, one batch, and a step for each candidate."""

    def __init__(self, size: Size, device: str = "cpu") -> None:
        self.size = size
        self.device = device
        torch.manual_seed(0)
        heads = max(1, size.hidden // 32)
        config = Qwen3Config(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=3 * size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=size.hidden // heads,
            tie_word_embeddings=True,
        )
        self.model = Qwen3ForCausalLM(config).train().to(device)  # type: ignore[reportArgumentType]
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
        self.batch = make_batch(size)
        self.records = TorchRecords.from_batch(self.batch, device)
        self._teacher_TV: Tensor | None = None
        self._teacher_hidden: tuple[Tensor, Tensor] | None = None

    def run(self, candidate: str) -> None:
        """One optimiser step."""
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss = self._loss(candidate)
        loss.backward()
        clip_gradients(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def _loss(self, candidate: str) -> Tensor:
        hidden_TD, head = response_hidden(self.model, self.batch), lm_head(self.model)
        if candidate in FROM_RECORDS:
            return head_loss(
                hidden_TD,
                head,
                self.records,
                FROM_RECORDS[candidate],
                rows_per_chunk=self.size.rows_per_chunk,
                normaliser=self.batch.tokens,
            )[0]
        if candidate == trl_losses.DISTILLATION:
            return trl_losses.distillation()(hidden_TD, head.weight, *self.teacher_hidden())
        logits_TV = functional.linear(hidden_TD, head.weight)
        if candidate == trl_losses.GKD:
            return trl_losses.gkd()(logits_TV, self.teacher())
        if candidate == PLAIN:
            return functional.cross_entropy(logits_TV, self.records.tok_T)
        return functional.kl_div(
            logits_TV.log_softmax(-1), self.teacher(), reduction="batchmean", log_target=True
        )

    def teacher(self) -> Tensor:
        """Log-probabilities of a teacher, made once."""
        if self._teacher_TV is None:
            logits_TV = torch.randn(self.batch.tokens, self.size.vocabulary, device=self.device)
            self._teacher_TV = logits_TV.log_softmax(-1)
        return self._teacher_TV

    def teacher_hidden(self) -> tuple[Tensor, Tensor]:
        """Hidden states of a teacher as wide as the student, and its head; made once."""
        if self._teacher_hidden is None:
            width = self.size.hidden
            head_VD = torch.randn(self.size.vocabulary, width, device=self.device) / width**0.5
            hidden_TD = torch.randn(self.batch.tokens, width, device=self.device)
            self._teacher_hidden = hidden_TD, head_VD
        return self._teacher_hidden

    def prepare(self, candidate: str) -> None:
        """Make what a live teacher would hand over, so that it is not measured."""
        if candidate in (FULL, trl_losses.GKD):
            self.teacher()
        elif candidate == trl_losses.DISTILLATION:
            self.teacher_hidden()


def make_batch(size: Size) -> Batch:
    """Sequences of equal length with head-and-tail records; what the ids are costs nothing."""
    rng = np.random.default_rng(0)
    n, positions = size.sequences, size.sequences * size.response
    head, entries = size.head, size.head + size.tail
    stride = size.vocabulary // entries
    first_T = rng.integers(0, size.vocabulary, positions)
    ids_TE = (first_T[:, None] + stride * np.arange(entries)) % size.vocabulary
    mass_TH = rng.dirichlet(np.full(head + 1, 2.0), positions).astype(np.float32)
    rest_T = mass_TH[:, -1].copy()
    weight_TE = np.repeat(rest_T[:, None] / np.float32(size.tail), entries, axis=1)
    weight_TE[:, :head] = mass_TH[:, :head]
    exact_TE = np.broadcast_to(np.arange(entries) < head, weight_TE.shape)
    logp_T = rng.normal(-1.0, 0.3, positions).astype(np.float32)
    return Batch(
        seq_id=np.arange(n),
        prompt_id=np.arange(n),
        outcome=np.full(n, -1, np.int8),
        prompt=rng.integers(0, size.vocabulary, n * size.prompt),
        prompt_off=np.arange(n + 1) * size.prompt,
        tok=rng.integers(0, size.vocabulary, positions),
        tok_off=np.arange(n + 1) * size.response,
        ref_lp=logp_T,
        lp=logp_T + np.float32(0.1),
        ent=-logp_T,
        entry_off=np.arange(positions + 1) * entries,
        ids=ids_TE.ravel(),
        weight=weight_TE.ravel(),
        # The tail's too, for the objectives that read it.
        logp=np.log(np.maximum(weight_TE, 1e-6)).ravel(),
        exact=exact_TE.ravel().copy(),
        rest=rest_T,
    )
