"""Teachers, real and synthetic, as benchmarks of records see them: rows of logits.

Shape letters: T positions, R rows of a block, V vocabulary, C candidates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.generator import SETS, Teacher, World

Array = NDArray[Any]

_ROWS = 64
"""Rows of 151,936 float32 logits at a time: 39 MB."""
_DEAR, _LARGE = 4_064, 10_000
"""Positions of a row group of windows of 128 tokens; ids from which a vocabulary is large."""
_COUNTED = 8192
"""Positions whose tokens are counted."""


class Block(NamedTuple):
    """Some positions in a row."""

    z_RV: NDArray[np.float32]
    """Logits."""
    tok_R: NDArray[np.int64]
    """Realised tokens."""
    cand_RC: NDArray[np.int64]
    """Likeliest ids of the policy that drew them; C = 0 for text."""


class Source(Protocol):
    """A teacher and the positions it is asked about; walking over them twice gives the same."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        ...

    def blocks(self, positions: int) -> Iterator[Block]:
        """The first `positions` positions, or all there are, block by block."""
        ...

    def lengths(self, positions: int) -> NDArray[np.int64]:
        """Lengths of the sequences these positions form."""
        ...

    def frequencies(self) -> NDArray[np.int64]:
        """[V] how often each id is realised, in all the sequences there are."""
        ...


def affordable(source: Source, positions: int) -> int:
    """So many positions, or fewer where the vocabulary makes each of them dear."""
    return min(positions, _DEAR) if source.vocabulary > _LARGE else positions


@dataclass(frozen=True)
class Synthetic:
    """One of the sets of `benchmarks.generator`."""

    name: str
    world: World
    seed: int = 1

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return len(self.world.unigram_V)

    def blocks(self, positions: int) -> Iterator[Block]:
        """Rows of logits over the whole vocabulary."""
        for block in Teacher(SETS[self.name], self.seed, self.world).blocks(positions):
            for start in range(0, len(block), _ROWS):
                stop = min(start + _ROWS, len(block))
                none_RC = np.zeros((stop - start, 0), np.int64)
                z_RV = block.log_p(start, stop, self.world)
                yield Block(z_RV, block.tok_T[start:stop], none_RC)

    def lengths(self, positions: int) -> NDArray[np.int64]:
        """Lengths of rollouts."""
        return Teacher(SETS[self.name], self.seed + 1, self.world).lengths(positions)

    def frequencies(self) -> NDArray[np.int64]:
        """Those of a few thousand positions: there is no end of them."""
        teacher = Teacher(SETS[self.name], self.seed + 2, self.world)
        return np.bincount(teacher.block(_COUNTED).tok_T, minlength=self.vocabulary)
