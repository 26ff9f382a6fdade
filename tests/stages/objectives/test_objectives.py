"""Objectives on a vocabulary of eight, where every expectation is an exact sum.

p teacher, q student, b behaviour (the policy that drew the realised token). All in float64 unless
a test is about float32.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from stages.objectives.f_divergence import JSD, TVD, GhostKL, SkewForwardKL, SkewReverseKL
from stages.objectives.lightning import Lightning
from stages.objectives.likelihood import CrossEntropy, ForwardKL
from stages.objectives.objective import Objective, ObjectiveFunction
from stages.objectives.policy_gradient import PolicyGradient
from stages.objectives.reverse_kl import MASS_FLOOR, Form, ReverseKL
from stages.objectives.taid import TAID
from stages.objectives.temper import build_objective
from stages.objectives.tensors import TorchRecords
from tests.stages.objectives.toy_records import (
    Draw,
    V,
    enumerate_positions,
    head_tail,
    make_records,
    multinomial_counts,
    sampled,
    softmax,
    systematic_counts,
)

RNG = np.random.default_rng(5)
Z_P, Z_Q, Z_B = (1.5 * RNG.standard_normal(V) for _ in range(3))
P, B = softmax(Z_P), softmax(Z_B)
TOP = [int(i) for i in np.argsort(-P)]
WATCHED = [TOP[0], TOP[1], TOP[6]]  # the two likeliest and an unlikely candidate

KINDS = {
    "sampled": sampled(),
    "multinomial counts": multinomial_counts(P, 3),
    "systematic counts": systematic_counts(P, 5),
    "head only": head_tail(P, TOP[:2], 0),
    "head and tail": head_tail(P, TOP[:3], 2),
    "watched head and tail": head_tail(P, WATCHED, 1),
    "everything exact": head_tail(P, TOP, 0),
}


def expected(
    objective: ObjectiveFunction,
    draws: list[Draw],
    logits_V: np.ndarray = Z_Q,
    p_V: np.ndarray = P,
    b_V: np.ndarray = B,
) -> tuple[float, Tensor]:
    """Expected loss and its expected gradient by the logits, over draws and realised tokens."""
    records, chance_T = enumerate_positions(p_V, b_V, draws)
    return evaluate(objective, records, chance_T, torch.from_numpy(logits_V))


def evaluate(
    objective: ObjectiveFunction, records: TorchRecords, chance_T: Tensor, logits_V: Tensor
) -> tuple[float, Tensor]:
    logits_V = logits_V.clone().requires_grad_()
    logq_V = torch.log_softmax(logits_V / objective.temperature, dim=0)
    terms = objective(logq_V[records.ids_E], logq_V[records.tok_T], records)
    loss = (chance_T * terms.loss_T).sum()
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


def reverse_kl(logits_V: np.ndarray, p_V: np.ndarray, temperature: float) -> tuple[float, Tensor]:
    """KL(q || p) over the whole vocabulary, and its gradient by the student's logits."""
    logits = torch.from_numpy(logits_V).requires_grad_()
    logq_V = torch.log_softmax(logits / temperature, dim=0)
    value = (logq_V.exp() * (logq_V - torch.from_numpy(p_V).log())).sum()
    return value.item(), torch.autograd.grad(value, logits)[0]


def forward_kl(logits_V: np.ndarray, p_V: np.ndarray) -> tuple[float, Tensor]:
    logits = torch.from_numpy(logits_V).requires_grad_()
    teacher = torch.from_numpy(p_V)
    value = (teacher * (teacher.log() - torch.log_softmax(logits, dim=0))).sum()
    return value.item(), torch.autograd.grad(value, logits)[0]


# ---------------------------------------------------------------------------------------------
# What is claimed to be unbiased is, in value and in gradient


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("form", ["corrected", "residual_only"])
@pytest.mark.parametrize("kind", KINDS)
def test_reverse_kl_is_unbiased(kind: str, form: Form, temperature: float) -> None:
    value, grad_V = expected(ReverseKL(temperature=temperature, form=form), KINDS[kind])
    true_value, true_V = reverse_kl(Z_Q, P, temperature)
    assert value == pytest.approx(true_value, abs=1e-10)
    torch.testing.assert_close(grad_V, true_V, atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("sampled", "head only")])
def test_forward_kl_is_unbiased(kind: str) -> None:
    value, grad_V = expected(ForwardKL(), KINDS[kind])
    true_value, true_V = forward_kl(Z_Q, P)
    assert value == pytest.approx(true_value, abs=1e-10)
    torch.testing.assert_close(grad_V, true_V, atol=1e-10, rtol=0)


