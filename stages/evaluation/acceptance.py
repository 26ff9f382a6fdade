"""The expected acceptance of speculative decoding, from records.

A draft q proposes a token, and the target p accepts it with probability min(1, p/q), so that what
comes out is distributed as p (Leviathan et al. 2023, arXiv 2211.17192). The chance of acceptance at
a context is

    alpha = sum_v q_v min(1, p_v/q_v) = sum_v min(p_v, q_v) = 1 - TVD(p, q)

With the teacher as the target and the evaluated model as the draft, records give it in one of three
ways. S are the ids whose teacher log-probability is stored without randomness, a is the realised
token, b(a) the probability with which it was drawn:

    drawn      sum_S min(p, q) + sum_drawn w min(1, q/p)              log p of drawn ids is stored
    realised   sum_S min(p, q) + 1[a not in S] min(p(a), q(a)) / b(a)    b has full support
    bucket     sum_S min(p, q) + min(p(not S), q(not S))

The first two are unbiased: E[w] = p, and S is chosen without looking at a. The first is preferred,
since its terms are at most w. The third is at least alpha: the minimum of two sums is at least the
sum of the minima.

Shape letters as in `stages.objectives.tensors`: T positions, E entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from stages.objectives.contract import guarantee
from stages.objectives.f_divergence import TVD
from stages.objectives.objective import Level
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from storage.errors import ConfigError


@dataclass(frozen=True)
class Acceptance:
    """An estimator of the acceptance at each position."""

    form: Literal["drawn", "realised", "bucket"]
    tvd: TVD

    @property
    def level(self) -> str:
        """`unbiased`, or `upper_bound`."""
        return "upper_bound" if self.form == "bucket" else "unbiased"

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Tensor:
        """Estimate at each position, [T]; a single one may exceed 1.

        Args:
            logq_E: Log-probabilities of the draft at the stored ids.
            logq_T: Of the realised tokens.
            records: The target's.
        """
        if self.form != "realised":
            return 1.0 - self.tvd(logq_E, logq_T, records).loss_T
        assert records.lp_T is not None, "records have a teacher"
        assert records.ref_lp_T is not None, "b is known in this form"
        smaller_E = logq_E.minimum(records.logp_E).exp().where(records.exact_E, 0.0)
        outside_T = (logq_T.minimum(records.lp_T) - records.ref_lp_T).exp()
        return records.sum_entries(smaller_E) + outside_T.where(~records.covers_token(), 0.0)


def acceptance_estimator(meta: Mapping[str, object], temperature: float) -> Acceptance | None:
    """The best estimator that a set offers; None where its records say nothing of acceptance.

    Args:
        meta: Of the set's manifest.
        temperature: That of both distributions, the record's.
    """
    tvd = TVD(temperature=temperature)
    levels = _level(tvd, meta), _level(ReverseKL(temperature=temperature), meta)
    if levels[0] == "unbiased":
        return Acceptance("drawn", tvd)
    if levels[1] == "unbiased":  # what reverse KL asks of the realised token is asked of it here
        return Acceptance("realised", tvd)
    return Acceptance("bucket", tvd) if levels[0] == "lower_bound" else None


def _level(objective: TVD | ReverseKL, meta: Mapping[str, object]) -> Level:
    try:
        return guarantee(objective, meta).level
    except ConfigError:
        return "refused"
