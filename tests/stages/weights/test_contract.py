"""What weights and routing leave of the contract, proved by summing over all outcomes.

At one context, over all draws of the record and all realised tokens, with an outcome and a length
of the sequence that depend on the token: an objective that keeps its level has the expected
gradient

    E[w] grad L,    L the full loss with realised tokens as often as they are weighted

and one that the contract calls biased because of the weight has not. Over several contexts, the
gradient of the step sum w l / sum w is that of the weighted mean of the full losses.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import stages.weights.catalogue  # noqa: F401  (makes all weights known)
from stages.objectives.contract import guarantee
from stages.objectives.likelihood import ForwardKL
from stages.objectives.mixture import Mixture
from stages.objectives.objective import Objective, ObjectiveFunction
from stages.objectives.reverse_kl import ReverseKL
from stages.objectives.tensors import TorchRecords
from stages.weights.base import Doubles, GroupSums, PassRates, Positions, Reads, StudentView, Weight
from stages.weights.entropy import Entropy
from stages.weights.entropy_gap import EntropyGap
from stages.weights.first import FirstShare, FirstTokens
from stages.weights.length import Length
from stages.weights.pass_rate import PassRate
from stages.weights.position_decay import PositionDecay
from stages.weights.prefix import Prefix
from stages.weights.random_share import Random
from stages.weights.scope import Scope
from stages.weights.teacher_entropy import TeacherEntropy
from stages.weights.tip import Tip
from storage.batch import Batch
from storage.errors import ConfigError
from storage.schema import NOT_RIGHT
from tests.stages.objectives.full_losses import FULL, kl
from tests.stages.objectives.test_proofs import CELLS, Z_P, Z_Q, B, Cell, evaluate
from tests.stages.objectives.toy_records import (
    RIGHT,
    Draw,
    enumerate_positions,
    head_tail,
    multinomial_counts,
    softmax,
)

KNOWN = dict(Weight.known)
"""The weights that ship; tests add more."""
TRAINABLE = [
    name for name, cell in CELLS.items() if name.endswith("as recorded") and cell.level != "refused"
]


class Drawn(Weight):
    """A weight that looks at the draw: how much of it fell on the first id."""

    name: Literal["drawn"] = "drawn"

    reads: ClassVar[Reads] = "draw"
    reason: ClassVar[str] = "the drawn weight of the first id"

    def score(self, at: Positions) -> Doubles:
        """Weight of id 0 in the record."""
        row_E = np.repeat(np.arange(len(at)), np.diff(at.batch.entry_off))
        first_E = np.where(at.batch.ids == 0, at.batch.weight, 0.0)
        return np.bincount(row_E, weights=first_E, minlength=len(at)).astype(np.float64)


LONGER = (1, 4)
"""Realised tokens after which the response goes on for two more."""
BEFORE = 3
"""The token before, which is the same in all responses."""


def outcome_of(records: TorchRecords) -> np.ndarray:
    """Whether the response at each position turned out right, 0 or 1."""
    return np.isin(records.tok_T.numpy(), RIGHT).astype(np.int8)


def repeated(values_T: Tensor | None, n: int) -> Any:
    """The only value n times."""
    return None if values_T is None else np.tile(values_T.numpy(), n)


def positions(records: TorchRecords, logits_V: Tensor) -> list[Positions]:
    """Each position as the second of a sequence of its own, beside another response that is right.

    The other positions of the sequence have the same record.
    """
    logq_V = torch.log_softmax(logits_V, dim=0)
    entropy = float(torch.special.entr(logq_V.exp()).sum())
    found: list[Positions] = []
    for index, outcome in enumerate(outcome_of(records)):
        one = records.rows(index, index + 1)
        token = int(one.tok_T)
        tok = np.array([BEFORE, token, 0, 0][: 4 if token in LONGER else 2])
        n, entries = len(tok), len(one.ids_E)
        batch = Batch(
            seq_id=np.array([7]),
            prompt_id=np.array([3]),
            outcome=np.array([outcome], np.int8),
            prompt=np.array([1]),
            prompt_off=np.array([0, 1]),
            tok=tok,
            tok_off=np.array([0, n]),
            ref_lp=None if one.ref_lp_T is None else np.log(B[tok]).astype(np.float32),
            lp=repeated(one.lp_T, n),
            ent=repeated(one.ent_T, n),
            entry_off=np.array([entries * index for index in range(n + 1)]),
            ids=np.tile(one.ids_E.numpy(), n),
            weight=np.tile(one.weight_E.numpy(), n),
            logp=np.tile(one.logp_E.numpy(), n),
            exact=np.tile(one.exact_E.numpy(), n),
            rest=np.tile(one.rest_T.numpy(), n),
        )
        student = StudentView(
            logq_E=np.tile(logq_V[one.ids_E].numpy(), n),
            logq_T=logq_V.numpy()[tok],
            confidence_T=np.full(n, float(logq_V.max().exp()), np.float32),
            entropy_T=np.full(n, entropy, np.float32),
        )
        rates = PassRates(np.array([3]), np.array([(1 + outcome) / 2]))
        sums = GroupSums(np.array([3]), np.array([0.4]), np.array([-0.2]))
        found.append(Positions(batch, 5, 11, student, rates, {"scope": sums}))
    return found


def scores(weight: Weight, records: TorchRecords, logits_V: Tensor) -> np.ndarray:
    return np.concatenate([weight.score(at)[1:2] for at in positions(records, logits_V)])


def spread(score_T: np.ndarray) -> float:
    """Of each figure that a weight has per position."""
    return float(np.ptp(score_T, axis=0).max())


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("kind", ["counts+logp", "head_tail"])
def test_a_weight_looks_at_what_it_says(name: str, kind: str) -> None:
    """Nothing realised at all, or nothing of the draw."""
    weight = KNOWN[name].model_validate({"name": name})
    for _, records, _ in CELLS[f"forward_kl-{kind}-as recorded"].outcomes():
        found_T = scores(weight, records, torch.from_numpy(Z_Q))
        if weight.reads == "context":
            assert spread(found_T) == 0.0
        for token in range(int(records.tok_T.max()) + 1):
            same_T = found_T[records.tok_T.numpy() == token]
            assert weight.reads == "draw" or spread(same_T) == 0.0
        assert weight.reads == "context" or spread(found_T) > 0.0


def full(cell: Cell, logits_V: Tensor, b_V: np.ndarray) -> tuple[float, Tensor]:
    """Value and gradient of the full loss, with the realised token drawn from `b_V`."""
    logits_V = logits_V.clone().requires_grad_()
    logq_V = torch.log_softmax(logits_V / cell.wanted, dim=0)
    p_V = torch.from_numpy(cell.teacher(cell.wanted))
    loss = FULL[cell.row](logq_V, p_V, torch.from_numpy(b_V))
    return loss.item(), torch.autograd.grad(loss, logits_V)[0]


FEW = [
    f"{row}-as recorded"
    for row in (
        "forward_kl-head_tail",
        "jsd-head_tail+logp",
        "lightning-head_tail",
        "nkd/token-head_tail",
        "pld-head_tail",
        "reverse_kl/corrected-head_tail",
    )
]
WEIGHED = [
    *((weight, TRAINABLE) for weight in (Random(), Entropy(), PassRate(a=0.5, b=0.5), Prefix())),
    *((weight, FEW) for weight in (Tip(), EntropyGap(), TeacherEntropy(beta=0.5))),
    *((weight, FEW) for weight in (PositionDecay(half_life=2.0), FirstTokens(tokens=2))),
    *((weight, FEW) for weight in (FirstShare(share=0.3), Length(power=-0.5), Scope())),
]


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        pytest.param(name, weight, id=f"{name}-{weight.name}")
        for weight, names in WEIGHED
        for name in names
    ],
)
def test_the_level_of_a_weighted_objective_is_true(name: str, weight: Weight) -> None:
    cell = CELLS[name]
    found = guarantee(cell.objective, cell.meta, None, (weight,))
    assert weight.reason in found.reason
    logits_V = torch.from_numpy(Z_Q)
    errors: list[float] = []
    for _, records, chance_T in cell.outcomes():
        # A selection has chosen this context, whatever its score.
        chosen_T = np.full(len(records), 0.7)
        w_T = chosen_T if weight.whole_step else scores(weight, records, logits_V)
        weighted_T = chance_T * torch.from_numpy(w_T)
        mean = weighted_T.sum()
        value, grad_V = evaluate(cell.function, records, weighted_T, logits_V)
        b_V = np.bincount(records.tok_T.numpy(), weights=(weighted_T / mean).numpy())
        if cell.level in ("exact", "unbiased"):
            expected, expected_V = full(cell, logits_V, b_V)
        else:  # whatever it is, the weight changes no more than how often tokens are realised
            draw_DV = chance_T.view(-1, len(b_V)).sum(dim=1, keepdim=True)
            again_T = (draw_DV * torch.from_numpy(b_V)).view(-1)
            expected, expected_V = evaluate(cell.function, records, again_T, logits_V)
        errors += [
            abs(value - float(mean) * expected),
            float((grad_V - mean * expected_V).abs().max()),
        ]
    if found.level == cell.level:
        assert max(errors) < 1e-10
    else:
        assert (found.level, weight.reads) == ("biased", "token")
        assert "This is another objective" in found.reason
        assert max(errors) > 1e-3


def test_a_weight_of_the_draw_is_refused_where_the_loss_reads_it_too() -> None:
    """And rightly: its product with the loss has another mean than the product of the means."""
    cell = CELLS["forward_kl-counts-as recorded"]
    with pytest.raises(
        ConfigError, match="`drawn` is estimated from the drawn ids that forward_kl"
    ):
        guarantee(cell.objective, cell.meta, None, (Drawn(),))
    logits_V = torch.from_numpy(Z_Q)
    _, records, chance_T = cell.outcomes()[0]
    w_T = torch.from_numpy(scores(Drawn(), records, logits_V))
    _, grad_V = evaluate(cell.function, records, chance_T * w_T, logits_V)
    _, full_V = full(cell, logits_V, B)
    assert float((grad_V - (chance_T * w_T).sum() * full_V).abs().max()) > 1e-3

    reads_none = CELLS["lightning-counts-as recorded"]
    assert guarantee(reads_none.objective, reads_none.meta, None, (Drawn(),)).level == "exact"


@pytest.mark.parametrize(
    ("on", "chosen"), [("right", set(RIGHT)), ("wrong", set(range(8)) - set(RIGHT))]
)
def test_a_routed_term_reads_sequences_of_its_outcome(on: str, chosen: set[int]) -> None:
    """Forward KL counts each context as often as it ends so; corrected reverse KL is biased."""
    logits_V = torch.from_numpy(Z_Q)
    for name, row in (("forward_kl", "forward_kl"), ("reverse_kl", "reverse_kl/corrected")):
        cell = CELLS[f"{row}-head_tail-as recorded"]
        mixture = Objective.model_validate(
            {"name": "mixture", "terms": [{"name": name, "on": on, "weight": 0.5}]}
        )
        found = guarantee(mixture, cell.meta)
        _, records, chance_T = cell.outcomes()[0]
        right_T = outcome_of(records)
        not_right_T = np.resize(np.array(NOT_RIGHT, np.int8), len(right_T))  # unparsed, cut: wrong
        outcome_T = torch.from_numpy(np.where(right_T == 1, right_T, not_right_T))
        records = replace(records, outcome_T=outcome_T)
        value, grad_V = evaluate(mixture, records, chance_T, logits_V)
        share = B[sorted(chosen)].sum()
        expected, expected_V = full(cell, logits_V, B)
        gap = float((grad_V - 0.5 * share * expected_V).abs().max())
        assert "another objective" in found.reason
        if name == "forward_kl":
            assert found.level == "unbiased"
            assert value == pytest.approx(0.5 * share * expected, abs=1e-10)
            assert gap < 1e-10
        else:
            assert found.level == "biased"
            assert gap > 1e-3


def test_terms_of_all_sequences_are_what_they_were() -> None:
    cell = CELLS["reverse_kl/corrected-head_tail-as recorded"]
    terms: list[dict[str, Any]] = [{"name": "reverse_kl", "on": "all"}, {"name": "jsd"}]
    mixture = Mixture.model_validate({"terms": terms})
    plain = Mixture.model_validate({"terms": [{"name": "reverse_kl"}, {"name": "jsd"}]})
    assert guarantee(mixture, cell.meta) == guarantee(plain, cell.meta)


# ---------------------------------------------------------------------------------------------
# A step of several contexts: sum w l / sum w


CONTEXTS = [
    (softmax(Z_P), B, torch.from_numpy(0.3 * Z_Q)),
    (softmax(Z_P[::-1].copy()), B[::-1].copy(), torch.from_numpy(Z_Q)),
    (softmax(0.5 * Z_P), softmax(Z_Q), torch.from_numpy(Z_P)),
    (softmax(1.2 * Z_Q), softmax(Z_P), torch.from_numpy(2.0 * Z_P)),
]
"""Teacher, policy that wrote the token, and the student's logits."""


