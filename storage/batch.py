"""`Batch`: what trainer and evaluator consume. Plain NumPy, CSR, free of codec options.

Shape letters: N sequences, P prompt tokens, T positions, E entries, each over the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.rows import Offsets, join_segments, offsets_of
from storage.schema import Array

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Entries(NamedTuple):
    """The fields of `Batch` that have one value per entry of one draw, and their offsets."""

    entry_off: NDArray[np.int64]
    """[T+1]"""
    ids: NDArray[np.int64]
    weight: NDArray[np.float32]
    """Sums to 1 over a position, up to float32."""
    logp: NDArray[np.float32]
    exact: NDArray[np.bool_]

    @classmethod
    def empty(cls, positions: int, entries: int) -> "Entries":
        """Arrays to be filled; the offsets are zeros."""
        return cls(
            np.zeros(positions + 1, np.int64),
            np.empty(entries, np.int64),
            np.empty(entries, np.float32),
            np.empty(entries, np.float32),
            np.empty(entries, np.bool_),
        )


@dataclass(frozen=True)
class Batch:
    """N sequences with the teacher's record at each position. Arrays may be read-only views."""

    seq_id: Ints
    """[N]"""
    prompt_id: Ints
    """[N]"""
    outcome: NDArray[np.int8]
    """[N] -1 unknown, 0 wrong, 1 right."""
    prompt: Ints
    """[P] prompt ids."""
    prompt_off: Offsets
    """[N+1]"""
    tok: Ints
    """[T] response ids, the end token included."""
    tok_off: Offsets
    """[N+1]"""
    ref_lp: Floats | None
    """[T] log-probability with which `tok` was drawn; None for a corpus."""
    lp: Floats | None
    """[T] teacher log-probability of `tok`; None for plain sequences."""
    ent: Floats | None
    """[T] teacher entropy in nats; None for plain sequences."""
    entry_off: Offsets
    """[T+1] entries of position t are `entry_off[t]:entry_off[t+1]`."""
    ids: Ints
    """[E]"""
    weight: Floats
    """[E] unbiased estimate of the teacher's probability of the id; sums to 1 over a position."""
    logp: Floats
    """[E] teacher log-probability wherever it is stored, NaN elsewhere: always on the head, on
    sampled ids where the set keeps it."""
    exact: NDArray[np.bool_]
    """[E] whether the id belongs to the head, chosen without chance."""
    rest: Floats
    """[T] teacher mass outside the exact ids; 1 where nothing is exact."""
    lz: Floats | None = None
    """[T] log sum_v p(v)**(temperature / loss_temperature): turns log p into the log-probabilities
    at the loss temperature; None where the set keeps no second temperature."""

    @classmethod
    def concat(cls, batches: "Sequence[Batch]") -> "Batch":
        """The sequences of all batches, one batch after the other; at least one, of one set."""
        if len(batches) == 1:
            return batches[0]
        joined: dict[str, Any] = {}
        for item in fields(cls):
            arrays = [getattr(batch, item.name) for batch in batches]
            if item.name.endswith("_off"):
                joined[item.name] = offsets_of(np.concatenate([np.diff(array) for array in arrays]))
            else:
                joined[item.name] = None if arrays[0] is None else np.concatenate(arrays)
        return cls(**joined)

    def __len__(self) -> int:
        return len(self.seq_id)

    @property
    def tokens(self) -> int:
        """Number of positions T."""
        return len(self.tok)

    @property
    def lengths(self) -> Ints:
        """[N] tokens of each sequence, prompt plus response."""
        return np.diff(self.prompt_off) + np.diff(self.tok_off)

    def select(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> "Batch":
        """The sequences at `indices`, in that order."""
        row_N = np.asarray(indices, np.int64)
        return self._cut(row_N, np.diff(self.tok_off)[row_N])

    def truncate(self, max_length: int) -> "Batch":
        """Cut the tail of each response so that prompt plus response has at most `max_length`.

        A prompt as long as that leaves a sequence without positions; it stays in the batch, and
        `microbatches` passes over it.
        """
        if not len(self) or int(self.lengths.max()) <= max_length:
            return self
        kept_N = np.clip(max_length - np.diff(self.prompt_off), 0, np.diff(self.tok_off))
        return self._cut(np.arange(len(self)), kept_N)

    def microbatches(self, token_budget: int) -> "list[Batch]":
        """Split into batches of similar length that fit a budget once padded.

        Args:
            token_budget: Largest number of sequences times longest sequence (prompt plus
                response). A single sequence above it still gets a batch of its own.

        Returns:
            Batches that together hold every sequence with at least one position once, longest
            sequences first (so that running out of memory shows at once).
        """
        return [self.select(row_n) for row_n in self.microbatch_rows(token_budget)]

    def microbatch_rows(self, token_budget: int) -> "list[Ints]":
        """The sequences that each of `microbatches` holds."""
        lengths_N = self.lengths
        order = np.argsort(-lengths_N, kind="stable")
        order = order[np.diff(self.tok_off)[order] > 0]
        out: list[Ints] = []
        start = 0
        while start < len(order):
            count = max(1, token_budget // int(lengths_N[order[start]]))
            out.append(order[start : start + count])
            start += count
        return out

    def _cut(self, row_N: Ints, kept_N: Ints) -> "Batch":
        """The first `kept_N` positions of the sequences `row_N`."""
        prompt_N, first_N = self.prompt_off[row_N], self.tok_off[row_N]
        entry_N = self.entry_off[first_N]

        def prompt(values: Ints) -> Ints:
            return join_segments(values, prompt_N, np.diff(self.prompt_off)[row_N])

        def position(values: Array) -> Array:
            return join_segments(values, first_N, kept_N)

        def position_if(values: Array | None) -> Array | None:
            return None if values is None else position(values)

        def entry(values: Array) -> Array:
            return join_segments(values, entry_N, self.entry_off[first_N + kept_N] - entry_N)

        return Batch(
            seq_id=self.seq_id[row_N],
            prompt_id=self.prompt_id[row_N],
            outcome=self.outcome[row_N],
            prompt=prompt(self.prompt),
            prompt_off=offsets_of(np.diff(self.prompt_off)[row_N]),
            tok=position(self.tok),
            tok_off=offsets_of(kept_N),
            ref_lp=position_if(self.ref_lp),
            lp=position_if(self.lp),
            ent=position_if(self.ent),
            entry_off=offsets_of(position(np.diff(self.entry_off))),
            ids=entry(self.ids),
            weight=entry(self.weight),
            logp=entry(self.logp),
            exact=entry(self.exact),
            rest=position(self.rest),
            lz=position_if(self.lz),
        )
