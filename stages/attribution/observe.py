"""The terms of the tests: a model's distribution at tokens that were drawn, chunk by chunk.

Every term has mean zero given the past if the model drew the tokens, or is the variance of one that
has. Truncation by length or at the end token does not change that (both are stopping times), so
truncated responses count like any other: every stored token was drawn.

Shape letters: T positions of a batch, R of a chunk, D hidden size, V vocabulary, B classes of ids.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from stages.config.data import Sampling
from stages.counter import hash64
from stages.engines.transformers_engine import keep_min_p, keep_top_k, keep_top_p
from stages.models.model import (
    Head,
    context_length,
    load_model,
    load_tokenizer,
    pick_device,
    real_vocab_size,
    response_hidden,
)
from stages.scoring.score import scoring_head
from storage.batch import Batch
from storage.errors import DataError

CLASSES = 16
_LOWEST = -200.0  # exp of it is 0 in float32, and 0 * -200 is 0 where 0 * -inf is not
SLACK = {"float32": 1e-3, "bfloat16": 0.25}
"""What rounding may do to a logit, in nats, where a sampler had a sharp edge."""


@dataclass(frozen=True)
class Observed:
    """R positions under the distribution their tokens would have been drawn from."""

    lp_R: Tensor
    """Log-probability of the token; -inf where the truncated distribution does not hold it."""
    ent_R: Tensor
    """Entropy H, nats."""
    var_R: Tensor
    """Varentropy: the variance of log p."""
    third_R: Tensor
    """Third central moment of log p."""
    share_RB: Tensor
    """Probability of each class of ids."""
    drawn_R: Tensor
    """bool: the token is one of several that could be drawn here, as far as rounding lets us see.
    The others say nothing and are left out of the sums."""
    impossible_R: Tensor
    """bool: the token could not have been drawn, rounding allowed for."""


def classes(vocab_size: int) -> Tensor:
    """[V] class of each id: a hash, so that neighbours in the vocabulary part ways."""
    return torch.from_numpy((hash64(1, np.arange(vocab_size)) % np.uint64(CLASSES)).astype(int))


def observe(
    z_RV: Tensor, tok_R: Tensor, class_V: Tensor, sampling: Sampling, slack: float
) -> Observed:
    """The terms of R positions.

    Args:
        z_RV: float32 logits of real ids.
        tok_R: int64, the tokens drawn.
        class_V: As `classes` gives it.
        sampling: How they were drawn, without penalties: min-p cuts first, then top-k, top-p what
            that leaves, as engines do. At temperature 0 nothing is drawn and the distribution is
            the model's own.
        slack: What rounding may do to a logit (nats) or to the mass above a token.
    """
    if sampling.temperature == 0:
        logp_RV = z_RV.log_softmax(1)
        lp_R = _at(logp_RV, tok_R)
        impossible_R = logp_RV.amax(1) - lp_R > slack
        drawn_R = torch.zeros_like(impossible_R)
    else:
        z_RV = z_RV / sampling.temperature
        z_R = _at(z_RV, tok_R)
        impossible_R = z_R.isneginf()
        if sampling.min_p > 0:
            least_R = z_RV.amax(1) + math.log(sampling.min_p)
            impossible_R = impossible_R | (z_R < least_R - slack)
            z_RV = keep_min_p(z_RV, sampling.min_p)
        if 0 < sampling.top_k < z_RV.shape[1]:
            least_R = z_RV.topk(sampling.top_k, dim=1).values[:, -1]
            impossible_R = impossible_R | (z_R < least_R - slack)
            z_RV = keep_top_k(z_RV, sampling.top_k)
        if sampling.top_p < 1:
            p_RV = z_RV.softmax(1)
            p_R = _at(p_RV, tok_R)
            above_R = p_RV.masked_fill(p_RV <= p_R[:, None], 0.0).sum(1)
            impossible_R = impossible_R | ((p_R > 0) & (above_R >= sampling.top_p + slack))
            z_RV = keep_top_p(z_RV, sampling.top_p)
        logp_RV = z_RV.log_softmax(1)
        lp_R = _at(logp_RV, tok_R)
        drawn_R = lp_R.isfinite()
    p_RV = logp_RV.exp()
    ent_R = torch.special.entr(p_RV).sum(1)
    centred_RV = logp_RV.clamp(min=_LOWEST).add_(ent_R[:, None])
    square_RV = p_RV * centred_RV.square()
    share_RB = p_RV.new_zeros(len(tok_R), CLASSES).index_add_(1, class_V, p_RV)
    return Observed(
        lp_R,
        ent_R,
        var_R=square_RV.sum(1),
        third_R=square_RV.mul_(centred_RV).sum(1),
        share_RB=share_RB,
        drawn_R=drawn_R,
        impossible_R=impossible_R,
    )


def _at(values_RV: Tensor, tok_R: Tensor) -> Tensor:
    return values_RV.gather(1, tok_R[:, None])[:, 0]


@dataclass(frozen=True)
class LoadedModel:
    """The model a set is tested against: loaded once, its logits made in chunks."""

    directory: Path
    dtype: str
    model: Any
    head: Head
    class_V: Tensor
    """Class of each id, on the CPU; as long as the vocabulary is large."""

    @classmethod
    def load(cls, directory: Path, dtype: str, device: str) -> "LoadedModel":
        """The model in `directory`, as the scorer runs it.

        Raises:
            DataError: it cannot be loaded.
            EngineError: its head is not understood.
        """
        disable_progress_bar()
        model = load_model(directory, dtype, pick_device(device))
        vocab_size = real_vocab_size(model, load_tokenizer(directory))
        return cls(directory, dtype, model, scoring_head(model), classes(vocab_size))

    @torch.no_grad()
    def observe(
        self, batch: Batch, sampling: Sampling, rows_per_chunk: int
    ) -> Iterator[tuple[slice, Observed]]:
        """The terms of each position of `batch`, chunk by chunk."""
        device, slack = self.head.weight.device, SLACK[self.dtype]
        class_V, vocab_size = self.class_V.to(device), len(self.class_V)
        hidden_TD = response_hidden(self.model, batch)
        for start in range(0, batch.tokens, rows_per_chunk):
            chunk = slice(start, min(start + rows_per_chunk, batch.tokens))
            z_RV = self.head.logits(hidden_TD[chunk])[:, :vocab_size]
            tok_R = torch.from_numpy(batch.tok[chunk]).to(device)
            yield chunk, observe(z_RV, tok_R, class_V, sampling, slack)

    def check_fits(self, batch: Batch, where: str) -> None:
        """Raise for sequences the model cannot be fed.

        Raises:
            DataError: an id outside the vocabulary, or more tokens than the context holds.
        """
        highest = max(batch.tok.max(initial=0), batch.prompt.max(initial=0))
        if highest >= len(self.class_V):
            raise DataError(
                f"{where}: token id {highest}, but the vocabulary of {self.directory} has "
                f"{len(self.class_V)} ids. Give the model whose tokenizer made the set."
            )
        limit, longest = context_length(self.model), int(batch.lengths.max(initial=0))
        if limit is not None and longest - 1 > limit:
            raise DataError(
                f"{where}: a sequence of {longest} tokens, but {self.directory} takes {limit}: it "
                "cannot have drawn or scored that. Give another model."
            )
