"""Early positions count more: the first tokens of a response decide the rest.

CORD (arXiv 2601.16547) weighs the tokens of its on-policy reverse KL by their importance, early
ones first; later positions are contexts that the teacher knows less of (arXiv 2606.22600). The
form here is a half-life.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.weights.base import Doubles, Positions, Reads, Weight


class PositionDecay(Weight):
    """Halve the weight of a position every `half_life` tokens of the response."""

    name: Literal["position_decay"] = "position_decay"
    half_life: Annotated[float, Field(gt=0.0)] = 100.0
    """Tokens."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "the place in the response, counted from its start"

    def score(self, at: Positions) -> Doubles:
        """0.5^(index / half_life)."""
        return 0.5 ** (at.index_T / self.half_life)
