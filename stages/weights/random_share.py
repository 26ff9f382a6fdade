"""A random share of the positions: what every other selection is to be compared with."""

import zlib
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stages.counter import uniform
from stages.weights.base import Doubles, Positions, Reads, Weight, top_share

_STREAM = zlib.crc32(b"weights/random")
"""Separates these numbers from all others that are drawn with the seed of the run."""


class Random(Weight):
    """Keep a random share of the positions of each step, drawn afresh at every step."""

    name: Literal["random"] = "random"
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of the positions of the step."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = "a fresh random choice of positions"
    whole_step: ClassVar[bool] = True

    def score(self, at: Positions) -> Doubles:
        """A uniform number per position; a hash of seed, step, sequence and index."""
        return uniform(at.seed, _STREAM, at.step, at.batch.seq_id[at.row_T], at.index_T)

    def weigh(self, score: Doubles) -> Doubles:
        """Exactly `keep` of the step, as many as a selection by `entropy` keeps."""
        return top_share(score, self.keep)