def test_the_correction_lowers_the_variance_of_the_residual_alone() -> None:
    records, chance_T = enumerate_positions(P, B, KINDS["head only"])
    variance: dict[Form, float] = {}
    forms: tuple[Form, ...] = ("corrected", "residual_only")
    for form in forms:
        one = torch.zeros_like(chance_T)
        grads = []
        for t in range(len(chance_T)):
            one.zero_()[t] = 1.0
            grads.append(evaluate(ReverseKL(form=form), records, one, torch.from_numpy(Z_Q))[1])
        grads_TV = torch.stack(grads)
        mean_V = chance_T @ grads_TV
        variance[form] = float(chance_T @ (grads_TV - mean_V).square().sum(dim=1))
    assert variance["corrected"] < 0.5 * variance["residual_only"]


# ---------------------------------------------------------------------------------------------
# Negative controls: the same checks fail where they should


def test_bucket_alone_has_another_gradient() -> None:
    _, grad_V = expected(ReverseKL(form="bucketed"), KINDS["head only"])
    _, true_V = reverse_kl(Z_Q, P, 1.0)
    assert (grad_V - true_V).norm() > 0.1 * true_V.norm()


def test_bucket_alone_is_a_lower_bound_for_every_student() -> None:
    rng = np.random.default_rng(11)
    gaps = []
    for _ in range(50):
        logits_V = 3 * rng.standard_normal(V)
        value, _ = expected(ReverseKL(form="bucketed"), KINDS["head only"], logits_V)
        gaps.append(reverse_kl(logits_V, P, 1.0)[0] - value)
    assert min(gaps) >= -1e-12
    assert max(gaps) > 0.1


def test_capping_the_weight_biases_and_is_counted() -> None:
    capped = ReverseKL(max_weight=0.5)
    _, grad_V = expected(capped, KINDS["head only"])
    assert (grad_V - reverse_kl(Z_Q, P, 1.0)[1]).norm() > 0.02

    records, _ = enumerate_positions(P, B, KINDS["head only"])
    logq_V = torch.log_softmax(torch.from_numpy(Z_Q), dim=0)
    stats = capped(logq_V[records.ids_E], logq_V[records.tok_T], records).stats
    outside_V = torch.tensor([v not in TOP[:2] for v in range(V)])
    binds_V = outside_V & (logq_V.exp() > 0.5 * torch.from_numpy(B))
    assert stats["weight_capped"].tolist() == binds_V.double().tolist()
    assert 0 < binds_V.sum() < V


def test_a_support_that_looks_at_the_realised_token_is_biased() -> None:
    draws = [head_tail(P, sorted({*TOP[:2], a}), 0)[0] for a in range(V)]
    records, _ = enumerate_positions(P, B, draws)
    own_T = torch.arange(V).repeat_interleave(V) == records.tok_T  # each draw with its own token
    chance_T = own_T * torch.from_numpy(B)[records.tok_T]
    _, grad_V = evaluate(ReverseKL(), records, chance_T, torch.from_numpy(Z_Q))
    assert (grad_V - reverse_kl(Z_Q, P, 1.0)[1]).norm() > 0.05


def test_reverse_kl_renormalised_on_a_sampled_support_collapses() -> None:
    """Why counts have no dense reverse KL: its optimum forgets the teacher."""
    draws = multinomial_counts(P, 3)
    records = make_records(draws, np.zeros(len(draws), dtype=np.int64))
    chance_E = torch.tensor([draw.chance for draw in draws]).double()[records.row_E]
    logits_V = torch.from_numpy(np.log(P)).clone().requires_grad_()
    for _ in range(400):
        logq_E = torch.log_softmax(logits_V, dim=0)[records.ids_E]
        own_E = logq_E - records.sum_entries(logq_E.exp()).log()[records.row_E]
        loss = (chance_E * own_E.exp() * (own_E - records.weight_E.log())).sum()
        (grad_V,) = torch.autograd.grad(loss, logits_V)
        logits_V.data -= 4.0 * grad_V
    entropy = torch.distributions.Categorical(logits=logits_V).entropy().item()
    assert entropy > 0.97 * np.log(V)
    assert reverse_kl(logits_V.detach().numpy(), P, 1.0)[0] > 0.3

    # The objective offered for the same records stays at the teacher.
    _, grad_V = expected(ReverseKL(), draws, np.log(P))
    assert grad_V.norm() < 1e-10


