"""Gradients of two losses compared, without the noise of the sample they were estimated from.

A gradient is given as N chunks, each the mean over as many sequences. Inner products are estimated
from pairs of *different* chunks, so that the noise of a chunk adds nothing to them, and standard
errors are those of a jackknife over chunks (Efron 1982).

Shape letters: N chunks, P parameters, T positions of a batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.batch import Batch

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        known = math.isfinite(self.value) and math.isfinite(self.error)
        return f"{self.value:.2f} ± {self.error:.2f}" if known else "-"


def compare(
    ours_NP: Tensor, theirs_NP: Tensor, *, same_sequences: bool = False
) -> tuple[Estimate, Estimate]:
    """Cosine, and the norm of the difference over that of their gradient.

    |mean g|^2 is estimated by the mean of g_i g_j over pairs i != j.

    Args:
        ours_NP: Chunks of one gradient.
        theirs_NP: As many chunks of another one.
        same_sequences: Whether chunk i of both is made of the same sequences; otherwise the two
            sides are independent of each other.
    """
    n = len(ours_NP)
    both = torch.cat([ours_NP, theirs_NP])
    products = (both.double() @ both.double().T).numpy()

    def figures(kept: NDArray[np.int64]) -> Floats:
        own, other = (products[np.ix_(rows, rows)] for rows in (kept, kept + n))
        across = products[np.ix_(kept, kept + n)]
        inner = _apart(across) if same_sequences else float(across.mean())
        own_square, other_square = _apart(own), _apart(other)
        if own_square <= 0 or other_square <= 0:
            return np.array([math.nan, math.nan])  # nothing but noise
        apart = max(0.0, own_square + other_square - 2 * inner)
        cosine = inner / math.sqrt(own_square * other_square)
        return np.array([cosine, math.sqrt(apart / other_square)])

    first, second = _jackknife(figures, n)
    return first, second


def norm(chunks_NP: Tensor) -> Estimate:
    """Length of the gradient."""
    products = _products(chunks_NP)

    def figures(kept: NDArray[np.int64]) -> Floats:
        return np.array([math.sqrt(max(0.0, _apart(products[np.ix_(kept, kept)])))])

    return _jackknife(figures, len(chunks_NP))[0]


def distance(ours_NP: Tensor, theirs_NP: Tensor) -> Estimate:
    """Length of the difference of two gradients on independent sequences."""
    return norm(ours_NP - theirs_NP)


def noise(chunks_NP: Tensor, per_chunk: int) -> Estimate:
    """Sequences in a batch whose noise is as long as the gradient: trace of covariance / |g|^2.

    The covariance is that of single sequences, of which each chunk is the mean of `per_chunk`
    (McCandlish et al. 2018, arXiv 1812.06162, equation 2.9).
    """
    products = _products(chunks_NP)

    def figures(kept: NDArray[np.int64]) -> Floats:
        block = products[np.ix_(kept, kept)]
        square = _apart(block)
        trace = per_chunk * (float(np.trace(block)) / len(kept) - square)
        return np.array([trace / square if square > 0 else math.nan])

    return _jackknife(figures, len(chunks_NP))[0]


def place(batch: Batch) -> Floats:
    """[T] where in its response a position lies: 0 at the first, near 1 at the last."""
    lengths = np.diff(batch.tok_off)
    return np.concatenate([np.arange(length) / length for length in lengths.tolist()])


def _products(chunks_NP: Tensor) -> Floats:
    return (chunks_NP.double() @ chunks_NP.double().T).numpy()


def _apart(block: Floats) -> float:
    """Mean of the products of different chunks."""
    m = len(block)
    return (float(block.sum()) - float(np.trace(block))) / (m * (m - 1))


def _jackknife(figures: Callable[[NDArray[np.int64]], Floats], n: int) -> list[Estimate]:
    """Figures of all of n chunks, and the errors that leaving one out at a time shows."""
    whole = figures(np.arange(n))
    left = np.array([figures(np.delete(np.arange(n), i)) for i in range(n)])
    errors = np.sqrt((n - 1) / n * ((left - left.mean(0)) ** 2).sum(0))
    return [Estimate(float(a), float(b)) for a, b in zip(whole, errors, strict=True)]
