"""Mixtures and what changes over training: weights, the moving target of TAID."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.objectives.likelihood import ForwardKL
from stages.objectives.mixture import Mixture, weight_at
from stages.objectives.objective import Objective
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.taid import TAID
from stages.objectives.temper import build_objective
from stages.objectives.tensors import TorchRecords
from stages.training.optim import progress
from tests.stages.objectives.toy_records import V, enumerate_positions, head_tail, softmax

RNG = np.random.default_rng(3)
P, B = softmax(1.5 * RNG.standard_normal(V)), softmax(RNG.standard_normal(V))
LOGQ = torch.log_softmax(torch.from_numpy(1.5 * RNG.standard_normal(V)), dim=0)
HEAD = [int(i) for i in np.argsort(-P)[:3]]


def records(logp: bool = True) -> TorchRecords:
    return enumerate_positions(P, B, head_tail(P, HEAD, 2, logp))[0]


def loss(objective: object, of: TorchRecords) -> torch.Tensor:
    return objective(LOGQ[of.ids_E], LOGQ[of.tok_T], of).loss_T  # pyright: ignore


# ---------------------------------------------------------------------------------------------
# Weights


@pytest.mark.parametrize(
    ("at", "weight"), [(0.0, 1.0), (0.2, 1.0), (0.35, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0)]
)
def test_weight_follows_straight_lines(at: float, weight: float) -> None:
    assert weight_at(((0.2, 1.0), (0.5, 0.5), (1.0, 0.0)), at) == pytest.approx(weight)


def test_the_second_of_two_points_holds_from_there_on() -> None:
    swap = ((0.0, 1.0), (0.5, 1.0), (0.5, 0.0), (1.0, 0.0))
    assert [weight_at(swap, x) for x in (0.0, 0.49, 0.5, 1.0)] == [1.0, 1.0, 0.0, 0.0]
    assert weight_at(((0.5, 3.0),), 0.0) == weight_at(((0.5, 3.0),), 1.0) == 3.0
    assert weight_at(2, 0.3) == 2.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 9)), min_size=1, max_size=5),
    st.floats(0, 1),
)
def test_weight_stays_between_the_points(points: list[tuple[float, float]], at: float) -> None:
    points.sort(key=lambda point: point[0])
    weights = [weight for _, weight in points]
    assert min(weights) - 1e-9 <= weight_at(points, at) <= max(weights) + 1e-9


# ---------------------------------------------------------------------------------------------
# Mixtures


def test_a_mixture_is_the_weighted_sum_and_logs_its_parts() -> None:
    parts = [{"name": "forward_kl", "weight": 0.3}, {"name": "reverse_kl", "weight": 2.0}]
    mixture, of = Mixture.model_validate({"terms": parts}), records()
    terms = mixture(LOGQ[of.ids_E], LOGQ[of.tok_T], of)
    forward, reverse = loss(ForwardKL(), of), loss(ReverseKL(), of)
    torch.testing.assert_close(terms.loss_T, 0.3 * forward + 2.0 * reverse)
    torch.testing.assert_close(terms.stats["reverse_kl"], reverse)
    assert {"forward_kl_cross_entropy", "reverse_kl_bucket"} < set(terms.stats)


def test_forward_then_reverse() -> None:
    table = Objective.model_validate(
        {
            "name": "mixture",
            "terms": [
                {"name": "forward_kl", "weight": [[0, 1], [0.5, 1], [0.5, 0]]},
                {"name": "reverse_kl", "weight": [[0, 0], [0.5, 0], [0.5, 1]]},
            ],
        }
    )
    objective, of = build_objective(table), records()
    torch.testing.assert_close(loss(objective.at(0.2), of), loss(ForwardKL(), of))
    torch.testing.assert_close(loss(objective.at(0.8), of), loss(ReverseKL(), of))
    early, late = (objective.at(x)(LOGQ[of.ids_E], LOGQ[of.tok_T], of).stats for x in (0.0, 1.0))
    assert set(early) == set(late), "a log line may hold steps of both"


def test_parts_of_one_name_are_told_apart_and_follow_progress() -> None:
    table = Objective.model_validate(
        {"name": "mixture", "terms": [{"name": "taid"}, {"name": "taid", "start": 0.1}]}
    )
    of = records()
    stats = table.at(0.5)(LOGQ[of.ids_E], LOGQ[of.tok_T], of).stats
    assert set(stats) == {"taid_1", "taid_1_teacher_share", "taid_2", "taid_2_teacher_share"}
    for part, start in (("taid_1", 0.4), ("taid_2", 0.1)):
        alone = TAID(start=start).at(0.5)
        torch.testing.assert_close(stats[part], loss(alone, of))
        assert stats[f"{part}_teacher_share"].unique().item() == pytest.approx(alone.share)


@pytest.mark.parametrize(
    "table",
    [
        {"name": "mixture"},
        {"name": "mixture", "terms": [{"name": "mixture"}]},
        {"name": "mixture", "terms": [{"name": "tvd", "weight": [[0.5, 1], [0.2, 1]]}]},
        {"name": "mixture", "terms": [{"name": "tvd", "weight": []}]},
        {"name": "mixture", "terms": [{"name": "tvd", "weight": -1}]},
        {"name": "mixture", "terms": [{"name": "tvd", "temperature": 2.0}]},
    ],
)
def test_impossible_mixtures_are_refused(table: dict) -> None:
    with pytest.raises(ValidationError):
        Objective.model_validate(table)


def test_a_mixture_reads_back_as_itself() -> None:
    table = {"name": "mixture", "temperature": 2.0, "terms": [{"name": "jsd", "beta": 0.2}, {}]}
    mixture = Objective.model_validate(table)
    assert isinstance(mixture, Mixture)
    assert [term.name for term in mixture.terms] == ["jsd", "reverse_kl"]
    assert Objective.model_validate(mixture.model_dump()) == mixture
    assert "temperature" not in mixture.model_dump()["terms"][0]


# ---------------------------------------------------------------------------------------------
# TAID


def test_progress_runs_from_first_to_last_step() -> None:
    assert [progress(step, 5) for step in range(5)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert progress(0, 1) == 0.0


def test_the_target_moves_to_the_teacher() -> None:
    assert [TAID(start=0.4).at(x).share for x in (0.0, 0.5, 1.0)] == pytest.approx([0.4, 0.7, 1.0])
    of = records()
    logq_E = LOGQ[of.ids_E].clone().requires_grad_()
    end = TAID().at(1.0)(logq_E, LOGQ[of.tok_T], of).loss_T.sum()
    (found_E,) = torch.autograd.grad(end, logq_E)
    torch.testing.assert_close(found_E, -of.weight_E, msg="the forward KL at the end")


def test_a_target_near_the_student_pulls_less() -> None:
    # With everything exact there is no noise: the gradient is q - p_t.
    of = enumerate_positions(P, B, head_tail(P, [int(i) for i in np.argsort(-P)], 0))[0].rows(0, 1)
    sizes: list[float] = []
    for share in (0.0, 0.3, 0.7, 1.0):
        logits_V = LOGQ.clone().requires_grad_()
        logq_V = torch.log_softmax(logits_V, dim=0)
        terms = TAID(start=0.0).at(share)(logq_V[of.ids_E], logq_V[of.tok_T], of)
        (grad_V,) = torch.autograd.grad(terms.loss_T.sum(), logits_V)
        target_V = torch.softmax((1 - share) * LOGQ + share * torch.from_numpy(P).log(), dim=0)
        torch.testing.assert_close(grad_V, LOGQ.exp() - target_V)
        sizes.append(grad_V.norm().item())
    assert sizes == sorted(sizes)
    assert sizes[0] < 1e-12


def test_more_draws_bring_the_estimated_target_closer() -> None:
    """Consistent, not unbiased: the error of the expected gradient falls with the tail drawn."""
    full_V = torch.softmax(0.6 * LOGQ + 0.4 * torch.from_numpy(P).log(), dim=0)
    errors: list[float] = []
    for head in (2, 4, 6):
        order = [int(i) for i in np.argsort(-P)]
        of, chance_T = enumerate_positions(P, B, head_tail(P, order[:head], 1, True))
        logits_V = LOGQ.clone().requires_grad_()
        logq_V = torch.log_softmax(logits_V, dim=0)
        terms = TAID(start=0.4)(logq_V[of.ids_E], logq_V[of.tok_T], of)
        (grad_V,) = torch.autograd.grad((chance_T * terms.loss_T).sum(), logits_V)
        errors.append(float((grad_V - (LOGQ.exp() - full_V)).norm()))
    assert errors[0] > errors[1] > errors[2] > 1e-6


def test_records_without_drawn_log_p_are_read_by_head_and_rest() -> None:
    bucket, blind = records(logp=False), records(logp=False)
    blind = replace(blind, weight_E=torch.where(blind.exact_E, blind.weight_E, 7.0))
    torch.testing.assert_close(loss(TAID(), bucket), loss(TAID(), blind))
