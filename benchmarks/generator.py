"""A synthetic teacher of a large vocabulary: positions whose records look like a language model's.

Each position has a list of C = 128 candidate ids and a little mass spread over the whole
vocabulary. Lists come from a fixed bank, mostly chosen by the token before, so that ids repeat the
way text does. How peaked a position is varies; `SETS` has been fitted to published statistics of
records: mean entropy and the number of distinct ids among 50 draws.

    unigram      u(rank) ~ 1 / (rank + 2.7); small ids are mostly frequent, as byte-pair merges make
                 them: ids are ranks sorted by log(rank + 1) + 0.8 N(0, 1)
    list         128 distinct ids, each from u with probability 0.6, else log-uniform in rank
    position t   with probability 0.35 a fresh list, else number hash(token t - 1, slot) of the
                 bank, slot from a skewed table
    p            (1 - eps) softmax(-beta log(1 + j) + 0.6 N(0, 1)) + eps u over j = 0 .. 127,
                 beta = exp(mu + sigma N(0, 1)),
                 eps = min(0.3, 0.012 exp(1.2 N(0, 1)) min(1, 2 / beta))
    lengths      exp(N(6.6, 0.75)), from 32 to 4096

Normal numbers come from NumPy; uniform ones, of which nobody knows beforehand how many are needed,
from SplitMix64 inside the compiled loops, where NumPy's generators take half a minute to compile.

Shape letters: T positions of a block, C candidates, V vocabulary, E entries, M lists in the bank.
"""
# Numba has no types for its decorator.
# pyright: basic

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

VOCABULARY: Final = 151_936
CANDIDATES: Final = 128
BANK: Final = 65_536
_SLOTS: Final = np.array([0.45, 0.65, 0.78, 0.86, 0.92, 0.96, 0.98, 1.0])


class Shape(NamedTuple):
    """How peaked positions are: beta = exp(mu + sigma N(0, 1))."""

    mu: float
    sigma: float


SETS: Final[dict[str, Shape]] = {
    "r12": Shape(0.78, 0.65),
    "sharp": Shape(1.36, 0.70),
    "rl": Shape(1.95, 0.70),
}
"""Pre-training text (12 distinct ids of 50), a mean entropy of 1 nat, rollouts of a tuned model."""


@dataclass(frozen=True)
class World:
    """What all sets share: the unigram and the bank of lists."""

    unigram_V: Array
    """float64: u by id."""
    threshold_V: Array
    other_V: Array
    """Alias table of u: slot i is i itself with probability `threshold_V[i]`, else `other_V[i]`."""
    id_of_rank_V: Array
    bank_MC: Array
    entropy: float
    """Of u, in nats."""


@cache
def world(vocabulary: int = VOCABULARY, bank: int = BANK) -> World:
    """The unigram, its alias table and the bank, from a seed of their own."""
    rng, state = np.random.default_rng(20_250), _state(20_250)
    rank_V = np.arange(vocabulary)
    weight_V = 1.0 / (rank_V + 2.7)
    order = np.argsort(np.log(rank_V + 1.0) + 0.8 * rng.standard_normal(vocabulary))
    id_of_rank_V = np.empty(vocabulary, np.int64)
    id_of_rank_V[order] = rank_V
    unigram_V = np.empty(vocabulary)
    unigram_V[id_of_rank_V] = weight_V / weight_V.sum()
    threshold_V, other_V = _alias(unigram_V)
    bank_MC = np.empty((bank, CANDIDATES), np.uint32)
    _fill_lists(state, threshold_V, other_V, id_of_rank_V, bank_MC)
    entropy = float(-(unigram_V * np.log(unigram_V)).sum())
    return World(unigram_V, threshold_V, other_V, id_of_rank_V, bank_MC, entropy)


def small_world() -> World:
    """One that is made in no time, for tests of what runs on it."""
    return world(4096, 256)


