"""Gradient error of records, exactly: mean squared error of the weights, and entries per position.

Weights of a position sum to 1, so the gradient of the forward KL by the student's logits is q - w,
and its squared error is that of w as an estimate of p. Per position, with N draws and f the
fraction of N p:

    independent draws   sum p (1 - p) / N
    systematic draws    sum f (1 - f) / N^2
    head_tail           sum over the tail of p (t - p), t = (tail mass r) / (tail entries); where t
                        is `tail_floor` f > r: and r (f - r) sum over the head of (p / (1 - r))^2
    top-k               sum over the k likeliest of p^2 (1 / m - 1)^2, m their mass, and over the
                        others of p^2: the square of its bias
    any unbiased record at least the sum over p < tau of p (tau - p)

All of it follows from the largest probabilities and the sum of squares, so tau can be searched for
without drawing anything. A test holds head and tail against those of the product's sampler.

Shape letters: T positions, R rows of a block, K largest probabilities, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.sources import Source
from stages.config.record_kinds import HeadTail
from stages.scoring.sampler_kernels import REST_FLOOR
from storage.kinds import MIN_TAU

Array = NDArray[Any]

_TOP = 200
"""No head is larger: each of its ids has at least the mass of a tail entry."""


class Error(NamedTuple):
    """Means over positions, and their standard errors."""

    mse: float
    entries: float
    mse_error: float = 0.0
    entries_error: float = 0.0

    @classmethod
    def of(cls, mse_T: Array, entries_T: Array) -> "Error":
        """From values of each position."""
        values = (mse_T, entries_T)
        return cls(*(float(x_T.mean()) for x_T in values), *map(standard_error, values))


_ALIKE = 64
"""Positions in a row whose mean counts as one draw in a standard error: neighbours are alike."""


def standard_error(values_T: Array) -> float:
    """Of the mean over positions; 0 where there are too few to tell."""
    count = len(values_T) // _ALIKE
    if count < 2:
        return 0.0
    mean_B = values_T[: count * _ALIKE].reshape(count, _ALIKE).mean(axis=1)
    return float(mean_B.std(ddof=1)) / count**0.5


class Split(NamedTuple):
    """Of each position: entries of the head, most of the tail, and mass of the tail."""

    head_T: Array
    tail_T: Array
    rest_T: Array


@dataclass(frozen=True)
class Profile:
    """What errors depend on."""

    top_TK: NDArray[np.float64]
    """The largest probabilities, descending."""
    square_T: NDArray[np.float64]
    """Sum of squared probabilities."""
    independent: dict[int, Error]
    """Of independent draws, by their number."""

    def systematic(self, draws: int) -> Error:
        """Error and entries of N systematic draws: an id below 1 / N is drawn once, or not."""
        inside_TK = self.top_TK >= 1.0 / draws
        expected_TK = np.where(inside_TK, draws * self.top_TK, 0.0)
        f_TK = expected_TK - np.floor(expected_TK)
        below_T = draws - expected_TK.sum(axis=1)
        squares_T = draws**2 * self.square_T - np.square(expected_TK).sum(axis=1)
        mse_T = (f_TK * (1.0 - f_TK)).sum(axis=1) + below_T - squares_T
        return Error.of(mse_T / draws**2, inside_TK.sum(axis=1) + below_T)

    def top_k(self, k: int) -> Error:
        """Error of the k likeliest ids, renormalised."""
        square_T = np.square(self.top_TK[:, :k]).sum(axis=1)
        mass_T = self.top_TK[:, :k].sum(axis=1)
        mse_T = square_T * (1.0 / mass_T - 1.0) ** 2 + self.square_T - square_T
        return Error.of(mse_T, np.full(len(mse_T), float(min(k, self.top_TK.shape[1]))))

    def split(self, tau: float) -> Split:
        """How `head_tail` divides positions at this tau, without candidates."""
        mass_TK = np.cumsum(self.top_TK, axis=1)
        head_T = (self.top_TK >= tau).sum(axis=1)
        while True:
            taken_T = np.take_along_axis(mass_TK, np.maximum(head_T - 1, 0)[:, None], 1)[:, 0]
            rest_T = np.maximum(0.0, 1.0 - np.where(head_T > 0, taken_T, 0.0))
            tail_T = np.where(rest_T > REST_FLOOR, np.ceil(rest_T / tau), 0)
            weight_T = np.divide(rest_T, tail_T, out=np.ones_like(rest_T), where=tail_T > 0)
            # A little above, so that n equal ids of weight 1 / n stay in the tail.
            above_T = (self.top_TK > weight_T[:, None] * (1 + 1e-9)).sum(axis=1)
            grown_T = np.maximum(head_T, above_T)
            if np.array_equal(grown_T, head_T):
                return Split(head_T, tail_T, rest_T)
            head_T = grown_T

    def head_tail(self, tau: float) -> Error:
        """Error and entries of the adaptive record."""
        head_T, tail_T, rest_T = self.split(tau)
        inside_TK = np.arange(self.top_TK.shape[1]) < head_T[:, None]
        head_square_T = np.where(inside_TK, np.square(self.top_TK), 0.0).sum(axis=1)
        floor = HeadTail(tau=tau).tail_floor
        thin_T = (tail_T == 1) & (rest_T < floor)
        least_T = np.where(thin_T, floor, rest_T)
        weight_T = np.divide(least_T, tail_T, out=np.zeros_like(rest_T), where=tail_T > 0)
        mse_T = np.maximum(0.0, weight_T * rest_T - (self.square_T - head_square_T))
        share_T = head_square_T / np.square(np.where(thin_T, 1.0 - rest_T, 1.0))
        mse_T += np.where(thin_T, rest_T * (floor - rest_T) * share_T, 0.0)
        return Error.of(mse_T, head_T + np.where(thin_T, rest_T / floor, tail_T))

    def bound(self, entries: float) -> Error:
        """Lower bound of the error of an unbiased record with this expected number of entries.

        A weight that is not 0 with probability pi has a variance of at least p^2 (1 / pi - 1); the
        sum is least at pi = min(1, p / tau), one tau for all positions (Horvitz, Thompson 1952).
        """
        low, high = float(np.log(MIN_TAU / 8)), 0.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (
                (low, middle) if self._bound(np.exp(middle)).entries < entries else (middle, high)
            )
        return self._bound(np.exp(low))

    def _bound(self, tau: float) -> Error:
        inside_TK = self.top_TK >= tau
        head_TK = np.where(inside_TK, self.top_TK, 0.0)
        rest_T = np.maximum(0.0, 1.0 - head_TK.sum(axis=1))
        mse_T = tau * rest_T - (self.square_T - np.square(head_TK).sum(axis=1))
        return Error.of(mse_T, inside_TK.sum(axis=1) + rest_T / tau)

    def find_tau(self, enough: Callable[[Error], bool], steps: int = 30) -> float | None:
        """The largest tau whose error and entries are enough, by bisection on its logarithm.

        Args:
            enough: True for small tau and false for large, or the other way about.
            steps: Halvings of the interval between the smallest possible tau and 1.

        Returns:
            The tau on the border, on the side where `enough` holds; None where it never does.
        """
        low, high = float(np.log(MIN_TAU)), float(np.log(0.999))
        good_low, good_high = (enough(self.head_tail(float(np.exp(x)))) for x in (low, high))
        if good_low == good_high:
            return float(np.exp(high if good_high else low)) if good_high else None
        for _ in range(steps):
            middle = (low + high) / 2
            if enough(self.head_tail(float(np.exp(middle)))) == good_low:
                low = middle
            else:
                high = middle
        return float(np.exp(low if good_low else high))


def profile(source: Source, positions: int, draws: Sequence[int] = ()) -> Profile:
    """One walk over the positions of a teacher.

    Args:
        source: The teacher.
        positions: How many.
        draws: Numbers of independent draws N to find the errors of.
    """
    tops: list[Array] = []
    squares: list[Array] = []
    distinct: dict[int, list[Array]] = {n: [] for n in draws}
    for block in source.blocks(positions):
        p_RV = probabilities(block.z_RV)
        K = min(_TOP, p_RV.shape[1])
        top_RK = -np.partition(-p_RV, K - 1, axis=1)[:, :K]
        tops.append(-np.sort(-top_RK, axis=1))
        squares.append(np.square(p_RV).sum(axis=1))
        never_RV = np.log1p(-np.minimum(p_RV, 1 - 1e-15))
        for n, found in distinct.items():
            found.append(-np.expm1(n * never_RV).sum(axis=1))
    square_T = np.concatenate(squares)
    independent = {
        n: Error.of((1.0 - square_T) / n, np.concatenate(found)) for n, found in distinct.items()
    }
    return Profile(np.concatenate(tops), square_T, independent)


def probabilities(z_RV: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax in float64."""
    p_RV = np.exp(z_RV.astype(np.float64) - z_RV.max(axis=1, keepdims=True))
    p_RV /= p_RV.sum(axis=1, keepdims=True)
    return p_RV
