"""Where batches come from, and how they reach the device."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch

from stages.config.training import Training
from stages.objectives.tensors import TorchRecords
from storage.batch import Batch, Ints


class BatchSource(Protocol):
    """Endless batches, one per optimiser step; `storage.stream.Stream` is one."""

    @property
    def steps_per_epoch(self) -> float:
        """Batches in one pass over the data; need not be whole, batches run over epoch borders."""
        ...

    def __next__(self) -> Batch:
        """The batch of the next step."""
        ...

    def state_dict(self) -> Mapping[str, Any]:
        """Position after the batches handed out so far."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a position; refuses one of other data."""
        ...


def step_count(config: Training, steps_per_epoch: float) -> int:
    """Optimiser steps of a run; a fraction of an epoch is rounded, to at least one step."""
    if config.steps is not None:
        return config.steps
    assert config.epochs is not None, "Training demands one of the two"
    return max(1, round(config.epochs * steps_per_epoch))


def cut(batch: Batch, token_budget: int) -> list[tuple[Batch, Ints]]:
    """Groups of sequences of similar length that fit the budget once padded, and which they are.

    A batch that fits is passed on without a copy. An empty batch yields no micro-batches.
    """
    if batch.tokens and len(batch) * int(batch.lengths.max()) <= token_budget:
        return [(batch, np.arange(len(batch)))]
    return [(batch.select(row_n), row_n) for row_n in batch.microbatch_rows(token_budget)]


def microbatches(
    batch: Batch, token_budget: int, device: torch.device
) -> Iterator[tuple[Batch, TorchRecords]]:
    """The groups of `cut`, one at a time with its records."""
    for part, _ in cut(batch, token_budget):
        yield part, TorchRecords.from_batch(part, device)
