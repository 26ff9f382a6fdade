"""What others do and what becomes of it: each trap beside the objective that avoids it.

The student is a table of logits over a vocabulary of eight, trained to the end by gradient descent
on the *expected* loss, so what is seen is where an objective leads and not its noise. Traps about
the support (renormalised on a sample, chosen by looking at the token) and neighbouring positions
are in `test_objectives`; a renormalised top-k is also a cell of `test_proofs`.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.config.record_kinds import HeadTail
from stages.objectives.f_divergence import JSD, GhostKL
from stages.objectives.likelihood import ForwardKL
from stages.objectives.objective import ObjectiveFunction
from stages.objectives.policy_gradient import PolicyGradient
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from tests.stages.objectives.full_losses import FULL
from tests.stages.objectives.toy_records import (
    Draw,
    V,
    enumerate_positions,
    head_tail,
    multinomial_counts,
    softmax,
    top_k,
)

RNG = np.random.default_rng(23)
Z_P, Z_B = (1.2 * RNG.standard_normal(V) for _ in range(2))
P, B = softmax(Z_P), softmax(Z_B)
TEACHER, BEHAVIOUR = torch.from_numpy(P), torch.from_numpy(B)
ORDER = [int(i) for i in np.argsort(-P)]


def descend(loss: Callable[[Tensor], Tensor], steps: int = 1500, rate: float = 1.0) -> Tensor:
    """The student [V] that gradient descent from the behaviour policy leads to."""
    logits_V = torch.from_numpy(Z_B).clone().requires_grad_()
    for _ in range(steps):
        (grad_V,) = torch.autograd.grad(loss(torch.log_softmax(logits_V, dim=0)), logits_V)
        logits_V.data -= rate * grad_V
    return torch.softmax(logits_V.detach(), dim=0)


def of_records(objective: ObjectiveFunction, draws: list[Draw]) -> Callable[[Tensor], Tensor]:
    """Expected loss on enumerated records of the teacher."""
    records, chance_T = enumerate_positions(P, B, draws)

    def loss(logq_V: Tensor) -> Tensor:
        terms = objective(logq_V[records.ids_E], logq_V[records.tok_T], records)
        return (chance_T * terms.loss_T).sum()

    return loss


def distance(student_V: Tensor) -> float:
    """Total variation to the teacher."""
    return 0.5 * (student_V - TEACHER).abs().sum().item()


def test_a_tail_left_out_by_chance_misleads_who_reads_log_p_of_the_tail() -> None:
    """Which reading a position gets would depend on the draw; so such records are not made."""
    logq_V = torch.log_softmax(torch.from_numpy(Z_B), dim=0)
    full = FULL["jsd"](logq_V, TEACHER, BEHAVIOUR).item()
    found = {
        floor: of_records(JSD(beta=0.3), head_tail(P, ORDER[:4], 1, True, floor))(logq_V).item()
        for floor in (0.0, 0.9)
    }
    assert found[0.0] == pytest.approx(full, abs=1e-10)
    assert abs(found[0.9] - full) > 1e-3
    assert HeadTail(logp=True).tail_floor == 0 < HeadTail().tail_floor


def test_a_fixed_advantage_collapses_and_clipping_only_stops_it_elsewhere() -> None:
    """The advantage log p - log pi_ref, computed once: its maximum is a single token."""
    advantage_V = (TEACHER / BEHAVIOUR).log()

    def ratio(logq_V: Tensor) -> Tensor:
        return (logq_V - BEHAVIOUR.log()).exp()

    def plain(logq_V: Tensor) -> Tensor:
        return -(BEHAVIOUR * ratio(logq_V) * advantage_V).sum()

    def clipped(logq_V: Tensor) -> Tensor:
        ratio_V = ratio(logq_V)
        bounded_V = ratio_V.clamp(0.8, 1.2)
        return -(BEHAVIOUR * torch.minimum(ratio_V * advantage_V, bounded_V * advantage_V)).sum()

    assert descend(plain).max() > 0.99
    assert distance(descend(clipped)) > 0.5 * distance(BEHAVIOUR)
    ours = descend(of_records(ReverseKL(), head_tail(P, ORDER[:2], 0)))
    assert distance(ours) < 1e-6


def test_renormalised_top_k_is_overconfident_and_ghost_is_not() -> None:
    """Its optimum has all the mass on the k; the ghost leaves the rest its own share."""
    k = top_k(P, 3)
    kept = float(P[ORDER[:3]].sum())
    student_V = descend(of_records(ForwardKL(), k))
    assert student_V[ORDER[:3]].sum() > 0.99 > kept
    torch.testing.assert_close(
        student_V[ORDER[:3]] / student_V[ORDER[:3]].sum(),
        TEACHER[ORDER[:3]] / kept,
        atol=0.01,
        rtol=0,
    )
    ghost_V = descend(of_records(GhostKL(), k))
    torch.testing.assert_close(ghost_V[ORDER[:3]], TEACHER[ORDER[:3]])
    assert distance(descend(of_records(ForwardKL(), multinomial_counts(P, 2)))) < 1e-6


def test_self_normalised_proposals_are_biased() -> None:
    """Draws from another proposal, weighted by p / proposal and then normalised to one."""
    proposal_V = softmax(0.5 * Z_P)
    draws = multinomial_counts(proposal_V, 3)

    def reweighted(draw: Draw, normalise: bool) -> Draw:
        weight = [w * P[i] / proposal_V[i] for w, i in zip(draw.weight, draw.ids, strict=True)]
        total = sum(weight) if normalise else 1.0
        return Draw(draw.chance, draw.ids, [w / total for w in weight], draw.logp, 1.0)

    ends = [
        descend(of_records(ForwardKL(), [reweighted(draw, normalise) for draw in draws]))
        for normalise in (True, False)
    ]
    assert distance(ends[0]) > 0.01
    assert distance(ends[1]) < 1e-6


def test_zero_outside_the_support_overestimates_the_divergence() -> None:
    """The student's half of a JSD with p = 0 for whatever was not stored."""
    records, chance_T = enumerate_positions(P, B, head_tail(P, ORDER[:3], 2, logp=True))
    logq_V = torch.from_numpy(Z_P + 0.3 * Z_B).log_softmax(dim=0)
    full = _jsd(logq_V, TEACHER)
    zeroed_T = torch.zeros_like(chance_T)
    for t in range(len(records)):
        known_V = torch.zeros(V, dtype=torch.float64)
        known_V[records.ids_E[records.row_E == t]] = TEACHER[records.ids_E[records.row_E == t]]
        zeroed_T[t] = _jsd(logq_V, known_V)
    ours = JSD()(logq_V[records.ids_E], logq_V[records.tok_T], records).loss_T
    assert (chance_T * zeroed_T).sum() > 1.5 * full
    assert (chance_T * ours).sum().item() == pytest.approx(full, abs=1e-12)


