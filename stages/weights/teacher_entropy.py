"""Positions at which the teacher is sure: its entropy is stored with every record.

SRPO (arXiv 2604.02288) suppresses targets of high entropy, which a teacher gives where it does not
know; exp(-beta H) is one form of it.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.weights.base import Doubles, Positions, Reads, RecordPart, Weight


class TeacherEntropy(Weight):
    """Weigh each position by exp(-beta H), H being the teacher's entropy there."""

    name: Literal["teacher_entropy"] = "teacher_entropy"
    beta: Annotated[float, Field(gt=0.0)] = 1.0
    """Per nat."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "the teacher's entropy there"

    @property
    def reads_record(self) -> RecordPart:
        """The stored entropy."""
        return "entropy"

    def score(self, at: Positions) -> Doubles:
        """exp(-beta H)."""
        return np.exp(-self.beta * at.teacher_entropy_T)
