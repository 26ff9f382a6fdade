"""Counter-based random numbers: the uniforms of a position depend on nothing but its name.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
maps a 64-bit key and a 128-bit counter to four random words, without state. Here

    key      = seed                     low word, high word
    counter  = (position, block, seq_id low word, seq_id high word)

where `position` counts response tokens of the sequence from 0 and `block` numbers the pairs of
uniforms a position needs. Two words make one float64 in [0, 1) with 53 random bits. The numba and
the torch version agree bit for bit.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

_M0 = 0xD2511F53
_M1 = 0xCD9E8D57
_W0 = 0x9E3779B9
_W1 = 0xBB67AE85
_ROUNDS = 10
_WORD = 0xFFFFFFFF
_UNIT = 2.0**-53


@njit(cache=True, nogil=True)
def philox4x32(c0: Any, c1: Any, c2: Any, c3: Any, k0: Any, k1: Any) -> Any:
    """Four random words from counter (c0, c1, c2, c3) and key (k0, k1), all 32 bits wide."""
    word = np.uint64(_WORD)
    a, b, c, d = np.uint64(c0), np.uint64(c1), np.uint64(c2), np.uint64(c3)
    x, y = np.uint64(k0), np.uint64(k1)
    shift = np.uint64(32)
    for _ in range(_ROUNDS):
        p = np.uint64(_M0) * a
        q = np.uint64(_M1) * c
        a, b, c, d = (q >> shift) ^ b ^ x, q & word, (p >> shift) ^ d ^ y, p & word
        x = (x + np.uint64(_W0)) & word
        y = (y + np.uint64(_W1)) & word
    return a, b, c, d


@njit(cache=True, nogil=True)
def _fill(seed: Any, seq_id_R: Any, position_R: Any, out_RU: Any) -> None:
    word, shift = np.uint64(_WORD), np.uint64(32)
    low, high = np.uint64(5), np.uint64(6)
    k0, k1 = seed & word, seed >> shift
    for r in range(out_RU.shape[0]):
        s0, s1 = seq_id_R[r] & word, seq_id_R[r] >> shift
        for u in range(0, out_RU.shape[1], 2):
            block = np.uint64(u // 2)
            a, b, c, d = philox4x32(position_R[r], block, s0, s1, k0, k1)
            out_RU[r, u] = ((a >> low) * 67108864.0 + (b >> high)) * _UNIT
            if u + 1 < out_RU.shape[1]:
                out_RU[r, u + 1] = ((c >> low) * 67108864.0 + (d >> high)) * _UNIT


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
    out_RU = np.empty((len(seq_id_R), count), np.float64)
    _fill(
        np.uint64(seed & (1 << 64) - 1),
        np.ascontiguousarray(seq_id_R, np.int64).view(np.uint64),
        np.ascontiguousarray(position_R, np.int64).view(np.uint64),
        out_RU,
    )
    return out_RU


# ---------------------------------------------------------------------------------------------
# The same in torch. There is no unsigned arithmetic, but products wrap modulo 2**64 and a mask
# after an arithmetic shift gives the high word all the same.


def torch_philox4x32(
    counter: tuple[torch.Tensor, ...], key: tuple[int, int]
) -> tuple[torch.Tensor, ...]:
    """Four int64 tensors of random words from four int64 tensors of counter words."""
    a, b, c, d = counter
    x, y = key
    for _ in range(_ROUNDS):
        p, q = a * _M0, c * _M1
        a, b, c, d = (q >> 32 & _WORD) ^ b ^ x, q & _WORD, (p >> 32 & _WORD) ^ d ^ y, p & _WORD
        x, y = x + _W0 & _WORD, y + _W1 & _WORD
    return a, b, c, d


def torch_uniforms(
    seed: int, seq_id_R: torch.Tensor, position_R: torch.Tensor, count: int
) -> torch.Tensor:
    """As `uniforms`, for int64 tensors on any device; [R, count] float64 on that device."""
    blocks_B = torch.arange((count + 1) // 2, device=seq_id_R.device)
    seq_R1, position_R1 = seq_id_R[:, None], position_R[:, None]
    counter = torch.broadcast_tensors(
        position_R1 & _WORD, blocks_B[None, :], seq_R1 & _WORD, seq_R1 >> 32 & _WORD
    )
    a, b, c, d = torch_philox4x32(counter, (seed & _WORD, seed >> 32 & _WORD))
    pairs = [
        ((high >> 5).double() * 67108864.0 + (low >> 6).double()) * _UNIT
        for high, low in ((a, b), (c, d))
    ]
    return torch.stack(pairs, dim=-1).reshape(len(seq_id_R), -1)[:, :count].contiguous()
