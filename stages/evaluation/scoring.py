"""From one pass of a model over a batch to its values at every position.

Shape letters: T positions, E entries, K likeliest ids.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from stages.evaluation.positions import LIKELIEST, PositionValues
from stages.losses.head_loss import HeadStatistics, head_statistics
from stages.models.model import exact_hidden
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch
from storage.kinds import KINDS


class PositionScorer:
    """Turns statistics of a model into its values at positions of one set.

    Args:
        meta: Of the set's manifest: which divergences its records can give.
    """

    def __init__(self, meta: Mapping[str, Any]) -> None:
        record = meta.get("record") or {}
        self.temperature = float(record.get("temperature", 1.0))
        kind = KINDS.get(record.get("kind", ""))
        self._head = kind is not None and kind.head
        self._weights = kind is not None and kind.drawn

    def values(self, found: HeadStatistics, records: TorchRecords) -> PositionValues:
        """What is kept of T positions."""
        reverse_T = forward_T = None
        if self._head:
            bucket = ReverseKL(temperature=self.temperature, form="bucketed")
            reverse_T = bucket(found.logq_E, found.logq_T, records).loss_T
        if self._weights and records.ent_T is not None:
            forward_T = -records.ent_T - records.sum_entries(records.weight_E * found.logq_E)
        return PositionValues(
            logq_T=_array(found.logq_T),
            entropy_T=_array(found.entropy_T),
            ids_TK=found.likely_TK.cpu().numpy(),
            logq_TK=_array(found.likely_logq_TK),
            reverse_kl_T=None if reverse_T is None else _array(reverse_T),
            forward_kl_T=None if forward_T is None else _array(forward_T),
        )

    @torch.inference_mode()
    def score(
        self, model: PreTrainedModel, batch: Batch, rows_per_chunk: int = 1024
    ) -> PositionValues:
        """The values of a model at the positions of one micro-batch."""
        records = TorchRecords.from_batch(batch, model.device)
        found = head_statistics(
            *exact_hidden(model, batch),
            records,
            rows_per_chunk=rows_per_chunk,
            temperature=self.temperature,
            likeliest=LIKELIEST,
        )
        return self.values(found, records)


def _array(values: Tensor) -> Any:
    return values.float().cpu().numpy()
