"""TIP: the positions at which a student has most to learn (arXiv 2604.14084).

These are of two sorts: where the student is unsure, and where it is sure and the teacher disagrees.
With h for the student's entropy and d for its divergence from the teacher, both between 0 and 1,
the positions with the highest score are kept:

    entropy   h
    soft_or   h + d - h d     unsure, or at odds with the teacher
    q3        (1 - h) d       sure, and at odds with the teacher

h and d are quantiles here: the share of the positions of the step that have less. A single position
far from the teacher, or another unit, then changes nothing of how the two compare. The divergence
is KL(q || p) with everything outside the head of the record as one symbol, which is never above the
whole one.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.table import KeyName
from stages.weights.base import (
    Doubles,
    Positions,
    Reads,
    RecordPart,
    Weight,
    quantiles,
    rounded,
    top_share,
)

_FLOOR = 1e-12
"""Smallest mass outside the head that a logarithm is taken of."""


class Tip(Weight):
    """Keep the positions of each step with the highest score of TIP."""

    name: Literal["tip"] = "tip"
    score_by: Annotated[
        Literal["entropy", "soft_or", "q3"], Field(alias="score"), KeyName("score")
    ] = "soft_or"
    """What the positions are chosen by: the student's entropy, that or its divergence from the
    teacher, or divergence where the student is sure."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the positions of the step, over all micro-batches and processes."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = (
        "whether the student's entropy and its divergence from the teacher there are among the "
        "highest of the step (that bar is a quantile of many contexts, taken as given)"
    )
    reads_student: ClassVar[bool] = True
    whole_step: ClassVar[bool] = True

    @property
    def reads_record(self) -> RecordPart:
        """The head, unless entropy alone decides."""
        return "nothing" if self.score_by == "entropy" else "head"

    def score(self, at: Positions) -> Doubles:
        """[T, 2]: entropy of the student and divergence from the teacher in nats, rounded."""
        assert at.student is not None, "the weight says `reads_student`"
        entropy_T = at.student.entropy_T.astype(np.float64)
        divergence_T = np.zeros(len(at)) if self.score_by == "entropy" else bucketed_reverse_kl(at)
        return rounded(np.stack([entropy_T, divergence_T], axis=1))

    def weigh(self, score: Doubles) -> Doubles:
        """Exactly `keep` of the step."""
        h_T, d_T = quantiles(score[:, 0]), quantiles(score[:, 1])
        chosen_by = {"entropy": h_T, "soft_or": h_T + d_T - h_T * d_T, "q3": (1.0 - h_T) * d_T}
        return top_share(chosen_by[self.score_by], self.keep)


def bucketed_reverse_kl(at: Positions) -> Doubles:
    """KL(q || p) [T] with everything outside the head of the record as one symbol."""
    batch, student = at.batch, at.student
    assert student is not None, "the weight says `reads_student`"
    logq_E = student.logq_E.astype(np.float64)
    q_E = np.where(batch.exact, np.exp(logq_E), 0.0)
    gap_E = np.where(batch.exact, logq_E - batch.logp, 0.0)
    inside_T = np.bincount(at.row_E, weights=q_E * gap_E, minlength=len(at))
    q_T = 1.0 - np.bincount(at.row_E, weights=q_E, minlength=len(at))
    q_T = np.maximum(q_T, _FLOOR)
    p_T = np.maximum(batch.rest.astype(np.float64), _FLOOR)
    return np.maximum(0.0, inside_T + q_T * np.log(q_T / p_T))
