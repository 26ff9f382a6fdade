"""Candidates leave records unbiased as long as they do not look at the token that was drawn.

A vocabulary of eight, candidates chosen from pi_ref's distribution by the engines' own rule, heads
as the sampler completes them, and all outcomes of tail and realised token summed: value and
gradient are those of the full loss, whatever mass is covered. Candidates that reach down to the
realised token would keep the residual of every objective at 0, and are seen to be biased.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.config.candidates import Coverage
from stages.config.record_kinds import HeadTail
from stages.engines.base import candidate_counts
from stages.objectives.likelihood import ForwardKL
from stages.objectives.objective import Objective
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.temper import build_objective
from stages.scoring.sampler import on_cpu
from tests.stages.objectives.full_losses import FULL
from tests.stages.objectives.toy_records import V, enumerate_positions, head_tail, softmax

TAU = 0.2
RNG = np.random.default_rng(29)
Z_P, Z_Q, Z_B = (1.5 * RNG.standard_normal(V) for _ in range(3))
P, B = softmax(Z_P), softmax(0.6 * Z_B)
OBJECTIVES: dict[str, Objective] = {
    "forward_kl": ForwardKL(),
    "reverse_kl/corrected": ReverseKL(),
    "reverse_kl/residual_only": ReverseKL(form="residual_only"),
}


def likeliest(mass: float) -> list[int]:
    """The candidates of pi_ref at this context."""
    order = np.argsort(-B)
    logp_1K = np.log(B[order])[None].astype(np.float32)
    return order[: candidate_counts(logp_1K, Coverage(mass=mass))[0]].tolist()


def completed(forced: list[int]) -> tuple[list[int], int]:
    """The whole head, and how many ids of the tail are drawn (`sampler_kernels.head_tail_rows`)."""
    head = sorted({*forced, *np.flatnonzero(P >= TAU).tolist()})
    while True:
        tail = [v for v in range(V) if v not in head]
        rest = float(P[tail].sum())
        drawn = math.ceil(rest / TAU) if tail else 0
        above = [v for v in tail if P[v] > rest / drawn]
        if not above:
            return head, drawn
        head += above


def expectation(name: str, forced: list[int], tokens: list[int]) -> tuple[float, Tensor]:
    """Loss and gradient over all tails, at those realised tokens, each with its probability."""
    head, drawn = completed(forced)
    floor = HeadTail(tau=TAU).tail_floor if drawn == 1 else 0.0
    records, chance_T = enumerate_positions(P, B, head_tail(P, head, drawn, floor=floor))
    chance_T = torch.where(torch.isin(records.tok_T, torch.tensor(tokens)), chance_T, 0.0)
    record = HeadTail(tau=TAU).described()
    function = build_objective(OBJECTIVES[name], record)
    logits_V = torch.from_numpy(Z_Q).requires_grad_()
    logq_V = torch.log_softmax(logits_V, dim=0)
    terms = function(logq_V[records.ids_E], logq_V[records.tok_T], records)
    loss = (chance_T * terms.loss_T).sum()
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


def full(name: str) -> tuple[float, Tensor]:
    logits_V = torch.from_numpy(Z_Q).requires_grad_()
    loss = FULL[name](torch.log_softmax(logits_V, dim=0), torch.from_numpy(P), torch.from_numpy(B))
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


MASSES = (np.cumsum(np.sort(B)[::-1]) - 1e-3).tolist()
"""Each takes one id more than the one before."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_records_are_unbiased_at_every_mass(name: str) -> None:
    value, grad_V = full(name)
    for mass in MASSES:
        found, found_V = expectation(name, likeliest(mass), list(range(V)))
        assert found == pytest.approx(value, abs=1e-10)
        torch.testing.assert_close(found_V, grad_V, atol=1e-10, rtol=0)


def test_the_masses_above_are_different_cases_and_heads_are_those_of_the_sampler() -> None:
    forced = [likeliest(mass) for mass in MASSES]
    assert [len(ids) for ids in forced] == list(range(1, V + 1))
    for ids in forced:
        head, _ = completed(ids)
        z_1V, padded = np.log(P)[None].astype(np.float32), [*ids, *[ids[-1]] * (V - len(ids))]
        made = on_cpu(
            z_1V,
            V,
            np.zeros(1, np.int64),
            np.array([padded]),
            np.full((1, 1), 0.5),
            HeadTail(tau=TAU),
        )
        assert made.nh_R is not None
        assert made.ids_E is not None
        assert set(made.ids_E[: int(made.nh_R[0])].tolist()) == set(head)


def test_candidates_that_follow_the_realised_token_would_be_biased() -> None:
    """The likeliest ids down to the token that was drawn: covered tokens at every position."""
    value, grad_V = full("reverse_kl/corrected")
    order = np.argsort(-B).tolist()
    parts = [
        expectation("reverse_kl/corrected", order[: rank + 1], [token])
        for rank, token in enumerate(order)
    ]
    found, found_V = sum(one for one, _ in parts), torch.stack([one for _, one in parts]).sum(0)
    assert abs(found - value) > 1e-2
    assert (found_V - grad_V).norm() > 1e-2 * grad_V.norm()