def _jsd(logq_V: Tensor, p_V: Tensor) -> float:
    m_V = 0.5 * (p_V + logq_V.exp())
    halves = (
        torch.special.xlogy(p_V, p_V / m_V),
        torch.special.xlogy(logq_V.exp(), logq_V.exp() / m_V),
    )
    return float(0.5 * (halves[0] + halves[1]).sum())


@pytest.mark.parametrize("objective", [ReverseKL(max_weight=0.6), PolicyGradient(truncation=0.6)])
def test_a_cap_biases_the_way_and_not_the_end(objective: ObjectiveFunction) -> None:
    """At the teacher every advantage vanishes, capped or not; elsewhere the gradient is another."""
    draws = head_tail(P, ORDER[:1], 0)
    assert distance(descend(of_records(objective, draws))) < 1e-6
    logits_V = torch.from_numpy(Z_B).clone().requires_grad_()
    capped, full = (
        torch.autograd.grad(of_records(one, draws)(torch.log_softmax(logits_V, dim=0)), logits_V)[0]
        for one in (objective, ReverseKL())
    )
    assert (capped - full).norm() > 0.1 * full.norm()


def test_a_position_reads_only_its_own_entries() -> None:
    """Two positions in one batch give each what it would have got alone."""
    both, _ = enumerate_positions(P, B, head_tail(P, ORDER[:3], 2, logp=True))
    logq_V = torch.from_numpy(Z_B).log_softmax(dim=0)

    def losses(records: TorchRecords) -> Tensor:
        return JSD()(logq_V[records.ids_E], logq_V[records.tok_T], records).loss_T

    alone = torch.cat([losses(both.rows(t, t + 1)) for t in range(len(both))])
    torch.testing.assert_close(losses(both), alone)
