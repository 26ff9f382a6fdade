"""The model that is asked: loaded once, run over batches, its logits seen a few rows at a time.

Shape letters: T positions of a batch, R of a chunk, D hidden size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from stages.attribution.observe import Observed, classes, observe
from stages.config import Sampling
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

SLACK = {"float32": 1e-3, "bfloat16": 0.25}
"""What rounding may do to a logit, in nats, where a sampler had a sharp edge."""


@dataclass(frozen=True)
class Witness:
    """A loaded model."""

    directory: Path
    dtype: str
    model: Any
    head: Head
    class_V: Tensor
    """Class of each id, on the CPU; as long as the vocabulary is large."""

    @classmethod
    def load(cls, directory: Path, dtype: str, device: str) -> "Witness":
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
    def ask(
        self, batch: Batch, sampling: Sampling, rows_per_chunk: int
    ) -> Iterator[tuple[slice, Observed]]:
        """What the model says of each position of `batch`, chunk by chunk."""
        device, slack = self.head.weight.device, SLACK[self.dtype]
        class_V, vocab_size = self.class_V.to(device), len(self.class_V)
        hidden_TD = response_hidden(self.model, batch)
        for start in range(0, batch.tokens, rows_per_chunk):
            chunk = slice(start, min(start + rows_per_chunk, batch.tokens))
            z_RV = self.head.logits(hidden_TD[chunk])[:, :vocab_size]
            tok_R = torch.from_numpy(batch.tok[chunk]).to(device)
            yield chunk, observe(z_RV, tok_R, class_V, sampling, slack)

    def check(self, batch: Batch, where: str) -> None:
        """Refuse sequences the model cannot be fed.

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
