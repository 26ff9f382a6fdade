"""Streaming means over tokens and calibration bins; NumPy only.

Shape letters: T positions, B bins.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error, which one cluster alone does not have."""

    mean: float
    error: float | None


class ClusterMean:
    """Mean over tokens whose standard error treats each prompt as one observation.

    Tokens of one response share a context and responses to one prompt share the prompt, so a
    standard error over tokens would be too small by an order of magnitude. Per cluster i keep the
    sum s_i and the count n_i; the mean is sum s / sum n, a ratio estimator, with
    se^2 = C / (C - 1) * sum_i (s_i - mean n_i)^2 / (sum n)^2 (Cochran, Sampling Techniques, 6.4).
    """

    def __init__(self) -> None:
        self._sums: dict[int, list[float]] = {}

    def add(self, values_T: Floats, cluster_T: NDArray[np.int64]) -> None:
        """Add the values of T tokens and the cluster each belongs to."""
        clusters, index_T = np.unique(cluster_T, return_inverse=True)
        totals = np.bincount(index_T, weights=values_T, minlength=len(clusters))
        counts = np.bincount(index_T, minlength=len(clusters))
        for cluster, total, count in zip(clusters.tolist(), totals, counts, strict=True):
            known = self._sums.setdefault(cluster, [0.0, 0.0])
            known[0] += float(total)
            known[1] += float(count)

    def estimate(self) -> Estimate | None:
        """Mean and standard error so far; None before the first token."""
        if not self._sums:
            return None
        sums, counts = np.array(list(self._sums.values())).T
        mean = float(sums.sum() / counts.sum())
        clusters = len(sums)
        if clusters == 1:
            return Estimate(mean, None)
        spread = float(np.square(sums - mean * counts).sum()) * clusters / (clusters - 1)
        return Estimate(mean, math.sqrt(spread) / float(counts.sum()))


@dataclass
class CalibrationBins:
    """Expected calibration error against the teacher, over equal-width bins of confidence.

    ECE = sum_b (n_b / n) |mean confidence in b - mean teacher probability in b| (Guo et al. 2017,
    arXiv 1706.04599, equation 3, with the teacher's probability of the student's likeliest token
    in place of a hit or miss). The probability may be an unbiased estimate: bins are chosen by
    the student alone, so their means stay unbiased; the absolute value lifts ECE a little where
    bins hold few tokens.
    """

    bins: int = 15
    _count_B: Floats = field(init=False)
    _confidence_B: Floats = field(init=False)
    _teacher_B: Floats = field(init=False)

    def __post_init__(self) -> None:
        self._count_B, self._confidence_B, self._teacher_B = np.zeros((3, self.bins))

    def add(self, confidence_T: Floats, teacher_T: Floats) -> None:
        """Add the student's confidence and the teacher's probability of the same id."""
        bin_T = np.clip((confidence_T * self.bins).astype(np.int64), 0, self.bins - 1)
        self._count_B += np.bincount(bin_T, minlength=self.bins)
        self._confidence_B += np.bincount(bin_T, weights=confidence_T, minlength=self.bins)
        self._teacher_B += np.bincount(bin_T, weights=teacher_T, minlength=self.bins)

    def diagram(self) -> list[dict[str, float]]:
        """Bins that are not empty: `count`, and the means `confidence` and `truth`."""
        return [
            {"count": n, "confidence": confidence / n, "truth": teacher / n}
            for n, confidence, teacher in zip(
                self._count_B.tolist(),
                self._confidence_B.tolist(),
                self._teacher_B.tolist(),
                strict=True,
            )
            if n
        ]

    def error(self) -> float | None:
        """The expected calibration error, a share of 1; None before the first token."""
        total = self._count_B.sum()
        if total == 0:
            return None
        return float(np.abs(self._confidence_B - self._teacher_B).sum() / total)
