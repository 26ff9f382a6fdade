"""From terms summed over positions to two tests of one hypothesis: this model drew these tokens.

If token a_t was drawn from p_t given its past, two sums are martingales with known variance, and no
independence between positions is needed (martingale central limit theorem; Hall and Heyde 1980).

**Mean.** S = sum_t (log p_t(a_t) + H_t) has variance sum_t V_t with the varentropy V_t, and

    z = S / sqrt(sum_t V_t)

is close to normal. A sharp model is surprised rarely and then a lot, so S is skewed; with
g = sum_t E[(log p_t + H_t)^3] / (sum_t V_t)^(3/2) the p-value is that of
z' = (6/g) ((1 + g z / 2)^(1/3) - 1) + g / 6, which is close to normal for a gamma-shaped S of
skewness g (Wilson and Hilferty 1931).

**Classes.** Another model can have mean zero by luck: flatter by just its distance from the sampler
(a temperature does it), or trained until it is calibrated on average. What it cannot do by luck is
to give every class of ids its share in every context. Ids are hashed into classes b, contexts into
groups g by a hash of the token before. With P_t(b) the probability of class b,

    M_g = sum_{t in g} (e_{b(a_t)} - P_t)       C_g = sum_{t in g} (diag(P_t) - P_t P_t')
    X2 = sum_g M_g' C_g^+ M_g                   ~ chi-square, sum_g rank(C_g) degrees of freedom

which looks in no direction in particular. Directions of variance below `LEAST_VARIANCE` (as if an
expected count in a table were that small) are left out of inverse and rank.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.attribution.observe import CLASSES, Observed
from stages.counter import hash64

GROUPS = 8
LEAST_VARIANCE = 5.0
MOST_SKEW = 1.0
"""Above it there are too few surprises in the sample for any test of the mean."""


def groups(previous_R: NDArray[np.integer]) -> Tensor:
    """[R] group of each position, from the token before it."""
    return torch.from_numpy((hash64(2, previous_R) % np.uint64(GROUPS)).astype(np.int64))


@dataclass
class Evidence:
    """Sums over the positions seen so far, in float64 on the CPU."""

    tokens: int = 0
    drawn: int = 0
    """Tokens that were one of several possibilities, as far as rounding lets us see."""
    impossible: int = 0
    excess: float = 0.0
    variance: float = 0.0
    third: float = 0.0
    residual_GB: Tensor = field(
        default_factory=lambda: torch.zeros(GROUPS, CLASSES, dtype=torch.float64)
    )
    covariance_GBB: Tensor = field(
        default_factory=lambda: torch.zeros(GROUPS, CLASSES, CLASSES, dtype=torch.float64)
    )

    def add(self, seen: Observed, class_R: Tensor, group_R: Tensor) -> None:
        """Add the positions of a chunk, with the class of each token and its group."""
        kept_R = seen.drawn_R.cpu()
        self.tokens += len(kept_R)
        self.drawn += int(kept_R.sum())
        self.impossible += int(seen.impossible_R.sum())
        self.excess += _total(seen.lp_R + seen.ent_R, kept_R)
        self.variance += _total(seen.var_R, kept_R)
        self.third += _total(seen.third_R, kept_R)
        share_RB = seen.share_RB.cpu().double()[kept_R]
        hit_RB = torch.nn.functional.one_hot(class_R[kept_R], CLASSES).double()
        member_RG = torch.nn.functional.one_hot(group_R[kept_R], GROUPS).double()
        self.residual_GB += member_RG.T @ (hit_RB - share_RB)
        self.covariance_GBB += torch.diag_embed(member_RG.T @ share_RB)
        self.covariance_GBB -= torch.einsum("rg,rb,rc->gbc", member_RG, share_RB, share_RB)

    @property
    def z(self) -> float | None:
        """Standardised mean of log p + H; None where nothing was left to chance."""
        return self.excess / math.sqrt(self.variance) if self.variance > 0 else None

    @property
    def skewness(self) -> float:
        """Of the sum behind `z`, if the model was the sampler."""
        return self.third / self.variance**1.5 if self.variance > 0 else 0.0

    @property
    def p_mean(self) -> float | None:
        """Two-sided p-value of `z`, skewness allowed for."""
        if self.z is None:
            return None
        return math.erfc(abs(unskewed(self.z, self.skewness)) / math.sqrt(2.0))

    def chi_square(self) -> tuple[float, int]:
        """X2 and its degrees of freedom."""
        spectrum = torch.linalg.eigh(self.covariance_GBB)
        projected_GB = torch.einsum("gbk,gb->gk", spectrum.eigenvectors, self.residual_GB)
        kept_GB = spectrum.eigenvalues >= LEAST_VARIANCE
        value = float((projected_GB[kept_GB].square() / spectrum.eigenvalues[kept_GB]).sum())
        return value, int(kept_GB.sum())

    @property
    def p_classes(self) -> float | None:
        """P-value of X2; None without degrees of freedom."""
        value, freedom = self.chi_square()
        return chi_square_tail(value, freedom) if freedom else None


def unskewed(z: float, skewness: float) -> float:
    """A standardised gamma-shaped variable of this skewness as a normal one (Wilson-Hilferty)."""
    if abs(skewness) < 1e-6:
        return z
    root = max(1 + skewness * z / 2, 0.0) ** (1 / 3)  # 0: beyond the end of the gamma
    return 6 / skewness * (root - 1) + skewness / 6


def chi_square_tail(value: float, freedom: int) -> float:
    """P(chi-square with `freedom` degrees of freedom > value)."""
    half = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def _total(values_R: Tensor, kept_R: Tensor) -> float:
    return float(values_R.cpu().double()[kept_R].sum())
