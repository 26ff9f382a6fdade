"""Long responses count less for each of their tokens, or more."""

from typing import ClassVar, Literal

import numpy as np

from stages.weights.base import Doubles, Positions, Reads, Weight


class Length(Weight):
    """Weigh each position by a power of the length of its response."""

    name: Literal["length"] = "length"
    power: float = -1.0
    """-1: all responses count alike, however long they are; the step's loss is then the mean over
    its sequences of their mean over tokens."""

    reads: ClassVar[Reads] = "token"
    reason: ClassVar[str] = "a power of the length of the response, which follows from its tokens"

    def score(self, at: Positions) -> Doubles:
        """length^power, the same at all positions of a response."""
        return np.maximum(1, at.length_N).astype(np.float64)[at.row_T] ** self.power
