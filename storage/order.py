"""The order in which sequences are read: pure arithmetic on a seed and the row counts.

One endless sequence of sequences: epoch after epoch, each a permutation of row groups with the
sequences of every group permuted inside it. Where the n-th sequence lies follows from n alone, so
resuming costs nothing, and every rank can find its own share of a step without talking to others.

Permutations sort raw Philox output instead of calling `Generator.permutation`: NumPy promises that
the bit stream never changes, but not what its generators make of it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Span(NamedTuple):
    """Some sequences of one row group, in reading order."""

    epoch: int
    """Which pass over the data."""
    group: int
    """Number of the row group in the split."""
    rows: Ints
    """Numbers of the sequences inside the group."""


class Order:
    """The endless order over row groups of the given sizes.

    Args:
        sizes: [G] sequences per row group; zeros are allowed.
        seed: Any integer; taken modulo 2**64.
    """

    def __init__(self, sizes: Ints, seed: int) -> None:
        self._sizes = sizes
        self._seed = seed % (1 << 64)
        self.total = int(sizes.sum())
        self._epoch: int = -1
        self._groups = self._ends = np.zeros(0, np.int64)

    def spans(self, first: int, count: int) -> Iterator[Span]:
        """Where sequences `first` to `first + count` of the endless order lie."""
        while count > 0:
            epoch, offset = divmod(first, self.total)
            if epoch != self._epoch:
                self._groups = permutation(len(self._sizes), self._seed, epoch, 0)
                self._ends = np.cumsum(self._sizes[self._groups])
                self._epoch = epoch
            slot = int(np.searchsorted(self._ends, offset, side="right"))
            group = int(self._groups[slot])
            size = int(self._sizes[group])
            start = offset - (int(self._ends[slot]) - size)
            taken = min(count, size - start)
            inside = permutation(size, self._seed, epoch, group + 1)
            yield Span(epoch, group, inside[start : start + taken])
            first += taken
            count -= taken


def permutation(count: int, seed: int, epoch: int, stream: int) -> Ints:
    """A permutation of range(count), uniform up to ties of 64-bit numbers.

    Args:
        count: Number of items.
        seed, epoch: The Philox key.
        stream: 0 for the row groups, g + 1 for the sequences of group g; the high counter word, so
            that streams never overlap.
    """
    key = np.array([seed, epoch], np.uint64)  # a plain list beyond 2**63 would turn into floats
    bits = np.random.Philox(key=key, counter=[0, 0, 0, stream])
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64, copy=False)