@dataclass(frozen=True)
class Block:
    """Some positions in a row and their distributions."""

    cand_TC: Array
    """uint32: ids of the candidates."""
    mass_TC: Array
    """float64: their mass without the background; sums to 1 - eps."""
    eps_T: Array
    """float64: mass spread as u."""
    tok_T: Array
    """The realised token, drawn from p."""
    lp_T: Array
    """Its log-probability."""
    ent_T: Array
    """Entropy in nats."""
    square_T: Array
    """Sum of p squared."""

    def __len__(self) -> int:
        return len(self.tok_T)

    def log_p(self, start: int, stop: int, of: World) -> NDArray[np.float32]:
        """Log-probabilities over the whole vocabulary, [stop - start, V]: usable as logits."""
        log_u_V = np.log(of.unigram_V)
        out = np.empty((stop - start, len(log_u_V)), np.float32)
        for row, t in enumerate(range(start, stop)):
            ids_C = self.cand_TC[t]
            out[row] = log_u_V + math.log(self.eps_T[t])
            out[row, ids_C] = np.log(self.mass_TC[t] + self.eps_T[t] * of.unigram_V[ids_C])
        return out


class Counts(NamedTuple):
    """Distinct ids of N draws and how often each was drawn; position after position."""

    nu_T: NDArray[np.uint8]
    ids_E: NDArray[np.uint32]
    cnt_E: NDArray[np.uint8]


class Teacher:
    """Positions of one set, block by block.

    Args:
        shape: One of `SETS`, or another.
        seed: Of the positions.
        of: The world; default the one of `VOCABULARY`.
    """

    def __init__(self, shape: Shape, seed: int = 0, of: World | None = None) -> None:
        self.world = of or world()
        self._shape = shape
        self._rng = np.random.default_rng(seed)
        self._state = _state(seed)
        self._before = 0

    def block(self, positions: int) -> Block:
        """The next positions."""
        w = self.world
        cand_TC = np.empty((positions, CANDIDATES), np.uint32)
        mass_TC = np.empty((positions, CANDIDATES))
        lp_T, ent_T, square_T = (np.empty(positions) for _ in range(3))
        beta_T = np.exp(self._shape.mu + self._shape.sigma * self._rng.standard_normal(positions))
        spread_T = np.exp(1.2 * self._rng.standard_normal(positions))
        eps_T = np.minimum(0.3, 0.012 * spread_T * np.minimum(1.0, 2.0 / beta_T))
        tok_T = np.empty(positions, np.int64)
        normal_TC = self._rng.standard_normal((positions, CANDIDATES))
        self._before = _positions(
            self._state, beta_T, normal_TC, w.unigram_V, w.threshold_V, w.other_V,
            w.id_of_rank_V, w.bank_MC, w.entropy, float((w.unigram_V**2).sum()), _SLOTS,
            self._before, cand_TC, mass_TC, eps_T, tok_T, lp_T, ent_T, square_T,
        )  # fmt: skip
        return Block(cand_TC, mass_TC, eps_T, tok_T, lp_T, ent_T, square_T)

    def blocks(self, positions: int, size: int = 8192) -> Iterator[Block]:
        """So many positions, in blocks of a size that fits memory."""
        for start in range(0, positions, size):
            yield self.block(min(size, positions - start))

    def counts(self, block: Block, draws: int = 50) -> Counts:
        """Independent draws from the positions of a block, as counts: descending, then by id."""
        w = self.world
        nu_T = np.empty(len(block), np.uint8)
        ids_TN = np.empty((len(block), draws), np.uint32)
        cnt_TN = np.empty((len(block), draws), np.uint8)
        _draw(
            self._state, block.cand_TC, block.mass_TC, block.eps_T, w.threshold_V, w.other_V,
            nu_T, ids_TN, cnt_TN,
        )  # fmt: skip
        used_TN = np.arange(draws) < nu_T[:, None]
        return Counts(nu_T, ids_TN[used_TN], cnt_TN[used_TN])

    def lengths(self, positions: int) -> NDArray[np.int64]:
        """Lengths of responses that add up to so many positions; the last one is cut."""
        out: list[int] = []
        left = positions
        while left > 0:
            length = int(np.clip(np.exp(self._rng.normal(6.6, 0.75)), 32, 4096))
            out.append(min(length, left))
            left -= out[-1]
        return np.array(out, np.int64)


