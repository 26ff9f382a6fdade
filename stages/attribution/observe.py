"""What a model says about tokens that were drawn: the terms of the tests, a chunk of logits a time.

Every term has mean zero given the past if the model was the sampler, or is the variance of one that
has. A cut by length or at the end token does not spoil that (both are stopping times), so truncated
responses count like any other: every stored token was drawn.

Shape letters: R positions of a chunk, V vocabulary, B classes of ids.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stages.config import Sampling
from stages.counter import hash64

CLASSES = 16
_LOWEST = -200.0  # exp of it is 0 in float32, and 0 * -200 is 0 where 0 * -inf is not


@dataclass(frozen=True)
class Observed:
    """R positions under the distribution their tokens would have been drawn from."""

    lp_R: Tensor
    """Log-probability of the token; -inf where the truncated distribution does not hold it."""
    ent_R: Tensor
    """Entropy H, nats."""
    var_R: Tensor
    """Varentropy: the variance of log p."""
    third_R: Tensor
    """Third central moment of log p."""
    share_RB: Tensor
    """Probability of each class of ids."""
    drawn_R: Tensor
    """bool: the token is one of several that could be drawn here, as far as rounding lets us see.
    The others say nothing and are left out of the sums."""
    impossible_R: Tensor
    """bool: the token could not have been drawn, rounding allowed for."""


def classes(vocab_size: int) -> Tensor:
    """[V] class of each id: a hash, so that neighbours in the vocabulary part ways."""
    return torch.from_numpy((hash64(1, np.arange(vocab_size)) % np.uint64(CLASSES)).astype(int))


def observe(
    z_RV: Tensor, tok_R: Tensor, class_V: Tensor, sampling: Sampling, slack: float
) -> Observed:
    """The terms of R positions.

    Args:
        z_RV: float32 logits of real ids.
        tok_R: int64, the tokens drawn.
        class_V: As `classes` gives it.
        sampling: How they were drawn: top-k cuts first, top-p what that leaves, as engines do. At
            temperature 0 nothing is drawn and the distribution is the model's own.
        slack: What rounding may do to a logit (nats) or to the mass above a token.
    """
    if sampling.temperature == 0:
        logp_RV = z_RV.log_softmax(1)
        lp_R = _at(logp_RV, tok_R)
        impossible_R = logp_RV.amax(1) - lp_R > slack
        drawn_R = torch.zeros_like(impossible_R)
    else:
        z_RV = z_RV / sampling.temperature
        cut_RV, impossible_R = _cut(z_RV, tok_R, sampling, slack)
        logp_RV = z_RV.masked_fill(cut_RV, -torch.inf).log_softmax(1)
        lp_R = _at(logp_RV, tok_R)
        impossible_R = impossible_R | _at(z_RV, tok_R).isneginf()
        drawn_R = lp_R.isfinite()
    p_RV = logp_RV.exp()
    ent_R = torch.special.entr(p_RV).sum(1)
    centred_RV = logp_RV.clamp(min=_LOWEST).add_(ent_R[:, None])
    square_RV = p_RV * centred_RV.square()
    share_RB = p_RV.new_zeros(len(tok_R), CLASSES).index_add_(1, class_V, p_RV)
    return Observed(
        lp_R,
        ent_R,
        var_R=square_RV.sum(1),
        third_R=square_RV.mul_(centred_RV).sum(1),
        share_RB=share_RB,
        drawn_R=drawn_R,
        impossible_R=impossible_R,
    )


def _cut(z_RV: Tensor, tok_R: Tensor, sampling: Sampling, slack: float) -> tuple[Tensor, Tensor]:
    """Ids outside the truncated distribution [R, V], and tokens clearly outside of it [R]."""
    cut_RV = torch.zeros_like(z_RV, dtype=torch.bool)
    far_R = torch.zeros_like(tok_R, dtype=torch.bool)
    if 0 < sampling.top_k < z_RV.shape[1]:
        least_R = z_RV.topk(sampling.top_k, dim=1).values[:, -1]
        cut_RV = z_RV < least_R[:, None]
        far_R = _at(z_RV, tok_R) < least_R - slack
    if sampling.top_p < 1:
        p_RV = z_RV.masked_fill(cut_RV, -torch.inf).softmax(1)
        sorted_RV, order_RV = p_RV.sort(dim=1, descending=True)
        above_RV = sorted_RV.cumsum(1) - sorted_RV
        cut_RV = cut_RV.scatter(1, order_RV, above_RV >= sampling.top_p) | cut_RV
        p_R = _at(p_RV, tok_R)
        above_R = p_RV.masked_fill(p_RV <= p_R[:, None], 0.0).sum(1)
        far_R = far_R | ((p_R > 0) & (above_R >= sampling.top_p + slack))
    return cut_RV, far_R


def _at(values_RV: Tensor, tok_R: Tensor) -> Tensor:
    return values_RV.gather(1, tok_R[:, None])[:, 0]
