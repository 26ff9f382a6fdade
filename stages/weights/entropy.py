"""The positions at which the student is least certain (the entropy score of TIP and others)."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.weights.base import Doubles, Positions, Reads, Weight, rounded, top_share


class Entropy(Weight):
    """Keep the positions of each step at which the student has the highest entropy."""

    name: Literal["entropy"] = "entropy"
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the positions of the step, over all micro-batches and processes."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = (
        "whether the student's entropy there is among the highest of the step (that bar is a "
        "quantile of many contexts, taken as given)"
    )
    reads_student: ClassVar[bool] = True
    whole_step: ClassVar[bool] = True

    def score(self, at: Positions) -> Doubles:
        """Entropy in nats, rounded."""
        assert at.student is not None, "the weight says `reads_student`"
        return rounded(at.student.entropy_T.astype(np.float64))

    def weigh(self, score: Doubles) -> Doubles:
        """Exactly `keep` of the step."""
        return top_share(score, self.keep)
