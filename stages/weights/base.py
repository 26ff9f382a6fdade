"""What a weight is, and what it may read.

Shape letters: N sequences, T positions (response tokens of these sequences), E entries (stored ids,
those of position t are `entry_off[t]:entry_off[t + 1]`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from stages.table import Choice
from storage.batch import Batch, Floats, Ints
from storage.schema import OUTCOME

Doubles = NDArray[np.float64]

Reads = Literal["context", "token", "draw"]
"""The most revealing thing a weight looks at:

    context   nothing that was drawn at this position: the student's and the teacher's distribution
              there, the ids chosen without randomness, the index in the response, the tokens before
    token     the realised token or what follows from it: the rest of the response, its length, its
              outcome
    draw      the ids (or counts) the record drew from the teacher
"""

RecordPart = Literal["nothing", "token", "entropy", "head"]
"""What a weight reads of the teacher's record: nothing, log p of the realised token, the teacher's
entropy, or the ids chosen without chance and their log p."""

_QUANTUM = 2.0**-14
"""Nats; see `rounded`."""


@dataclass(frozen=True)
class StudentView:
    """The student's distribution at T positions, at the temperature of the loss; no gradient."""

    logq_E: Floats
    """Log-probability of each stored id."""
    logq_T: Floats
    """Log-probability of the realised token."""
    confidence_T: Floats
    """Probability of the likeliest id."""
    entropy_T: Floats
    """In nats."""


@dataclass(frozen=True)
class PassRates:
    """Share of right responses per prompt, in the set that is trained on."""

    prompt_id_P: Ints
    """Rising."""
    rate_P: Doubles

    def of(self, prompt_id_N: Ints) -> Doubles:
        """The rates of prompts of the set."""
        return self.rate_P[np.searchsorted(self.prompt_id_P, prompt_id_N)]


@dataclass(frozen=True)
class Responses:
    """N responses as a whole: what is stored of them, and log-probabilities per token."""

    prompt_id_N: Ints
    outcome_N: NDArray[np.int8]
    mean_lp_N: Doubles
    """Of the teacher."""
    mean_ref_lp_N: Doubles
    """Of the policy that wrote them."""

    @property
    def right_N(self) -> NDArray[np.bool_]:
        """Whether they are right."""
        return self.outcome_N == OUTCOME["right"]

    @property
    def wrong_N(self) -> NDArray[np.bool_]:
        """Whether they were judged and are not."""
        return ~self.right_N & (self.outcome_N != OUTCOME["unknown"])


@dataclass(frozen=True)
class GroupSums:
    """Per prompt, log of the sum of exp(`group_score`) over its right and its wrong responses."""

    prompt_id_P: Ints
    """Rising."""
    right_P: Doubles
    """-inf where none is right."""
    wrong_P: Doubles

    def of(self, responses: Responses) -> Doubles:
        """The sums of the groups to which responses of the set belong."""
        place_N = np.searchsorted(self.prompt_id_P, responses.prompt_id_N)
        return np.where(responses.right_N, self.right_P[place_N], self.wrong_P[place_N])


