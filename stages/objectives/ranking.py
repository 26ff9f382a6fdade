"""The teacher's order of ids instead of its probabilities: Plackett-Luce likelihoods.

Who draws ids from q one after the other without putting any back gets the order a, b, c, ... with
probability q_a / 1 * q_b / (1 - q_a) * q_c / (1 - q_a - q_b) ... Both objectives are negative
logarithms of the probability that the student orders ids as the teacher does:

    PLD       sum_k p_k log( (sum_{l >= k} q_l) / q_k )    all ids by falling p
    ListMLE   sum_{k < K} log( (sum_{l >= k} q_l) / q_k )  the K ids of largest q, by falling p

PLD (arXiv 2506.12542) weighs each choice by the teacher's probability of the id, so that the head
of a record has nearly all of the loss. An id of the head comes before every id outside it for
certain if its p is no less than the mass of all of them. Such ids are ranked, and everything else
is one symbol that comes last: a part of a sum of terms that are never negative. ListMLE is the
indirect distillation of TSD-KD (arXiv 2603.13260).

Shape letters as in `tensors`, and W or K ids in the order of a position.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from stages.objectives.objective import Guarantee, Kept, Objective, Terms
from stages.table import Positive

if TYPE_CHECKING:
    from torch import Tensor

    from stages.objectives.tensors import TorchRecords

_NO_ORDER = Guarantee("refused", "no id is stored exactly, so the teacher's order is not known")

_NOTHING = -1e4
"""Log-probability that stands behind the last id of an order; finite, so that its gradient is 0."""


class PLD(Objective):
    """Likelihood of the teacher's order of all ids, each choice weighted by its probability.

    The paper puts the label first and the others in the teacher's order; here it orders all.
    """

    name: Literal["pld"] = "pld"

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """A bound wherever there is a head; draws are not read."""
        if not kept.head:
            return _NO_ORDER
        return Guarantee(
            "lower_bound",
            "ids that come before all ids outside the stored head are ranked, and everything else "
            "counts as one symbol that comes last",
        )

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms, with the statistic `ranked`, ids in the order; `logq_T` is not used."""
        p_E = records.logp_E.exp()
        first_E = records.exact_E & (p_E >= records.rest_T[records.row_E])
        order_TW = records.ranked(records.logp_E.where(first_E, -math.inf))
        there_TW, logq_TW = order_TW >= 0, _in_order(logq_E, order_TW)
        left_T = 1.0 - records.sum_entries(logq_E.double().exp().where(first_E, 0.0))
        floor = 2.0**-50 if logq_E.element_size() == 8 else 2.0**-20
        # Below the rounding of a log-softmax it is noise: floored, with its gradient kept.
        left_T = left_T + (left_T.clamp_min(floor) - left_T).detach()
        after_TW = _log_sums(logq_TW).logaddexp(left_T.log().to(logq_E.dtype)[:, None])
        p_TW = p_E[order_TW.clamp_min(0)].where(there_TW, 0.0)
        loss_T = (p_TW * (after_TW - logq_TW)).where(there_TW, 0.0).sum(dim=1)
        return Terms(loss_T, {"ranked": there_TW.sum(dim=1).to(loss_T.dtype)})


class ListMLE(Objective):
    """Likelihood of the teacher's order of the ids that the student finds likeliest."""

    name: Literal["list_mle"] = "list_mle"
    k: Positive = 10
    """Number of these ids (arXiv 2603.13260 takes 10)."""

    def guarantee_on(self, kept: Kept) -> Guarantee:
        """Biased: the student's likeliest ids may not be stored."""
        if not kept.head:
            return _NO_ORDER
        return Guarantee(
            "biased",
            "the student's likeliest ids are looked for among the stored ones: its candidates as "
            "pi_ref, and what the teacher finds likely",
        )

    def __call__(self, logq_E: Tensor, logq_T: Tensor, records: TorchRecords) -> Terms:
        """Loss terms; `logq_T` is not used."""
        likely_TK = records.ranked(logq_E.detach().where(records.exact_E, -math.inf))[:, : self.k]
        score_E = logq_E.detach().new_full(logq_E.shape, -math.inf)
        chosen_M = likely_TK[likely_TK >= 0]
        score_E[chosen_M] = records.logp_E[chosen_M]
        order_TK = records.ranked(score_E)
        logq_TK = _in_order(logq_E, order_TK)
        loss_T = (_log_sums(logq_TK) - logq_TK).where(order_TK >= 0, 0.0).sum(dim=1)
        return Terms(loss_T, {})


def _in_order(logq_E: Tensor, order_TW: Tensor) -> Tensor:
    """log q [T, W] in an order of the entries."""
    return logq_E[order_TW.clamp_min(0)].where(order_TW >= 0, _NOTHING)


def _log_sums(logq_TW: Tensor) -> Tensor:
    """Logarithm of the sum of q from each place of the order on."""
    return logq_TW.flip(1).logcumsumexp(1).flip(1)
