"""A model from a directory, run over batches for the inspector."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stages.evaluation.positions import PositionValues
from stages.evaluation.scoring import PositionScorer
from stages.models.identity import check_tokenizer, tokenizer_of
from stages.models.model import load_model, pick_device
from stages.models.tokenizer_identity import TokenizerIdentity
from storage.batch import Batch
from storage.rows import gather


class Student:
    """A model that scores the positions of a set.

    Args:
        directory: Of the model.
        meta: Of the set's manifest.
        expected: The tokenizer whose ids the set holds.
        source: The set, for messages.
        dtype: Numeric type to run the model in.
        device: `auto`, `cpu` or `cuda`.
        tokens_per_batch: Tokens in one forward pass, padding included.

    Raises:
        DataError: no such model, or one with another tokenizer.
        EngineError: an architecture whose head is not understood.
    """

    def __init__(
        self,
        directory: Path,
        meta: Mapping[str, Any],
        expected: TokenizerIdentity,
        source: str,
        *,
        dtype: str = "float32",
        device: str = "auto",
        tokens_per_batch: int = 8192,
    ) -> None:
        check_tokenizer(expected, tokenizer_of(directory), source, str(directory))
        self._model = load_model(directory, dtype, pick_device(device))
        self._scorer = PositionScorer(meta)
        self._budget = tokens_per_batch

    def __call__(self, batch: Batch) -> PositionValues:
        """The model's values at all positions of a batch, in their order."""
        rows = batch.microbatch_rows(self._budget) or [np.arange(len(batch))]
        parts = [self._scorer.score(self._model, batch.select(row_n)) for row_n in rows]
        at_T = np.concatenate([gather(batch.tok_off, row_n)[0] for row_n in rows])
        return PositionValues.concat(parts).take(np.argsort(at_T))