@dataclass(frozen=True)
class Positions:
    """Positions of whole sequences, in their order, and all that a weight may know of them."""

    batch: Batch
    """Sequences and the teacher's records of their positions."""
    seed: int
    """Of the run."""
    step: int
    """Optimiser step, from 0."""
    student: StudentView | None = None
    """For weights that say `reads_student`."""
    rates: PassRates | None = None
    """For weights that say `reads_rates`."""
    groups: Mapping[str, GroupSums] = field(default_factory=dict[str, GroupSums])
    """By name, for weights that say `reads_groups`."""

    def __len__(self) -> int:
        return self.batch.tokens

    @property
    def length_N(self) -> Ints:
        """Response tokens of each sequence."""
        return np.diff(self.batch.tok_off)

    @cached_property
    def row_T(self) -> Ints:
        """The sequence of each position: `values_N[row_T]` turns [N] into [T]."""
        return np.repeat(np.arange(len(self.batch)), self.length_N)

    @cached_property
    def index_T(self) -> Ints:
        """Place of each position in its response, from 0."""
        return np.arange(len(self)) - self.batch.tok_off[self.row_T]

    @cached_property
    def row_E(self) -> Ints:
        """The position of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.batch.entry_off))

    @property
    def teacher_entropy_T(self) -> Doubles:
        """In nats, at the temperature of the record."""
        assert self.batch.ent is not None, "the weight says what it `reads_record`"
        return self.batch.ent.astype(np.float64)

    @property
    def responses(self) -> Responses:
        """The sequences as a whole."""
        lp_T, ref_lp_T = self.batch.lp, self.batch.ref_lp
        assert lp_T is not None, "the weight says what it `reads_record`"
        assert ref_lp_T is not None, "`reads_groups` needs it"
        length_N = np.maximum(1, self.length_N)
        mean_lp_N, mean_ref_lp_N = (
            np.bincount(self.row_T, weights=values_T, minlength=len(self.batch)) / length_N
            for values_T in (lp_T, ref_lp_T)
        )
        return Responses(self.batch.prompt_id, self.batch.outcome, mean_lp_N, mean_ref_lp_N)

    @property
    def pass_rate_N(self) -> Doubles:
        """Share of right responses to the prompt of each sequence, in the set trained on."""
        assert self.rates is not None, "the weight says `reads_rates`"
        return self.rates.of(self.batch.prompt_id)


class Weight(Choice):
    """Base of all weights: reading a table of `[[train.weights]]` gives the class with its `name`.

    A weight that looks at one position at a time defines `score`, which is the weight. One that
    compares the positions of a step says `whole_step` and defines `weigh` too: it is given the
    scores of all positions on all ranks, in the order of the step, and returns their weights.
    Results must be finite and not negative.
    """

    name: str

    reads: ClassVar[Reads]
    """What the contract asks."""
    reason: ClassVar[str]
    """For the contract: what the loss is "weighted by"."""
    reads_student: ClassVar[bool] = False
    """Whether `score` reads `Positions.student`."""
    reads_outcome: ClassVar[bool] = False
    """Whether `score` reads the outcome of a sequence; the set must then have some."""
    reads_rates: ClassVar[bool] = False
    """Whether `score` reads the pass rates of the prompts."""
    reads_groups: ClassVar[bool] = False
    """Whether `score` compares a response with others to its prompt, by `group_score`."""
    reads_policy: ClassVar[bool] = False
    """Whether `score` compares the student with the policy that drew the tokens (`ref_lp`)."""
    whole_step: ClassVar[bool] = False
    """Whether `weigh` needs the scores of all positions of the step."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Check that a weight says what the contract asks."""
        super().__pydantic_init_subclass__(**kwargs)
        if lacking := [field for field in ("reads", "reason") if not hasattr(cls, field)]:
            raise TypeError(f"{cls.__qualname__} does not say {' and '.join(lacking)}: see Weight")

    @property
    def reads_record(self) -> RecordPart:
        """What `score` reads of the teacher's record, which must then have it."""
        return "nothing"

    def group_score(self, of: Responses) -> Doubles:
        """[N]; `at.groups` has their log sum exp over the responses of one prompt and outcome."""
        raise NotImplementedError

    def score(self, at: Positions) -> Doubles:
        """[T], or [T, k] if `weigh` wants several figures per position."""
        raise NotImplementedError

    def weigh(self, score: Doubles) -> Doubles:
        """Weights [T] of all positions of the step from their scores."""
        return score


def top_share(score_T: Doubles, share: float) -> Doubles:
    """1 at the round(share T) positions with the highest score, at least one; 0 elsewhere.

    Among equal scores the position that comes first in the step is kept.
    """
    kept = max(1, round(share * len(score_T)))
    weight_T = np.zeros(len(score_T))
    weight_T[np.argsort(-score_T, kind="stable")[:kept]] = 1.0
    return weight_T


def quantiles(value_T: Doubles) -> Doubles:
    """Share of the values that are smaller, equal ones counted half: between 0 and 1."""
    ordered_T = np.sort(value_T)
    below_T = np.searchsorted(ordered_T, value_T, "left")
    up_to_T = np.searchsorted(ordered_T, value_T, "right")
    return (below_T + up_to_T) / (2.0 * max(1, len(value_T)))


def rounded(nats: Doubles) -> Doubles:
    """Nats rounded to 2^-14.

    How a step is cut into micro-batches changes the last digits of a student's statistics, and must
    not change what is selected by them: values that differ by less are ties, which the order of the
    step breaks.
    """
    return np.round(nats / _QUANTUM) * _QUANTUM
