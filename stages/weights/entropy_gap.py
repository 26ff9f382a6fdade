"""Positions at which the student is less sure than the teacher (TSD-KD, arXiv 2603.13260).

The direct part of TSD-KD weighs the divergence of each token by sigmoid(H_S - H_T): where the
student is the surer one, the teacher has little to say.
"""

from typing import ClassVar, Literal

import numpy as np

from stages.weights.base import Doubles, Positions, Reads, RecordPart, Weight


class EntropyGap(Weight):
    """Weigh each position by sigmoid(H_S - H_T), the entropies of student and teacher in nats."""

    name: Literal["entropy_gap"] = "entropy_gap"

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "how much less sure than the teacher the student is there"
    reads_student: ClassVar[bool] = True

    @property
    def reads_record(self) -> RecordPart:
        """The stored entropy."""
        return "entropy"

    def score(self, at: Positions) -> Doubles:
        """Between 0 and 1."""
        assert at.student is not None, "the weight says `reads_student`"
        gap_T = at.student.entropy_T.astype(np.float64) - at.teacher_entropy_T
        return 1.0 / (1.0 + np.exp(-gap_T))
