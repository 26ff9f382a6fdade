"""SCOPE: which responses to a prompt are worth most, right and wrong ones apart (arXiv 2604.10688).

Of the wrong responses to a prompt, those weigh most of which the teacher is least surprised, since
there it can correct; of the right ones, those which the student finds least likely, since the
others it knows. With PPL the perplexity of a response per token, its weight is (equations 4 and 5)

    right   PPL_S^(1/tau)  / sum of the same over the right responses to the prompt
    wrong   PPL_T^(-1/tau) / sum of the same over the wrong ones

so right and wrong responses to a prompt weigh 1 together each. The student is pi_ref here, by the
stored probability of what it wrote; the sums run over the whole set, not over one step.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.weights.base import (
    Doubles,
    Positions,
    Reads,
    RecordPart,
    Responses,
    Weight,
)


class Scope(Weight):
    """Weigh each response by its perplexity among those of the same outcome to the same prompt."""

    name: Literal["scope"] = "scope"
    tau: Annotated[float, Field(gt=0.0)] = 1.0
    """Temperature of the softmax: the larger, the more alike all responses weigh."""

    reads: ClassVar[Reads] = "token"
    reason: ClassVar[str] = (
        "the perplexity of the response among those of its outcome, to the teacher for wrong ones "
        "and to pi_ref for right ones"
    )
    reads_outcome: ClassVar[bool] = True
    reads_groups: ClassVar[bool] = True

    @property
    def reads_record(self) -> RecordPart:
        """log p of the realised tokens."""
        return "token"

    def group_score(self, of: Responses) -> Doubles:
        """The logarithm of a power of the perplexity; -inf for what nobody has judged."""
        score_N = np.where(of.right_N, -of.mean_ref_lp_N, of.mean_lp_N) / self.tau
        return np.where(of.right_N | of.wrong_N, score_N, -np.inf)

    def score(self, at: Positions) -> Doubles:
        """The softmax within the group, the same at all positions of a response."""
        responses = at.responses
        judged_N = responses.right_N | responses.wrong_N
        sum_N = np.where(judged_N, at.groups[self.name].of(responses), 0.0)
        return np.exp(self.group_score(responses) - sum_N)[at.row_T]
