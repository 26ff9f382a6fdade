"""The fused head and loss against plain autograd over the full logits."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.losses.head_loss import head_loss, head_statistics
from stages.models.model import Head
from stages.objectives.f_divergence import JSD, TVD, GhostKL, SkewForwardKL, SkewReverseKL
from stages.objectives.lightning import Lightning
from stages.objectives.likelihood import CrossEntropy, ForwardKL
from stages.objectives.mixture import Mixture
from stages.objectives.nkd import NKD
from stages.objectives.objective import ObjectiveFunction
from stages.objectives.policy_gradient import PolicyGradient
from stages.objectives.ranking import PLD, ListMLE
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.taid import TAID
from stages.objectives.temper import Tempered
from stages.objectives.tensors import TorchRecords

T, D, V = 11, 6, 13

OBJECTIVES = [
    CrossEntropy(),
    ForwardKL(),
    ForwardKL(temperature=0.7),
    Lightning(),
    Lightning(clip=0.5),
    ReverseKL(),
    ReverseKL(temperature=1.4),
    ReverseKL(form="bucketed"),
    ReverseKL(form="residual_only"),
    ReverseKL(max_weight=0.5),
    GhostKL(),
    JSD(beta=0.3),
    SkewForwardKL(temperature=0.8),
    SkewReverseKL(),
    TVD(),
    TAID().at(0.5),
    NKD(),
    PLD(),
    ListMLE(k=2),
    PolicyGradient(),
    Mixture.model_validate(
        {"terms": [{"name": "forward_kl", "weight": 0.3}, {"weight": [[0.0, 2.0]]}]},
    ),
    Tempered(JSD(temperature=1.4), 1.0, normalised=True),
]


def make_records(seed: int, dtype: torch.dtype = torch.float64, rows: int = T) -> TorchRecords:
    """Head and tail records with 0 to 5 entries per position; the first position has none.

    Of the second half of the positions, log p is kept on the tail too.
    """
    rng = np.random.default_rng(seed)
    counts_T = rng.integers(0, 6, size=rows)
    counts_T[:1] = 0
    p_TV = rng.dirichlet(np.full(V, 0.5), size=rows)
    ids = [rng.choice(V, size=n, replace=False) for n in counts_T]
    flat = np.concatenate([*ids, np.zeros(0, int)]).astype(np.int64)
    row_E = np.repeat(np.arange(rows), counts_T)
    exact_E = rng.random(len(flat)) < 0.7
    known_E = exact_E | (row_E >= rows // 2)
    p_E = p_TV[row_E, flat]
    tok_T = rng.integers(0, V, size=rows)
    rest_T = 1.0 - np.bincount(row_E, weights=p_E * exact_E, minlength=rows)

    def real(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(dtype)

    return TorchRecords(
        entry_off=torch.from_numpy(np.concatenate([[0], np.cumsum(counts_T)])),
        tok_T=torch.from_numpy(tok_T),
        row_E=torch.from_numpy(row_E),
        ids_E=torch.from_numpy(flat),
        weight_E=real(p_E),
        logp_E=real(np.where(known_E, np.log(p_E), np.nan)),
        exact_E=torch.from_numpy(exact_E),
        rest_T=real(rest_T),
        lp_T=real(np.log(p_TV[np.arange(rows), tok_T])),
        ref_lp_T=real(np.log(rng.dirichlet(np.full(V, 2.0), size=rows)[:, 0])),
        ent_T=real(-(p_TV * np.log(p_TV)).sum(axis=1)),
        lz_T=real(np.log((p_TV ** (1 / 1.4)).sum(axis=1))),
    )


def make_model(
    seed: int, softcap: float | None, scale: float, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Head]:
    """Hidden states and a head with bias, all asking for gradients."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype).requires_grad_()

    return leaf(T, D), Head(weight=leaf(V, D), bias=leaf(V), softcap=softcap, scale=scale)


def full_logits(hidden_TD: Tensor, head: Head) -> Tensor:
    logits_TV = hidden_TD @ head.weight.T
    if head.bias is not None:
        logits_TV = logits_TV + head.bias
    logits_TV = logits_TV * head.scale
    if head.softcap is not None:
        logits_TV = head.softcap * torch.tanh(logits_TV / head.softcap)
    return logits_TV