Draws = Callable[[np.ndarray], list[Draw]]


def two_draws(p_V: np.ndarray) -> list[Draw]:
    return multinomial_counts(p_V, 2)


def three_and_one(p_V: np.ndarray) -> list[Draw]:
    """The three likeliest ids, and one of the others."""
    return head_tail(p_V, [int(i) for i in np.argsort(-p_V)[:3]], 1)


def step_gradients(
    function: ObjectiveFunction, draws: Draws = two_draws
) -> list[tuple[Tensor, Tensor]]:
    """Per context: expected gradient of the records, and gradient of the full loss."""
    found: list[tuple[Tensor, Tensor]] = []
    for p_V, b_V, logits_V in CONTEXTS:
        records, chance_T = enumerate_positions(p_V, b_V, draws(p_V))
        _, grad_V = evaluate(function, records, chance_T, logits_V)
        leaf_V = logits_V.clone().requires_grad_()
        row = "forward_kl" if isinstance(function, ForwardKL) else "reverse_kl/corrected"
        loss = FULL[row](torch.log_softmax(leaf_V, 0), torch.from_numpy(p_V), torch.from_numpy(b_V))
        found.append((grad_V, torch.autograd.grad(loss, leaf_V)[0]))
    return found


@pytest.mark.parametrize("function", [ForwardKL(), ReverseKL()], ids=lambda f: f.name)
def test_a_random_share_has_the_gradient_of_all_positions(function: ObjectiveFunction) -> None:
    """Over all orders that the random scores can put the positions in."""
    gradients = step_gradients(function)
    orders = list(itertools.permutations(range(len(CONTEXTS))))
    total = [torch.zeros_like(grad_V) for grad_V, _ in gradients]
    for order in orders:
        w_T = Random(keep=0.5).weigh(np.array(order, np.float64))
        assert w_T.sum() == 2
        for index, (grad_V, _) in enumerate(gradients):
            total[index] += w_T[index] / w_T.sum() * grad_V / len(orders)
    for found_V, (_, full_V) in zip(total, gradients, strict=True):
        torch.testing.assert_close(found_V, full_V / len(CONTEXTS), atol=1e-10, rtol=0)


