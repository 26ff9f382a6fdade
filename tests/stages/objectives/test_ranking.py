"""Likelihoods of the teacher's order, and the target and the others of NKD, by themselves."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.objectives.likelihood import REDI
from stages.objectives.nkd import NKD
from stages.objectives.objective import Objective
from stages.objectives.ranking import PLD, ListMLE
from stages.objectives.tensors import TorchRecords
from storage.schema import OUTCOME
from tests.stages.objectives.toy_records import (
    Draw,
    V,
    enumerate_positions,
    head_tail,
    make_records,
    sampled,
    softmax,
)

RNG = np.random.default_rng(23)
P, B = softmax(1.5 * RNG.standard_normal(V)), softmax(RNG.standard_normal(V))
Z_Q = torch.from_numpy(1.5 * RNG.standard_normal(V))
TOP = [int(i) for i in np.argsort(-P)]


def whole(p_V: np.ndarray = P) -> TorchRecords:
    """All ids in the head: one position for each realised token."""
    order = [int(i) for i in np.argsort(-p_V)]
    return enumerate_positions(p_V, B, head_tail(p_V, order, 0))[0]


def loss_and_gradient(
    objective: Objective, records: TorchRecords, logits_V: Tensor
) -> tuple[Tensor, Tensor]:
    """Losses of all positions, and the gradient of their sum by the student's logits."""
    logits_V = logits_V.clone().requires_grad_()
    logq_V = logits_V.log_softmax(0)
    loss_T = objective(logq_V[records.ids_E], logq_V[records.tok_T], records).loss_T
    return loss_T.detach(), torch.autograd.grad(loss_T.sum(), logits_V)[0]


def chance_of_order(q_V: Tensor, order: tuple[int, ...]) -> float:
    """Of drawing ids from q in this order, without putting any back."""
    chance, left = 1.0, 1.0
    for v in order:
        chance *= float(q_V[v]) / left
        left -= float(q_V[v])
    return chance


def test_list_mle_is_the_likelihood_of_an_order() -> None:
    """Over all orders of four ids the likelihoods sum to one."""
    q_V = Z_Q.softmax(0)
    four = q_V.topk(4).indices.tolist()
    q_V[[v for v in range(V) if v not in four]] = 0.0
    q_V = q_V / q_V.sum()
    chances = {order: chance_of_order(q_V, order) for order in permutations(four)}
    assert sum(chances.values()) == pytest.approx(1.0)
    found_T, _ = loss_and_gradient(ListMLE(k=4), whole(), Z_Q)
    teachers = tuple(sorted(four, key=lambda v: -P[v]))
    np.testing.assert_allclose(found_T, -np.log(chances[teachers]))


def test_the_order_alone_matters_to_list_mle_and_probabilities_to_pld() -> None:
    """Another teacher that orders the ids alike."""
    flatter = softmax(0.3 * np.log(P))
    for objective, same in ((ListMLE(k=4), True), (PLD(), False)):
        one, other = (loss_and_gradient(objective, whole(p), Z_Q)[0] for p in (P, flatter))
        assert torch.allclose(one, other) == same


def test_pld_counts_the_likeliest_id_as_cross_entropy_does() -> None:
    """Of a teacher that is sure: the terms that follow count by what it gives their ids."""
    sure_V = np.full(V, 1e-9)
    sure_V[3] = 1 - 7e-9
    found_T, grad_V = loss_and_gradient(PLD(), whole(sure_V), Z_Q)
    np.testing.assert_allclose(found_T, -float(Z_Q.log_softmax(0)[3]), atol=1e-6)
    assert grad_V.argmin() == 3


def test_ids_that_may_stand_behind_one_outside_have_no_place() -> None:
    """An unlikely candidate: a likelier id lies in the rest."""
    with_candidate = enumerate_positions(P, B, head_tail(P, [TOP[0], TOP[1], TOP[7]], 0))[0]
    without = enumerate_positions(P, B, head_tail(P, TOP[:2], 0))[0]
    for one, other in zip(
        loss_and_gradient(PLD(), with_candidate, Z_Q),
        loss_and_gradient(PLD(), without, Z_Q),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)


def test_the_other_ids_leave_the_target_alone() -> None:
    """And want nothing where they are spread as the teacher spreads them, however sure q is."""
    records = whole().rows(0, 1)
    for logits_V in (Z_Q, torch.from_numpy(np.log(P))):
        _, target_V = loss_and_gradient(NKD(gamma=0.0), records, logits_V)
        _, both_V = loss_and_gradient(NKD(gamma=2.0), records, logits_V)
        assert abs(float((both_V - target_V)[TOP[0]])) < 1e-12
    shifted_V = torch.from_numpy(np.log(P))
    shifted_V[TOP[0]] += 2.0
    _, target_V = loss_and_gradient(NKD(gamma=0.0), records, shifted_V)
    _, both_V = loss_and_gradient(NKD(gamma=2.0), records, shifted_V)
    torch.testing.assert_close(both_V, target_V, atol=1e-12, rtol=0)


@pytest.mark.parametrize("objective", [NKD(), PLD(), ListMLE()], ids=lambda one: one.name)
def test_positions_without_a_head_count_nothing(objective: Objective) -> None:
    empty = enumerate_positions(P, B, sampled())[0]
    loss_T, grad_V = loss_and_gradient(objective, empty, Z_Q)
    assert not loss_T.any()
    assert not grad_V.any()


def test_a_student_that_is_sure_is_left_to_be() -> None:
    """In float32, nothing is known of the ids beside one with all of the mass."""
    records = whole().rows(0, 1)
    logq_V = torch.full((V,), -30.0)
    logq_V[TOP[0]] = 0.0
    leaf_E = logq_V[records.ids_E].requires_grad_()
    terms = NKD()(leaf_E, logq_V[records.tok_T], records)
    (grad_E,) = torch.autograd.grad(terms.loss_T.sum(), leaf_E)
    assert terms.loss_T.item() == 0.0
    assert torch.count_nonzero(grad_E) == 1


def test_entries_are_ranked_within_their_position() -> None:
    draws = [
        Draw(1.0, [5, 2, 7], [0.2, 0.5, 0.3], [-1.0, -3.0, -2.0], 0.1, head=3),
        Draw(1.0, [], [], [], 1.0),
        Draw(1.0, [4, 1], [0.5, 0.5], [-1.0, -1.0], 0.2, head=1),
    ]
    records = make_records(draws, np.zeros(3, np.int64))
    assert records.ranked(records.logp_E).tolist() == [[0, 2, 1], [-1, -1, -1], [3, 4, -1]]
    assert records.likeliest().tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [("right", 1.0), ("wrong", -0.5), ("unparsed", -0.5), ("cut", -0.5), ("unknown", 0.0)],
)
def test_redi_by_what_the_verifier_said(outcome: str, expected: float) -> None:
    records = whole()
    told_T = torch.full((len(records),), OUTCOME[outcome], dtype=torch.int8)
    loss_T, _ = loss_and_gradient(REDI(alpha=0.5), replace(records, outcome_T=told_T), Z_Q)
    torch.testing.assert_close(loss_T, -expected * Z_Q.log_softmax(0)[records.tok_T])