def naive(
    hidden_TD: Tensor, head: Head, records: TorchRecords, objective: ObjectiveFunction
) -> Tensor:
    """Summed loss with the whole [T, V] matrix and autograd through everything."""
    logq_TV = torch.log_softmax(full_logits(hidden_TD, head) / objective.temperature, dim=-1)
    logq_T = logq_TV.gather(1, records.tok_T[:, None]).squeeze(1)
    return objective(logq_TV[records.row_E, records.ids_E], logq_T, records).loss_T.sum()


def leaves(hidden_TD: Tensor, head: Head) -> list[Tensor]:
    return [x for x in (hidden_TD, head.weight, head.bias) if x is not None]


@pytest.mark.parametrize(("softcap", "scale"), [(None, 1.0), (2.0, 1.0), (None, 0.3), (1.5, 0.5)])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_equals_autograd_over_full_logits(
    objective: ObjectiveFunction, softcap: float | None, scale: float
) -> None:
    hidden_TD, head = make_model(3, softcap, scale)
    records = make_records(4)
    expected = naive(hidden_TD, head, records, objective) / 7.0
    expected_grads = torch.autograd.grad(expected, leaves(hidden_TD, head))
    for rows_per_chunk in (1, 4, T, 100):
        loss, _ = head_loss(
            hidden_TD, head, records, objective, rows_per_chunk=rows_per_chunk, normaliser=7.0
        )
        torch.testing.assert_close(loss, expected)
        grads = torch.autograd.grad(loss, leaves(hidden_TD, head))
        for found, wanted in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize("rows_per_chunk", [1, 4, 100])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_weights_multiply_the_loss_and_are_held_constant(
    objective: ObjectiveFunction, rows_per_chunk: int
) -> None:
    hidden_TD, head = make_model(3, 1.5, 0.5)
    records = make_records(4)
    weight_T = torch.linspace(0.5, 2.0, T, dtype=torch.float64)
    weight_T[[0, 3, T - 1]] = 0.0
    logq_TV = torch.log_softmax(full_logits(hidden_TD, head) / objective.temperature, dim=-1)
    logq_T = logq_TV.gather(1, records.tok_T[:, None]).squeeze(1)
    loss_T = objective(logq_TV[records.row_E, records.ids_E], logq_T, records).loss_T
    expected = (weight_T * loss_T).sum() / 7.0
    asking = weight_T.clone().requires_grad_()
    loss, stats = head_loss(
        hidden_TD,
        head,
        records,
        objective,
        rows_per_chunk=rows_per_chunk,
        normaliser=7.0,
        weight_T=asking,
    )
    torch.testing.assert_close(loss, expected)
    kept_T = weight_T > 0
    torch.testing.assert_close(stats["loss"], loss_T.detach()[kept_T])
    torch.testing.assert_close(stats["logq"], logq_T.detach()[kept_T])
    found = torch.autograd.grad(loss, [*leaves(hidden_TD, head), asking], allow_unused=True)
    assert found[-1] is None
    wanted = torch.autograd.grad(expected, leaves(hidden_TD, head))
    for mine, theirs in zip(found, wanted, strict=False):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(),
        ForwardKL(),
        Lightning(clip=0.5),
        ReverseKL(form="bucketed"),
        GhostKL(),
        JSD(),
        SkewForwardKL(),
        SkewReverseKL(),
        TVD(),
    ],
    ids=str,
)
def test_gradient_is_the_slope_of_the_loss(objective: ObjectiveFunction) -> None:
    """Central differences; only for objectives whose value is what they differentiate."""
    hidden_TD, head = make_model(8, 2.0, 0.5)
    records = make_records(9)

    def loss() -> Tensor:
        return head_loss(hidden_TD, head, records, objective, rows_per_chunk=3, normaliser=2)[0]

    grads = torch.autograd.grad(loss(), leaves(hidden_TD, head))
    step = 1e-5
    for leaf, grad in zip(leaves(hidden_TD, head), grads, strict=True):
        way = torch.randn_like(leaf.detach())
        with torch.no_grad():
            leaf += step * way
            above = loss()
            leaf -= 2 * step * way
            below = loss()
            leaf += step * way
        slope = (above - below) / (2 * step)
        torch.testing.assert_close((grad * way).sum(), slope, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_float32_stays_close_to_float64(objective: ObjectiveFunction) -> None:
    wide = make_model(3, None, 1.0)
    narrow = make_model(3, None, 1.0)
    narrow_TD = narrow[0].detach().float().requires_grad_()
    assert narrow[1].bias is not None
    head = Head(
        weight=narrow[1].weight.detach().float().requires_grad_(),
        bias=narrow[1].bias.detach().float().requires_grad_(),
        softcap=None,
        scale=1.0,
    )
    wide_records = make_records(4)
    narrow_records = make_records(4, torch.float32)
    exact, _ = head_loss(*wide, wide_records, objective, rows_per_chunk=4, normaliser=T)
    rough, _ = head_loss(narrow_TD, head, narrow_records, objective, rows_per_chunk=4, normaliser=T)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-5)
    for grad, wanted in zip(
        torch.autograd.grad(rough, leaves(narrow_TD, head)),
        torch.autograd.grad(exact, leaves(*wide)),
        strict=True,
    ):
        torch.testing.assert_close(grad.double(), wanted, atol=3e-5, rtol=1e-4)