# ---------------------------------------------------------------------------------------------
# Compiled parts


def _state(seed: int) -> NDArray[np.uint64]:
    return np.array([seed], np.uint64)


@njit(cache=True, error_model="numpy")
def _uniform(state: Any) -> float:
    """The next number of SplitMix64 (Steele, Lea, Flood 2014), in [0, 1)."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    x = state[0]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.float64((x ^ (x >> np.uint64(31))) >> np.uint64(11)) / 9007199254740992.0


@njit(cache=True, error_model="numpy")
def _alias(p_V: Any) -> Any:
    """Walker's alias table of p."""
    V = p_V.shape[0]
    threshold_V, other_V = p_V * V, np.arange(V)
    small, large = np.empty(V, np.int64), np.empty(V, np.int64)
    low = high = 0
    for i in range(V):
        if threshold_V[i] < 1.0:
            small[low] = i
            low += 1
        else:
            large[high] = i
            high += 1
    while low and high:
        i, j = small[low - 1], large[high - 1]
        low -= 1
        other_V[i] = j
        threshold_V[j] -= 1.0 - threshold_V[i]
        if threshold_V[j] < 1.0:
            high -= 1
            small[low] = j
            low += 1
    return threshold_V, other_V


@njit(cache=True, error_model="numpy")
def _from_unigram(state: Any, threshold_V: Any, other_V: Any) -> int:
    x = _uniform(state) * threshold_V.shape[0]
    i = int(x)
    return i if x - i < threshold_V[i] else other_V[i]


@njit(cache=True, error_model="numpy")
def _fill_list(
    state: Any,
    threshold_V: Any,
    other_V: Any,
    id_of_rank_V: Any,
    out_C: Any,
    seen_V: Any,
    mark: int,
) -> None:
    """Distinct ids, in the order in which they were drawn; `mark` has not been used before."""
    V, n = threshold_V.shape[0], 0
    while n < out_C.shape[0]:
        if _uniform(state) < 0.6:
            i = _from_unigram(state, threshold_V, other_V)
        else:
            i = id_of_rank_V[min(V - 1, int(math.exp(_uniform(state) * math.log(V))) - 1)]
        if seen_V[i] != mark:
            seen_V[i] = mark
            out_C[n] = i
            n += 1


@njit(cache=True, error_model="numpy")
def _fill_lists(state: Any, threshold_V: Any, other_V: Any, id_of_rank_V: Any, out_MC: Any) -> None:
    seen_V = np.zeros(threshold_V.shape[0], np.int64)
    for m in range(out_MC.shape[0]):
        _fill_list(state, threshold_V, other_V, id_of_rank_V, out_MC[m], seen_V, m + 1)


@njit(cache=True, error_model="numpy")
def _slot_hash(before: int, slot: int) -> Any:
    mixed = np.uint64(before) * np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(slot) * np.uint64(0xC2B2AE3D27D4EB4F)
    return mixed >> np.uint64(40)


@njit(cache=True, error_model="numpy")
def _first_above(running: Any, x: float) -> int:
    """Index of the first value above x; the last one is."""
    low, high = 0, running.shape[0] - 1
    while low < high:
        middle = (low + high) // 2
        if running[middle] > x:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, error_model="numpy")
def _one(state: Any, running_C: Any, ids_C: Any, threshold_V: Any, other_V: Any) -> int:
    """One draw from p: a candidate by its running mass, or the background above it."""
    x = _uniform(state)
    if x >= running_C[-1]:
        return _from_unigram(state, threshold_V, other_V)
    return ids_C[_first_above(running_C, x)]


