"""Counter-based randomness: every random value is a hash of (seed, counters), never of an order.

Values do not depend on which worker, batch or attempt uses them, and are the same with every
version of NumPy. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast
splittable pseudorandom number generators", OOPSLA 2014), applied once per counter.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6

Words = NDArray[np.uint64]


def hash64(seed: int, *counters: ArrayLike) -> Words:
    """64 random bits for each element of the counters, which are broadcast against each other."""
    word = _mix(np.full((1,), seed & 0xFFFFFFFFFFFFFFFF, np.uint64))
    for counter in counters:
        word = _mix(word ^ np.asarray(counter).astype(np.uint64))
    return word


def _mix(word: Words) -> Words:
    word = word + _GOLDEN
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def uniform(seed: int, *counters: ArrayLike) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1) with 53 random bits, shaped as `hash64`."""
    return (hash64(seed, *counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(index: ArrayLike, size: int, seed: int) -> NDArray[np.int64]:
    """Places of `index` in a seeded permutation of range(size), in constant memory.

    A Feistel network over the next even number of bits; values outside the range are sent round
    again until they fall inside (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite
    domains", CT-RSA 2002).

    Args:
        index: Integers in [0, size).
        size: Length of the permuted range.
        seed: Names the permutation.

    Raises:
        IndexError: an index lies outside the range.
    """
    place = np.atleast_1d(np.asarray(index, np.int64))
    if place.size and (place.min() < 0 or place.max() >= size):
        raise IndexError(f"index outside of range({size})")
    half = (max(size - 1, 1).bit_length() + 1) // 2
    place = _feistel(place.astype(np.uint64), half, seed)
    while (outside := place >= size).any():
        place[outside] = _feistel(place[outside], half, seed)
    return place.astype(np.int64)


def _feistel(word: Words, half: int, seed: int) -> Words:
    mask: Any = np.uint64((1 << half) - 1)
    left, right = word >> np.uint64(half), word & mask
    for step in range(_ROUNDS):
        left, right = right, left ^ (hash64(seed, step, right) & mask)
    return (left << np.uint64(half)) | right