def test_bfloat16_hidden_states_with_float32_master_weights() -> None:
    """As under autocast: logits in bfloat16, the head's gradient in float32."""
    hidden_TD, wide = make_model(3, None, 1.0)
    half_TD = hidden_TD.detach().bfloat16().requires_grad_()
    head = Head(
        weight=wide.weight.detach().float().requires_grad_(), bias=None, softcap=None, scale=1.0
    )
    records = make_records(4, torch.float32)
    loss, stats = head_loss(half_TD, head, records, ForwardKL(), rows_per_chunk=4, normaliser=1)
    assert loss.dtype == torch.float32
    assert stats["logq"].dtype == torch.float32
    loss.backward()
    assert half_TD.grad is not None
    assert head.weight.grad is not None
    assert (half_TD.grad.dtype, head.weight.grad.dtype) == (torch.bfloat16, torch.float32)

    plain = replace(wide, bias=None)
    expected = naive(half_TD.detach().double(), plain, make_records(4), ForwardKL())
    (wanted_VD,) = torch.autograd.grad(expected, plain.weight)
    assert loss.item() == pytest.approx(expected.item(), rel=0.02)
    error = (head.weight.grad.double() - wanted_VD).norm() / wanted_VD.norm()
    assert error < 0.02


def test_autocast_decides_the_type_of_the_matmuls() -> None:
    hidden_TD, wide = make_model(3, None, 1.0, torch.float32)
    records = make_records(4, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = head_loss(hidden_TD, wide, records, Lightning(), rows_per_chunk=4, normaliser=1)
    plain, _ = head_loss(hidden_TD, wide, records, Lightning(), rows_per_chunk=4, normaliser=1)
    assert 0 < abs(cast.item() - plain.item()) < 0.05 * abs(plain.item())
    grads = torch.autograd.grad(cast, leaves(hidden_TD, wide))
    assert {grad.dtype for grad in grads} == {torch.float32}


def test_losses_of_micro_batches_add_up() -> None:
    hidden_TD, head = make_model(3, None, 1.0)
    records = make_records(4)
    whole, _ = head_loss(hidden_TD, head, records, ReverseKL(), rows_per_chunk=4, normaliser=T)
    parts = [
        head_loss(
            hidden_TD[lo:hi],
            head,
            records.rows(lo, hi),
            ReverseKL(),
            rows_per_chunk=4,
            normaliser=torch.tensor(T),
        )[0]
        for lo, hi in ((0, 5), (5, 5), (5, T))
    ]
    total = torch.stack(parts).sum()
    torch.testing.assert_close(total, whole)
    for found, wanted in zip(
        torch.autograd.grad(total, leaves(hidden_TD, head)),
        torch.autograd.grad(whole, leaves(hidden_TD, head)),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted)


def test_only_wanted_gradients_are_made() -> None:
    hidden_TD, head = make_model(3, None, 1.0)
    frozen = replace(head, weight=head.weight.detach(), bias=None)
    records = make_records(4)
    loss, _ = head_loss(hidden_TD, frozen, records, ForwardKL(), rows_per_chunk=4, normaliser=1)
    loss.backward()
    assert hidden_TD.grad is not None
    assert frozen.weight.grad is None
    with torch.no_grad():
        value, _ = head_loss(hidden_TD, head, records, ForwardKL(), rows_per_chunk=4, normaliser=1)
    assert not value.requires_grad


@pytest.mark.parametrize(("dropped", "expected"), [([], [4, 4, 3]), ([0, 2, 3, 10], [4, 3])])
def test_the_head_runs_once_per_chunk_of_positions_with_weight(
    dropped: list[int], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    mm = torch.mm

    def watched(*args: Any, **named: Any) -> Tensor:
        out = mm(*args, **named)
        shapes.append(tuple(out.shape))
        return out

    monkeypatch.setattr(torch, "mm", watched)
    hidden_TD, head = make_model(3, None, 1.0)
    weight_T = torch.ones(T, dtype=torch.float64)
    weight_T[dropped] = 0.0
    loss, _ = head_loss(
        hidden_TD,
        head,
        make_records(4),
        ReverseKL(),
        rows_per_chunk=4,
        normaliser=1,
        weight_T=weight_T if dropped else None,
    )
    loss.backward()
    assert shapes == [(rows, V) for rows in expected]


def test_second_backward_is_refused() -> None:
    hidden_TD, head = make_model(3, None, 1.0)
    loss, _ = head_loss(
        hidden_TD, head, make_records(4), ForwardKL(), rows_per_chunk=4, normaliser=1
    )
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_statistics_come_back_in_order_whatever_the_chunks() -> None:
    hidden_TD, head = make_model(3, None, 1.0)
    records = make_records(4)
    runs = [
        head_loss(hidden_TD, head, records, ReverseKL(), rows_per_chunk=n, normaliser=1)[1]
        for n in (2, T)
    ]
    assert set(runs[0]) == {"loss", "logq", "bucket", "covered", "weight_capped"}
    for name, values_T in runs[0].items():
        assert values_T.shape == (T,)
        assert not values_T.requires_grad
        torch.testing.assert_close(values_T, runs[1][name])
    logq_TV = torch.log_softmax(full_logits(hidden_TD, head), dim=-1)
    torch.testing.assert_close(
        runs[0]["logq"], logq_TV.gather(1, records.tok_T[:, None]).squeeze(1).detach()
    )


@pytest.mark.parametrize("rows_per_chunk", [3, 50])
def test_head_statistics(rows_per_chunk: int) -> None:
    hidden_TD, head = make_model(3, 2.0, 0.5)
    records = make_records(4)
    found = head_statistics(
        hidden_TD, head, records, rows_per_chunk=rows_per_chunk, temperature=0.8
    )
    logq_TV = torch.log_softmax(full_logits(hidden_TD, head).detach() / 0.8, dim=-1)
    torch.testing.assert_close(found.logq_E, logq_TV[records.row_E, records.ids_E])
    torch.testing.assert_close(found.logq_T, logq_TV.gather(1, records.tok_T[:, None])[:, 0])
    assert found.top_T.tolist() == logq_TV.argmax(dim=-1).tolist()
    torch.testing.assert_close(found.confidence_T, logq_TV.exp().amax(dim=-1))
    entropy_T = torch.distributions.Categorical(logits=logq_TV).entropy()
    torch.testing.assert_close(found.entropy_T, entropy_T)


def test_no_positions() -> None:
    hidden_TD, head = make_model(3, None, 1.0)
    none = make_records(4).rows(0, 0)
    loss, stats = head_loss(hidden_TD[:0], head, none, ReverseKL(), rows_per_chunk=4, normaliser=1)
    loss.backward()
    assert (loss.item(), {name: len(value) for name, value in stats.items()}) == (
        0.0,
        {"loss": 0, "logq": 0},
    )
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
    assert len(head_statistics(hidden_TD[:0], head, none, rows_per_chunk=4).top_T) == 0


def test_hidden_states_of_another_batch_are_refused() -> None:
    hidden_TD, head = make_model(3, None, 1.0)
    with pytest.raises(ValueError, match="10 hidden states for 11 positions"):
        head_loss(
            hidden_TD[:10], head, make_records(4), ForwardKL(), rows_per_chunk=4, normaliser=1
        )
