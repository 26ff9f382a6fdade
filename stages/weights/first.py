"""The start of each response: training on a prefix is as good as on all of it, or nearly.

The first 30 % of the tokens do (arXiv 2606.22600), or a fixed number (arXiv 2602.15260). A share
is of a length that is known only once the response has ended, so it looks at more than the context.
"""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.table import Positive
from stages.weights.base import Doubles, Positions, Reads, Weight

_ROUNDING = 1e-9
"""Share times length may come out a little above the whole number that it is."""


class FirstShare(Weight):
    """Keep the first share of the tokens of each response, at least one."""

    name: Literal["first_share"] = "first_share"
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Of the length of the response, rounded up."""

    reads: ClassVar[Reads] = "token"
    reason: ClassVar[str] = (
        "whether the place is in the first share of the response, whose length follows from what "
        "was realised"
    )

    def score(self, at: Positions) -> Doubles:
        """1 or 0."""
        kept_N = np.ceil(self.share * at.length_N - _ROUNDING)
        return (at.index_T < kept_N[at.row_T]).astype(np.float64)


class FirstTokens(Weight):
    """Keep the first tokens of each response."""

    name: Literal["first_tokens"] = "first_tokens"
    tokens: Positive = 100
    """How many."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "whether the place is among the first ones of the response"

    def score(self, at: Positions) -> Doubles:
        """1 or 0."""
        return (at.index_T < self.tokens).astype(np.float64)
