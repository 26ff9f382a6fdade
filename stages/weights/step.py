"""The weights of all positions of one optimiser step, over micro-batches and ranks.

Every weight is scored micro-batch by micro-batch. Those that compare the positions of the step are
then given all scores in the order of the step: rank by rank, and on each rank in the order of its
batch, which is the same however the step is cut. So neither micro-batches nor the number of
processes change a weight.

Shape letters: T positions of this rank's batch, t positions of one micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from stages.weights.base import Doubles, GroupSums, PassRates, Positions, StudentView, Weight
from storage.batch import Batch, Ints
from storage.errors import DataError
from storage.rows import join_segments


@dataclass(frozen=True)
class Weighting:
    """The weights of a run."""

    weights: tuple[Weight, ...]
    """At least one; they multiply."""
    normalise: Literal["weights", "count"]
    """What the weighted sum of losses is divided by: the sum of weights, or the positions."""
    seed: int
    rates: PassRates | None = None
    """Where a weight reads them."""
    groups: Mapping[str, GroupSums] = field(default_factory=dict[str, GroupSums])
    """By name, of the weights that read them."""

    @property
    def compares_student(self) -> bool:
        """Whether the student must be read at all positions before any of them has a weight."""
        return any(one.whole_step and one.reads_student for one in self.weights)

    @property
    def reads_student_alone(self) -> bool:
        """Whether the student's distribution at a position decides its weight without others."""
        return any(one.reads_student and not one.whole_step for one in self.weights)


class StepGroup(Protocol):
    """The processes that share a step; `training.group.Group` is one."""

    @property
    def rank(self) -> int:
        """Number of this process."""
        ...

    def all_gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order."""
        ...


class StepWeights:
    """The weights of one step on one rank: `compare` once, then `of` for every micro-batch.

    Args:
        weighting: The weights of the run.
        step: Optimiser step, from 0.
        batch: The share of this rank.
        parts: Its micro-batches, and the sequences of `batch` that each of them holds.
    """

    def __init__(
        self,
        weighting: Weighting,
        step: int,
        batch: Batch,
        parts: Sequence[tuple[Batch, Ints]],
    ) -> None:
        self.weighting, self._step = weighting, step
        self._parts = [part for part, _ in parts]
        self._tokens = batch.tokens
        place_T = np.arange(batch.tokens)
        starts_N, length_N = batch.tok_off[:-1], np.diff(batch.tok_off)
        self._places = [
            join_segments(place_T, starts_N[row_n], length_N[row_n]) for _, row_n in parts
        ]
        self._compared_T: Doubles | None = None
        self._sum, self._fault = 0.0, ""

    @property
    def compared(self) -> bool:
        """Whether `compare` was called."""
        return self._compared_T is not None

    def compare(self, students: Sequence[StudentView | None], group: StepGroup) -> None:
        """Weigh by whatever needs the whole step; every rank must call it.

        Args:
            students: Per micro-batch; None if no weight of the whole step reads the student.
            group: The ranks that share the step.
        """
        self._compared_T = np.ones(self._tokens)
        for weight in self.weighting.weights:
            if not weight.whole_step:
                continue
            own: Doubles | None = None
            for place_t, part, student in zip(self._places, self._parts, students, strict=True):
                score_t = weight.score(self._positions(part, student))
                if own is None:
                    own = np.empty((self._tokens, *score_t.shape[1:]))
                own[place_t] = score_t
            shares = group.all_gather(own)  # None from a rank without positions
            before = sum(len(share) for share in shares[: group.rank] if share is not None)
            found = weight.weigh(np.concatenate([share for share in shares if share is not None]))
            self._compared_T *= found[before : before + self._tokens]

    def of(self, number: int, student: StudentView | None) -> Doubles:
        """Weights [t] of the micro-batch of this number."""
        assert self._compared_T is not None, "`compare` comes first"
        weight_t = self._compared_T[self._places[number]]
        part = self._parts[number]
        for weight in self.weighting.weights:
            if not weight.whole_step:
                weight_t = weight_t * weight.score(self._positions(part, student))
        if wrong := np.flatnonzero(~(np.isfinite(weight_t) & (weight_t >= 0.0))).tolist():
            row = int(np.searchsorted(part.tok_off, wrong[0], side="right")) - 1
            self._fault = f"a weight of {weight_t[wrong[0]]:g} in sequence {part.seq_id[row]}"
        self._sum += float(weight_t.sum())
        return weight_t

    def total(self, name: str, group: StepGroup) -> float:
        """Sum of the weights of the step over all ranks; every rank must call it.

        Raises:
            DataError: a weight is not finite or negative, or all of them are zero.
        """
        sums, faults = zip(*group.all_gather((self._sum, self._fault)), strict=True)
        tables = ", ".join(weight.name for weight in self.weighting.weights)
        if fault := next(filter(None, faults), ""):
            raise DataError(
                f"{name}: step {self._step + 1}: {fault}: the product of train.weights ({tables}) "
                "must be finite and not negative at every position"
            )
        if not sum(sums):
            raise DataError(
                f"{name}: step {self._step + 1}: every position has weight zero, so there is "
                f"nothing to train on. Loosen train.weights ({tables}), raise `batch_size`, or "
                "remove the sequences that never count."
            )
        return sum(sums)

    def _positions(self, part: Batch, student: StudentView | None) -> Positions:
        of = self.weighting
        return Positions(part, of.seed, self._step, student, of.rates, of.groups)
