"""What no context-free coder of counts can go below: code lengths of adaptive models.

A record of N draws is a list of distinct ids with counts that sum to N. Written down naively it
also tells in which order the ids come inside a run of equal counts, which means nothing. The floor
is the sum of three code lengths, each what an ideal arithmetic coder would need that learns its
frequencies while it goes (the estimator of Krichevsky and Trofimov, half a count to begin with):

    ids      every id under an adaptive order-0 model of the whole set
    counts   by descending count, each under an adaptive model in the context (draws left, count
             before): the last one needs nothing where it is forced
    order    minus log2 of the orders of each run of equal counts, which need not be told apart

Where the frequencies of ids are known beforehand, as they are to the packed layout, the model of
ids begins with counts in proportion to them, of the weight that turns out best. In a small set it
would otherwise spend most of the code on learning them.

Conditioning on the text around a position would go lower, but not without a model in the reader.
"""
# Numba has no types for its decorator.
# pyright: basic

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

_WEIGHTS = tuple(10.0**power for power in range(2, 8))
"""Of known frequencies, in ids."""


class Floor(NamedTuple):
    """Bits per position."""

    ids: float
    counts: float
    order: float
    """What the order inside runs of equal counts would cost; free."""

    @property
    def total(self) -> float:
        """The floor itself."""
        return self.ids + self.counts - self.order


def floor(
    nu_T: NDArray[np.uint8],
    ids_E: NDArray[np.uint32],
    cnt_E: NDArray[np.uint8],
    *,
    draws: int,
    vocabulary: int,
    count_V: NDArray[np.int64] | None = None,
) -> Floor:
    """Code length of counts records, by descending count, under the models above.

    Args:
        nu_T: Distinct ids of each position.
        ids_E: Those ids.
        cnt_E: How often each was drawn.
        draws: Sum of the counts of a position.
        vocabulary: Number of ids.
        count_V: How often each id occurs in text like this; None: not known.
    """
    log_factorial = np.array([math.lgamma(n + 1) / math.log(2) for n in range(256)])
    begin = [np.full(vocabulary, 0.5)]
    if count_V is not None:
        share_V = (count_V + 0.5) / (count_V + 0.5).sum()
        begin += [weight * share_V for weight in _WEIGHTS]
    found: list[Floor] = []
    for begin_V in begin:
        bits = np.zeros(3)
        _lengths(nu_T, ids_E, cnt_E, draws, begin_V, begin_V.sum(), log_factorial, bits)
        found.append(Floor(*(bits / max(1, len(nu_T))).tolist()))
    return min(found, key=lambda one: one.total)


@njit(cache=True, error_model="numpy")
def _lengths(
    nu_T: Any, ids_E: Any, cnt_E: Any, draws: int, begin_V: Any, begin: float,
    log_factorial: Any, bits: Any,
) -> None:  # fmt: skip
    seen_V = begin_V.copy()
    # [draws left, count before, count]: a count is at most what is left, and the one before.
    seen = np.zeros((draws + 1, draws + 1, draws + 1), np.int64)
    entry = 0
    for t in range(nu_T.shape[0]):
        left, before, run = draws, draws, 0
        for _ in range(nu_T[t]):
            i, c = ids_E[entry], cnt_E[entry]
            bits[0] -= math.log2(seen_V[i] / (entry + begin))
            seen_V[i] += 1.0
            possible = min(left, before)
            known = 0
            for k in range(1, possible + 1):
                known += seen[left, before, k]
            bits[1] -= math.log2((seen[left, before, c] + 0.5) / (known + 0.5 * possible))
            seen[left, before, c] += 1
            run = run + 1 if c == before else 1
            # n! grows factor by factor along a run.
            bits[2] += log_factorial[run] - log_factorial[run - 1]
            left, before = left - c, c
            entry += 1
