"""Prefix weights: without cap and means the gradient of live training, and what these two do.

Everything is summed over all responses of up to three tokens out of three, of which one ends a
response. Contexts have a teacher, a policy and a student of their own.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.objectives.contract import guarantee
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from stages.weights.base import Positions, StudentView
from stages.weights.prefix import Prefix
from storage.batch import Batch
from storage.errors import ConfigError
from tests.stages.objectives.toy_records import head_tail, make_records, softmax

Tokens = tuple[int, ...]
Policy = Mapping[Tokens, NDArray[np.float64]]

END, LENGTH = 0, 3
GOING_ON = [1, 2]
CONTEXTS: list[Tokens] = [c for n in range(LENGTH) for c in product(GOING_ON, repeat=n)]
RESPONSES: list[Tokens] = [*((*c, END) for c in CONTEXTS), *product(GOING_ON, repeat=LENGTH)]
RNG = np.random.default_rng(3)


def policy() -> Policy:
    """One by chance."""
    return {context: softmax(1.5 * RNG.standard_normal(3)) for context in CONTEXTS}


P, B, Q = policy(), policy(), policy()
STEPS = [(response[:t], token) for response in RESPONSES for t, token in enumerate(response)]
"""Context and token of each position of each response, one response after the other."""


def chance(response: Tokens, by: Policy) -> float:
    return float(np.prod([by[response[:t]][a] for t, a in enumerate(response)]))


def positions() -> Positions:
    """Every response once."""
    count, none = len(RESPONSES), np.zeros(0, np.float32)
    logq_T = np.log([Q[context][token] for context, token in STEPS])
    batch = Batch(
        seq_id=np.arange(count),
        prompt_id=np.arange(count),
        outcome=np.zeros(count, np.int8),
        prompt=np.ones(count, np.int64),
        prompt_off=np.arange(count + 1),
        tok=np.array([token for _, token in STEPS]),
        tok_off=np.cumsum([0, *map(len, RESPONSES)]),
        ref_lp=np.log([B[context][token] for context, token in STEPS]),
        lp=None,
        ent=None,
        entry_off=np.zeros(len(STEPS) + 1, np.int64),
        ids=np.zeros(0, np.int64),
        weight=none,
        logp=none,
        exact=none.astype(np.bool_),
        rest=np.ones(len(STEPS), np.float32),
    )
    student = StudentView(none, logq_T, none, none)
    return Positions(batch, seed=0, step=0, student=student)


def weights(weight: Prefix, at: Positions) -> np.ndarray:
    return weight.weigh(weight.score(at))


def offline(weight: Prefix) -> Tensor:
    """Expected gradient of the summed losses of a response of pi_ref, by context and logit."""
    logits = torch.from_numpy(np.log(np.stack([Q[c] for c in CONTEXTS]))).requires_grad_()
    logq_TV = logits.log_softmax(-1)[[CONTEXTS.index(context) for context, _ in STEPS]]
    tok_T = np.array([token for _, token in STEPS])
    # A head of one id: what is outside hangs on the realised token.
    draws = [head_tail(P[c], [int(P[c].argmax())], 0)[0] for c, _ in STEPS]
    records: TorchRecords = replace(
        make_records(draws, tok_T),
        lp_T=torch.from_numpy(np.log([P[c][token] for c, token in STEPS])),
        ref_lp_T=torch.from_numpy(np.log([B[c][token] for c, token in STEPS])),
    )
    logq_T = logq_TV.gather(1, torch.from_numpy(tok_T)[:, None])[:, 0]
    loss_T = ReverseKL()(logq_TV[records.row_E, records.ids_E], logq_T, records).loss_T
    chance_T = np.array([chance(response, B) for response in RESPONSES for _ in response])
    weighted_T = torch.from_numpy(chance_T * weights(weight, positions()))
    return torch.autograd.grad((weighted_T * loss_T).sum(), logits)[0]


def live() -> Tensor:
    """The same of the full loss at the contexts that the student visits."""
    logits = torch.from_numpy(np.log(np.stack([Q[c] for c in CONTEXTS]))).requires_grad_()
    logq_CV = logits.log_softmax(-1)
    p_CV = torch.from_numpy(np.stack([P[c] for c in CONTEXTS]))
    kl_C = (logq_CV.exp() * (logq_CV - p_CV.log())).sum(-1)
    visited_C = torch.from_numpy(np.array([chance(context, Q) for context in CONTEXTS]))
    return torch.autograd.grad((visited_C * kl_C).sum(), logits)[0]


def test_without_cap_and_means_the_gradient_is_the_live_one() -> None:
    exact = offline(Prefix(cap=None, each_place=False))
    torch.testing.assert_close(exact, live(), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "weight", [Prefix(), Prefix(cap=None), Prefix(each_place=False)], ids=["both", "means", "cap"]
)
def test_cap_and_means_bring_bias(weight: Prefix) -> None:
    assert (offline(weight) - live()).abs().max() > 1e-3


def test_a_ratio_is_that_of_the_tokens_before_at_most_the_cap() -> None:
    expected = [chance(context, Q) / chance(context, B) for context, _ in STEPS]
    plain = weights(Prefix(cap=None, each_place=False), positions())
    np.testing.assert_allclose(plain, expected, rtol=1e-12)
    assert max(expected) > 1.3
    capped = weights(Prefix(cap=1.3, each_place=False), positions())
    np.testing.assert_allclose(capped, np.minimum(expected, 1.3), rtol=1e-12)


def test_each_place_has_a_mean_of_one() -> None:
    at = positions()
    found = weights(Prefix(cap=1.3), at)
    plain = weights(Prefix(cap=1.3, each_place=False), at)
    for place in range(LENGTH):
        here = at.index_T == place
        assert found[here].mean() == pytest.approx(1.0)
        np.testing.assert_allclose(found[here] / plain[here], 1.0 / plain[here].mean())


def test_ratios_far_below_and_above_what_a_float_holds_have_means_too() -> None:
    score = np.array([[0.0, 0], [-2000.0, 1], [0.0, 0], [-2000.0 + np.log(3), 1], [900.0, 2]])
    np.testing.assert_allclose(Prefix(cap=None).weigh(score), [1.0, 0.5, 1.0, 1.5, 1.0])


def test_the_level_stays_and_the_reason_names_the_weight() -> None:
    """At a context, the weight is a number: the gradient there is that of the loss times it."""
    meta = {
        "record": {"kind": "head_tail", "temperature": 1.0},
        "sampling": {"temperature": 1.0},
        "full_support": True,
    }
    found = guarantee(ReverseKL(), meta, None, (Prefix(),))
    assert found.level == "unbiased"
    assert "weighted by the probability of the tokens before" in found.reason


@pytest.mark.parametrize(
    ("sampling", "temperature", "message"),
    [
        ({}, 1.0, "the tokens were not drawn by a model"),
        ({"temperature": 0.7}, 1.0, "drawn at temperature 0.7, and the objective has the student"),
        ({"temperature": 0.0}, 1.0, "drawn at temperature 0.0"),
    ],
)
def test_tokens_that_no_such_policy_drew_are_refused(
    sampling: dict[str, float], temperature: float, message: str
) -> None:
    record = {"kind": "head_tail", "temperature": temperature}
    meta = {"record": record, "sampling": sampling, "full_support": True}
    bucketed = ReverseKL(form="bucketed", temperature=temperature)
    with pytest.raises(ConfigError, match=message):
        guarantee(bucketed, meta, None, (Prefix(),))