@pytest.mark.parametrize("kind", ["head and tail", "everything exact"])
def test_jsd_vanishes_at_both_ends_and_has_the_kls_as_scaled_limits(kind: str) -> None:
    """JSD / beta tends to KL(p || q) as beta tends to 0, JSD / (1 - beta) to KL(q || p) at 1."""
    draws = {
        "head and tail": head_tail(P, TOP[:3], 2, logp=True),
        "everything exact": KINDS["everything exact"],
    }[kind]
    near = 1e-5
    for beta, full in ((near, forward_kl(Z_Q, P)), (1 - near, reverse_kl(Z_Q, P, 1.0))):
        value, grad_V = expected(JSD(beta=beta), draws)
        assert value < 2 * near * full[0]
        assert value / near == pytest.approx(full[0], rel=1e-3)
        torch.testing.assert_close(grad_V / near, full[1], atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------------------------
# Definitions and fixed points


@pytest.mark.parametrize("clip", [None, 10.0, 0.8])
def test_lightning_gradient_is_the_clipped_advantage(clip: float | None) -> None:
    records, _ = enumerate_positions(P, B, sampled())
    logq_T = torch.log_softmax(torch.from_numpy(Z_Q), dim=0)[records.tok_T].requires_grad_()
    terms = Lightning(clip=clip)(logq_T.new_zeros(0), logq_T, records)
    (grad_T,) = torch.autograd.grad(terms.loss_T.sum(), logq_T)
    advantage_T = torch.from_numpy(np.log(P)) - logq_T.detach()
    bound = clip or float("inf")
    torch.testing.assert_close(grad_T, -advantage_T.clamp(-bound, bound))
    torch.testing.assert_close(terms.stats["advantage"], advantage_T)
    assert terms.stats["clipped"].sum() == (advantage_T.abs() > bound).sum()
    if clip == 0.8:
        assert 0 < terms.stats["clipped"].sum() < V


def test_lightning_is_huber_loss() -> None:
    records, _ = enumerate_positions(P, B, sampled())
    logq_T = torch.log_softmax(torch.from_numpy(Z_Q), dim=0)[records.tok_T]
    assert records.lp_T is not None
    loss_T = Lightning(clip=0.8)(logq_T.new_zeros(0), logq_T, records).loss_T
    huber_T = torch.nn.functional.huber_loss(logq_T, records.lp_T, reduction="none", delta=0.8)
    torch.testing.assert_close(loss_T, huber_T)


@pytest.mark.parametrize(
    "objective",
    [ReverseKL(), ReverseKL(form="bucketed"), ReverseKL(form="residual_only"), ForwardKL()],
    ids=str,
)
def test_teacher_equal_to_student_has_zero_expected_gradient(objective: ObjectiveFunction) -> None:
    value, grad_V = expected(objective, KINDS["head and tail"], Z_P)
    assert value == pytest.approx(0.0, abs=1e-10)
    assert grad_V.norm() < 1e-10


def test_lightning_vanishes_at_the_teacher_token_by_token() -> None:
    records, _ = enumerate_positions(P, B, sampled())
    logq_T = torch.from_numpy(np.log(P))[records.tok_T]
    assert Lightning()(logq_T.new_zeros(0), logq_T, records).loss_T.max() < 1e-20


def test_cross_entropy_ignores_the_teacher() -> None:
    draws = [Draw(1.0, [], [], [], 1.0)] * V
    records = make_records(draws, np.arange(V))
    logq_T = torch.log_softmax(torch.from_numpy(Z_Q), dim=0)
    torch.testing.assert_close(CrossEntropy()(logq_T[:0], logq_T, records).loss_T, -logq_T)


@pytest.mark.parametrize(
    ("objective", "least"),
    [
        (ReverseKL(), 1.0),
        (ForwardKL(), 1.0),
        (GhostKL(), 1.0),
        (TAID(), 0.3),
        (Lightning(), 1.0),
        (JSD(), 0.3),
        (SkewForwardKL(), 0.5),
        (SkewReverseKL(), 0.5),
        (TVD(), 0.5),
    ],
    ids=str,
)
def test_records_of_the_neighbouring_position_blow_up_the_loss(
    objective: ObjectiveFunction, least: float
) -> None:
    """A chain of positions with a peaked teacher each; the student is the teacher.

    `policy_gradient` cannot tell: a token that its own position finds unlikely weighs nothing. The
    agreement of trainer and engine before the first step is what catches a shift there.
    """
    rng = np.random.default_rng(2)
    length = 40
    logits_TV = 4 * rng.standard_normal((length, V))
    p_TV = np.stack([softmax(row) for row in logits_TV])
    tokens = np.array([rng.choice(V, p=row) for row in p_TV])
    draws = [head_tail(row, list(np.argsort(-row)[:4]), 0)[0] for row in p_TV]
    records = replace(
        make_records(draws, tokens),
        lp_T=torch.from_numpy(np.log(p_TV)[np.arange(length), tokens]),
        ref_lp_T=torch.from_numpy(np.log(p_TV)[np.arange(length), tokens]),
        ent_T=torch.from_numpy(-(p_TV * np.log(p_TV)).sum(axis=1)),
    )
    logq_TV = torch.from_numpy(np.log(p_TV))

    def loss(student_TV: Tensor) -> float:
        logq_E = student_TV[records.row_E, records.ids_E]
        logq_T = student_TV.gather(1, records.tok_T[:, None]).squeeze(1)
        return objective(logq_E, logq_T, records).loss_T.mean().item()

    aligned, shifted = loss(logq_TV), loss(logq_TV.roll(1, dims=0))
    assert abs(aligned) < 0.05
    assert shifted > least


# ---------------------------------------------------------------------------------------------
# Numerics


def narrow(records: TorchRecords) -> TorchRecords:
    """The same records in float32."""
    fields = {
        name: value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value
        for name, value in vars(records).items()
    }
    return TorchRecords(**fields)


@pytest.mark.parametrize("sharpness", [1.0, 12.0, 40.0])
@pytest.mark.parametrize("form", ["corrected", "bucketed", "residual_only"])
def test_float32_agrees_with_float64_when_the_head_holds_nearly_everything(
    form: Form, sharpness: float
) -> None:
    p_V, b_V = softmax(sharpness * Z_P), softmax(sharpness * Z_B)
    logits_V = torch.from_numpy(sharpness * (Z_P + 0.1 * Z_Q))
    p_V, b_V = np.maximum(p_V, 1e-30), np.maximum(b_V, 1e-30)
    head = [int(i) for i in np.argsort(-p_V)[:3]]
    records, chance_T = enumerate_positions(p_V, b_V, head_tail(p_V, head, 0))
    # Tokens the behaviour policy practically never draws would only test overflow of the weight.
    chance_T = chance_T * (chance_T > 1e-12)
    keep_T = chance_T > 0
    exact = evaluate(ReverseKL(form=form), records, chance_T, logits_V)
    rough = evaluate(ReverseKL(form=form), narrow(records), chance_T.float(), logits_V.float())
    assert keep_T.any()
    assert rough[0] == pytest.approx(exact[0], abs=2e-5)
    torch.testing.assert_close(rough[1].double(), exact[1], atol=2e-5, rtol=1e-4)


def test_exact_ids_over_the_whole_vocabulary_leave_no_tail_term() -> None:
    records, chance_T = enumerate_positions(P, B, head_tail(P, TOP, 0))
    records = narrow(replace(records, rest_T=torch.zeros_like(records.rest_T)))
    logits_V = torch.from_numpy(Z_Q).float()
    true_value, true_V = reverse_kl(Z_Q, P, 1.0)
    forms: tuple[Form, ...] = ("corrected", "bucketed")
    for form in forms:
        value, grad_V = evaluate(ReverseKL(form=form), records, chance_T.float(), logits_V)
        assert value == pytest.approx(true_value, abs=1e-6)
        torch.testing.assert_close(grad_V, true_V.float(), atol=1e-6, rtol=0)


def test_a_teacher_tail_that_underflowed_still_pulls_the_student_back() -> None:
    p_V = softmax(np.where(np.arange(V) < 2, 0.0, -200.0))
    records, chance_T = enumerate_positions(p_V, np.full(V, 1 / V), head_tail(p_V, [0, 1], 0))
    records = replace(records, rest_T=torch.zeros_like(records.rest_T))
    value, grad_V = evaluate(ReverseKL(), records, chance_T, torch.zeros(V, dtype=torch.float64))
    assert np.isfinite(value)
    assert bool(grad_V.isfinite().all())
    assert grad_V[:2].max() < 0 < grad_V[2:].min()

    bucketed = ReverseKL(form="bucketed")
    bound, _ = evaluate(bucketed, records, chance_T, torch.zeros(V, dtype=torch.float64))
    assert bound == pytest.approx(0.25 * np.log(0.25) + 0.75 * np.log(0.75 / MASS_FLOOR))


# ---------------------------------------------------------------------------------------------
# Records


def test_rows_cuts_positions_with_their_entries() -> None:
    records, _ = enumerate_positions(P, B, KINDS["multinomial counts"])
    part = records.rows(5, 9)
    assert len(part) == 4
    assert part.tok_T.tolist() == records.tok_T[5:9].tolist()
    for t in range(4):
        of_part = part.ids_E[part.row_E == t].tolist()
        assert of_part == records.ids_E[records.row_E == t + 5].tolist()
        assert part.entry_off[t + 1] - part.entry_off[t] == len(of_part)


@pytest.mark.parametrize("kind", ["systematic counts", "head and tail"])
def test_weight_of_an_id_estimates_its_probability(kind: str) -> None:
    records, chance_T = enumerate_positions(P, B, KINDS[kind])
    for v in range(V):
        estimate = (chance_T * records.weight_of(torch.full_like(records.tok_T, v))).sum()
        assert estimate.item() == pytest.approx(P[v], abs=1e-10)


def test_sampled_tail_ids_do_not_cover_the_realised_token() -> None:
    draw = head_tail(P, TOP[:3], 2)[0]
    records = make_records([draw] * V, np.arange(V))
    assert records.covers_token().tolist() == [v in TOP[:3] for v in range(V)]


@pytest.mark.parametrize(
    ("table", "read"),
    [
        ({}, ReverseKL()),
        ({"form": "bucketed", "temperature": 0.5}, ReverseKL(temperature=0.5, form="bucketed")),
        ({"max_weight": 4.0}, ReverseKL(max_weight=4.0)),
        ({"name": "forward_kl"}, ForwardKL()),
        ({"name": "lightning", "clip": "none"}, Lightning(clip=None)),
        ({"name": "cross_entropy"}, CrossEntropy()),
        ({"name": "ghost_kl"}, GhostKL()),
        ({"name": "jsd", "beta": 0.2}, JSD(beta=0.2)),
        ({"name": "skew_forward_kl", "alpha": 0.3}, SkewForwardKL(alpha=0.3)),
        ({"name": "skew_reverse_kl", "alpha": 0.3}, SkewReverseKL(alpha=0.3)),
        ({"name": "tvd", "temperature": 2.0}, TVD(temperature=2.0)),
        ({"name": "taid", "start": 0.2}, TAID(start=0.2)),
        ({"name": "policy_gradient", "truncation": "none"}, PolicyGradient(truncation=None)),
    ],
)
def test_a_table_becomes_the_objective_it_names(table: dict, read: Objective) -> None:
    found = Objective.model_validate(table)
    assert found == read
    assert Objective.model_validate(found.model_dump()) == found
    assert build_objective(found) is found


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "jsd", "alpha": 0.1}, '`alpha` is not an option of name = "jsd", which .*`beta`'),
        ({"name": "lightning", "beta": 1}, '`beta` is not an option of .*"lightning", .*`clip`'),
        ({"clip": 1.0}, '`clip` is not an option of .*"reverse_kl", .*`form`, `max_weight`'),
        ({"name": "jds"}, "name is `jds`; it must be one of .*jsd"),
        ({"name": "mixture", "terms": [{"name": "tvd", "clip": 1}]}, '`clip` is not .* "tvd"'),
        ({"name": "jsd", "beta": 1.0}, "beta\n.*less than 1"),
    ],
)
def test_a_wrong_option_names_the_objective_and_its_options(table: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Objective.model_validate(table)


def test_two_objectives_of_one_name_are_an_error() -> None:
    with pytest.raises(TypeError, match=r"JSD.* is called `jsd` already"):
        type("Other", (Objective,), {"__annotations__": {"name": str}, "name": "jsd"})


@pytest.mark.parametrize("objective", [ForwardKL(), Lightning(), ReverseKL()], ids=str)
def test_records_without_a_teacher_are_refused_by_name(objective: ObjectiveFunction) -> None:
    records = make_records([Draw(1.0, [], [], [], 1.0)] * V, np.arange(V))
    logq_T = torch.log_softmax(torch.from_numpy(Z_Q), dim=0)
    with pytest.raises(ValueError, match=r"needs the column `\w+`.*contract\.guarantee"):
        objective(logq_T[:0], logq_T, records)
