"""Counter-based random numbers: the uniforms of a position depend on nothing but its name.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
maps a 64-bit key and a 128-bit counter to four random words, without state. Here

    key      = seed                     low word, high word
    counter  = (position, block, seq_id low word, seq_id high word)

where `position` counts response tokens of the sequence from 0 and `block` numbers the pairs of
uniforms a position needs. Two words make one float64 in [0, 1) with 53 random bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_M0 = np.uint64(0xD2511F53)
_M1 = np.uint64(0xCD9E8D57)
_W0 = 0x9E3779B9
_W1 = 0xBB67AE85
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_UNIT = np.float64(2.0**-53)
_LOW, _SHIFT = np.uint64(_WORD), np.uint64(32)


def philox4x32(counter: tuple[Any, ...], key: tuple[int, int]) -> tuple[NDArray[np.uint64], ...]:
    """Four arrays of random 32-bit words from four arrays of counter words, all uint64."""
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    x, y = key
    for _ in range(_ROUNDS):
        p, q = _M0 * a, _M1 * c  # words of 32 bits: no product wraps
        a, b, c, d = (
            (q >> _SHIFT) ^ b ^ np.uint64(x),
            q & _LOW,
            (p >> _SHIFT) ^ d ^ np.uint64(y),
            p & _LOW,
        )
        x, y = x + _W0 & _WORD, y + _W1 & _WORD
    return a, b, c, d


def uniforms(
    seed: int, seq_id_R: NDArray[np.int64], position_R: NDArray[np.int64], count: int
) -> NDArray[np.float64]:
    """Uniforms in [0, 1) of R positions.

    Args:
        seed: Any integer; its low 64 bits count.
        seq_id_R: Sequence of each position.
        position_R: Index of each response token in its sequence, below 2**32.
        count: Uniforms per position.

    Returns:
        [R, count] float64.
    """
    seq_R1 = np.asarray(seq_id_R, np.int64).view(np.uint64)[:, None]
    position_R1 = np.asarray(position_R, np.int64).view(np.uint64)[:, None]
    block_B = np.arange((count + 1) // 2, dtype=np.uint64)
    counter = np.broadcast_arrays(position_R1, block_B, seq_R1 & _LOW, seq_R1 >> _SHIFT)
    words_4RB = philox4x32(tuple(counter), (seed & _WORD, seed >> 32 & _WORD))
    high_RB2, low_RB2 = (np.stack(words_4RB[half::2], axis=-1) for half in (0, 1))
    u_RB2 = ((high_RB2 >> np.uint64(5)) * 67108864.0 + (low_RB2 >> np.uint64(6))) * _UNIT
    return np.ascontiguousarray(u_RB2.reshape(len(seq_R1), 2 * len(block_B))[:, :count])