@pytest.mark.parametrize("function", [ForwardKL(), ReverseKL()], ids=lambda f: f.name)
def test_the_most_uncertain_share_has_the_gradient_of_their_mean(
    function: ObjectiveFunction,
) -> None:
    entropies = [
        float(torch.special.entr(logits_V.softmax(0)).sum()) for _, _, logits_V in CONTEXTS
    ]
    w_T = Entropy(keep=0.5).weigh(np.array(entropies))
    kept = sorted(np.argsort(entropies)[-2:].tolist())
    assert np.flatnonzero(w_T).tolist() == kept
    for index, (grad_V, full_V) in enumerate(step_gradients(function)):
        expected_V = full_V / 2 if index in kept else torch.zeros_like(full_V)
        torch.testing.assert_close(w_T[index] / w_T.sum() * grad_V, expected_V, atol=1e-10, rtol=0)


@pytest.mark.parametrize("by", ["entropy", "soft_or", "q3"])
@pytest.mark.parametrize("function", [ForwardKL(), ReverseKL()], ids=lambda f: f.name)
def test_tip_has_the_gradient_of_the_mean_over_what_it_keeps(
    function: ObjectiveFunction, by: str
) -> None:
    """By entropy of the student and divergence from the head, whatever else was drawn."""
    weight = Weight.model_validate({"name": "tip", "score": by})
    found: list[np.ndarray] = []
    for p_V, b_V, logits_V in CONTEXTS:
        records, _ = enumerate_positions(p_V, b_V, three_and_one(p_V))
        score_T = scores(weight, records, logits_V)
        assert spread(score_T) == 0.0
        q_V, head = logits_V.softmax(0), np.argsort(-p_V)[:3].tolist()
        rest = [v for v in range(len(p_V)) if v not in head]
        q_S, p_S = (
            torch.cat([x_V[head], x_V[rest].sum()[None]]) for x_V in (q_V, torch.from_numpy(p_V))
        )
        divergence = 0.0 if by == "entropy" else float(kl(q_S, p_S))
        exact = [float(torch.special.entr(q_V).sum()), divergence]
        np.testing.assert_allclose(score_T[0], exact, atol=2.0**-14)
        found.append(score_T[0])
    h_T, d_T = (np.argsort(np.argsort(np.array(found), axis=0), axis=0) / 4 + 0.125).T
    expected_T = {"entropy": h_T, "soft_or": 1 - (1 - h_T) * (1 - d_T), "q3": (1 - h_T) * d_T}[by]
    kept = sorted(np.argsort(-expected_T, kind="stable")[:2].tolist())
    w_T = weight.weigh(np.array(found))
    assert np.flatnonzero(w_T).tolist() == kept
    for index, (grad_V, full_V) in enumerate(step_gradients(function, three_and_one)):
        expected_V = full_V / 2 if index in kept else torch.zeros_like(full_V)
        torch.testing.assert_close(w_T[index] / w_T.sum() * grad_V, expected_V, atol=1e-10, rtol=0)


@pytest.fixture(autouse=True)
def only_shipped_weights_stay_known() -> Iterator[None]:
    """Weights that tests define are found by name like any other; they do not outlive the file."""
    yield
    Weight.known.pop("drawn", None)