@njit(cache=True, error_model="numpy")
def _positions(
    state: Any, beta_T: Any, normal_TC: Any, u_V: Any, threshold_V: Any, other_V: Any,
    id_of_rank_V: Any, bank_MC: Any, entropy_u: float, square_u: float, slots: Any, before: int,
    cand_TC: Any, mass_TC: Any, eps_T: Any, tok_T: Any, lp_T: Any, ent_T: Any, square_T: Any,
) -> int:  # fmt: skip
    """Fill the arrays of a block; returns its last token."""
    T, C = cand_TC.shape
    M = np.uint64(bank_MC.shape[0])
    seen_V = np.zeros(u_V.shape[0], np.int64)
    log_rank_C, running_C = np.log(np.arange(1.0, C + 1.0)), np.empty(C)
    for t in range(T):
        ids_C, mass_C = cand_TC[t], mass_TC[t]
        if _uniform(state) < 0.35:
            _fill_list(state, threshold_V, other_V, id_of_rank_V, ids_C, seen_V, t + 1)
        else:
            slot = _first_above(slots, _uniform(state))
            ids_C[:] = bank_MC[_slot_hash(before, slot) % M]
        beta, eps, total = beta_T[t], eps_T[t], 0.0
        for j in range(C):
            mass_C[j] = math.exp(0.6 * normal_TC[t, j] - beta * log_rank_C[j])
            total += mass_C[j]
        running = 0.0
        for j in range(C):
            mass_C[j] *= (1.0 - eps) / total
            running += mass_C[j]
            running_C[j] = running
        before = _one(state, running_C, ids_C, threshold_V, other_V)
        # Over the background alone, then corrected at the candidates.
        entropy = eps * (entropy_u - math.log(eps))
        square = eps * eps * square_u
        p_token = eps * u_V[before]
        for j in range(C):
            under = eps * u_V[ids_C[j]]
            p = mass_C[j] + under
            entropy += under * math.log(under) - p * math.log(p)
            square += p * p - under * under
            if ids_C[j] == before:
                p_token = p
        tok_T[t], lp_T[t], ent_T[t], square_T[t] = before, math.log(p_token), entropy, square
    return before


@njit(cache=True, error_model="numpy")
def _draw(
    state: Any, cand_TC: Any, mass_TC: Any, eps_T: Any, threshold_V: Any, other_V: Any,
    nu_T: Any, ids_TN: Any, cnt_TN: Any,
) -> None:  # fmt: skip
    """N draws per position, sorted by descending count and then ascending id."""
    T, N = ids_TN.shape
    running_C = np.empty(mass_TC.shape[1])
    for t in range(T):
        running = 0.0
        for j in range(running_C.shape[0]):
            running += mass_TC[t, j]
            running_C[j] = running
        ids_N, cnt_N, n = ids_TN[t], cnt_TN[t], 0
        for _ in range(N):
            i = _one(state, running_C, cand_TC[t], threshold_V, other_V)
            m = 0
            while m < n and ids_N[m] != i:
                m += 1
            if m == n:
                ids_N[n], cnt_N[n] = i, 0
                n += 1
            cnt_N[m] += 1
        _sort(ids_N, cnt_N, n)
        nu_T[t] = n


@njit(cache=True, error_model="numpy")
def _sort(ids_N: Any, cnt_N: Any, n: int) -> None:
    for a in range(1, n):
        i, c, m = ids_N[a], cnt_N[a], a
        while m > 0 and (cnt_N[m - 1] < c or (cnt_N[m - 1] == c and ids_N[m - 1] > i)):
            ids_N[m], cnt_N[m] = ids_N[m - 1], cnt_N[m - 1]
            m -= 1
        ids_N[m], cnt_N[m] = i, c
