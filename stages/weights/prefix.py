"""Contexts as often as the student itself would visit them: importance weights of prefixes.

The data hold the contexts of pi_ref. With b the probability each token was drawn with and q the
student's, the chance that the student comes to the context at position t, over that of pi_ref, is

    W_t = product over s < t of q(y_s) / b(y_s)

and for any function f of context and token, E_b[sum_t W_t f_t] is the mean of sum_t f_t over
responses of which the student has written the prefix: what live training averages (per-decision
importance sampling, Precup et al. 2000). A product of t ratios is dominated by few responses once
the student has moved, so it is truncated (Ionides 2008) and normalised by its mean over the step at
the same place of the response (weighted importance sampling). Both bring bias towards the contexts
of pi_ref; `cap = "none"`, `each_place = false` and `train.normalise = "count"` are without.
"""

from typing import ClassVar, Literal

import numpy as np

from stages.table import Bound
from stages.weights.base import Doubles, Positions, Reads, Weight


class Prefix(Weight):
    """Weigh each position by the student's probability of the tokens before it over pi_ref's."""

    name: Literal["prefix"] = "prefix"
    cap: Bound = 1.0
    """Largest ratio; 1: contexts that the student has left count less, none counts more. `"none"`
    for no limit."""
    each_place: bool = True
    """Divide by the mean over the step at the same place of the response, so that late positions,
    whose ratios are products of more tokens, do not count less (or more) than early ones."""

    reads: ClassVar[Reads] = "context"
    reason: ClassVar[str] = (
        "the probability of the tokens before over that with which they were drawn, so that "
        "contexts count as often as the student visits them, as far as cap and means of the step "
        "(taken as given) let them"
    )
    reads_student: ClassVar[bool] = True
    reads_policy: ClassVar[bool] = True
    whole_step: ClassVar[bool] = True

    def score(self, at: Positions) -> Doubles:
        """[T, 2]: log W, and the place in the response."""
        assert at.student is not None, "the weight says `reads_student`"
        assert at.batch.ref_lp is not None, "the weight says `reads_policy`"
        log_w_T = at.student.logq_T.astype(np.float64) - at.batch.ref_lp
        before_T = np.cumsum(log_w_T) - log_w_T
        first_T = at.batch.tok_off[at.row_T]
        return np.stack([before_T - before_T[first_T], at.index_T.astype(np.float64)], axis=1)

    def weigh(self, score: Doubles) -> Doubles:
        """Truncated, then divided by the mean of their place."""
        log_w_T, place_T = score[:, 0], score[:, 1].astype(np.int64)
        if self.cap is not None:
            log_w_T = np.minimum(log_w_T, np.log(self.cap))
        if not self.each_place:
            return np.exp(log_w_T)
        # Relative to the largest of a place: ratios may be too small for a float, and too large.
        largest_P = np.full(place_T.max(initial=-1) + 1, -np.inf)
        np.maximum.at(largest_P, place_T, log_w_T)
        w_T = np.exp(log_w_T - largest_P[place_T])
        sum_P, count_P = np.bincount(place_T, weights=w_T), np.bincount(place_T)
        return w_T * count_P[place_T] / sum_P[place_T]
